"""`draft strip FILE --model M --prompt P`: an adapter over its scale, or two over both, as a picture and a page."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draft.errors import ConfigError, ConfigErrors
from draft.files import usable
from draft_cli.console import rows

if TYPE_CHECKING:
    from draft.pipeline.kinds.kind import CheckedStage

_WHERE = "draft strip"
_TELLS = "strip.json"


def strip(
    adapter: Annotated[Path, typer.Argument(metavar="FILE", help="An adapter.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="FILE_B", help="A second one: a grid over both scales.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="A named model (`draft models`), folder, hub id or file.")
    ] = "",
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="A row of images for each seed; again for more."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="A file of prompts instead.")
    ] = None,
    scale: Annotated[str, typer.Option("--scale", metavar="A:B:N", help="N scales from A to B, or a list 0,0.5,1.")] = (
        "0:1.5:7"
    ),
    scale_b: Annotated[
        str | None, typer.Option("--scale-b", metavar="A:B:N", help="The second adapter's scales; default: as --scale.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="N", help="Seeds 0 to N - 1, or a list 1,5,9.")] = "3",
    reward: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="NAME[=OPTIONS]", help="A reward to plot below, e.g. 'jpeg={quality: 50}'."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Sampling steps; default: 50, of an embedded model 10.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", metavar="G", help="Default: 7.5, of an embedded model 2.")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Default: FILE's name with _strip.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a strip that is there.")] = False,
) -> None:
    """Draw what an adapter does over its scale, or two over both."""
    files = [adapter, *([other] if other else [])]
    if scale_b is not None and other is None:
        raise ConfigError(
            "--scale-b needs a second adapter", where=_WHERE, hint="draft strip a.safetensors b.safetensors"
        )
    if bool(prompt) == (prompts is not None):
        got = "both" if prompt else "neither"
        raise ConfigError(f"give either --prompt or --prompts (got {got})", where=_WHERE, hint='--prompt "a cat"')
    chosen = {"scales": parse_scales(scale), "scales_b": parse_scales(scale if scale_b is None else scale_b)}
    stage = strip_stage(
        files,
        model=model,
        prompts=list(prompt) if prompt else {"file": str(prompts)},
        scales=chosen["scales"],
        scales_b=chosen["scales_b"] if other else None,
        seeds=parse_seeds(seeds),
        rewards=parse_rewards(reward or []),
        sampler={"num_inference_steps": steps, "guidance_scale": guidance},
        device=device,
    )
    target = output or Path("+".join(path.stem for path in files) + "_strip")
    outputs, figures = write_strip(stage, target, force=force)
    for name, value in figures.items():
        label, _, what = name.rpartition(".")
        if what == "highest_at":
            typer.echo(f"{label} is highest at {value:g}{'' if other is None else f' of {adapter.stem}'}")
    typer.echo(f"results in {target}:\n{rows([(name, str(path)) for name, path in outputs.items()])}")


def parse_scales(text: str, *, option: str = "--scale") -> list[float]:
    """Scales from `A:B:N`, N evenly spaced ones with both ends, or from a list with commas.

    Args:
        text: For example `0:1.5:7` or `0,0.5,1`.
        option: The option's name, for errors.

    Returns:
        The scales.

    Raises:
        ConfigError: It is neither.
    """
    try:
        if ":" not in text:
            scales = [float(word) for word in text.split(",")]
        else:
            first, last, count = text.split(":")
            low, high, number = float(first), float(last), int(count)
            if number < 2 or number > 1000:
                raise ConfigError(f"{option} must have 2 to 1000 scales (got {number})", where=_WHERE)
            scales = [round(low + (high - low) * index / (number - 1), 6) for index in range(number)]
        if all(math.isfinite(scale) for scale in scales):
            return scales
    except ValueError:
        pass
    hint = "0:1.5:7 is 0, 0.25, ... 1.5; 0,0.5,1 is a list"
    raise ConfigError(f"{option} must be A:B:N or a list of numbers (got {text!r})", where=_WHERE, hint=hint)


def parse_seeds(text: str) -> list[int]:
    """Seeds from a number of them, or from a list with a comma.

    Args:
        text: For example `3`, which is 0, 1, 2, or `5,` or `1,5,9`.

    Returns:
        The seeds.

    Raises:
        ConfigError: It is neither.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words) or ("," not in text and not 0 < int(text) <= 1000):
        hint = "3 is the seeds 0, 1, 2; 1,5,9 is a list, and 7, the one seed 7"
        raise ConfigError(f"--seeds must be a number from 1 to 1000 or a list (got {text!r})", where=_WHERE, hint=hint)
    return [int(word) for word in words] if "," in text else list(range(int(text)))


def parse_rewards(texts: Sequence[str]) -> dict[str, Any]:
    """Rewards from `NAME` and `NAME={option: value}`.

    Args:
        texts: The words.

    Returns:
        As a pipeline has them: label to options or None.

    Raises:
        ConfigError: One comes twice, or its options are no mapping.
    """
    from draft.pipeline.document import parse_value

    rewards: dict[str, Any] = {}
    for text in texts:
        name, equals, options = text.partition("=")
        if name in rewards:
            raise ConfigError(f"reward {name!r} is given twice", where=_WHERE, hint="NAME2={use: NAME, ...}")
        value = parse_value(options) if equals else None
        if equals and not isinstance(value, Mapping):
            hint = f"--reward '{name}={{quality: 50}}'"
            raise ConfigError(f"the options of a reward are a mapping (got {text!r})", where=_WHERE, hint=hint)
        if isinstance(value, Mapping) and "isolated" in value:
            raise ConfigError("isolated rewards are for pipelines", where=_WHERE, hint="use a stage of kind strip")
        rewards[name] = dict(value) if isinstance(value, Mapping) else None
    return rewards


def strip_stage(
    files: Sequence[Path],
    *,
    model: str,
    prompts: Any,
    scales: Sequence[float],
    scales_b: Sequence[float] | None,
    seeds: Sequence[int],
    rewards: Mapping[str, Any],
    sampler: Mapping[str, Any],
    device: str,
) -> dict[str, Any]:
    """The stage of kind `strip` that the options describe.

    Args:
        files: One adapter, or two.
        model: As in a pipeline.
        prompts: As in a pipeline.
        scales: Those of the first adapter.
        scales_b: Those of the second, None where there is none.
        seeds: The rows' seeds.
        rewards: As in a pipeline.
        sampler: Settings of the sampler; those that are None are the defaults.
        device: As in a pipeline.

    Returns:
        The stage as plain data.

    Raises:
        ConfigError: There is no model.
    """
    from draft.pipeline.rehearsal import is_embedded

    if not model:
        raise ConfigError(
            "a strip needs a model", where="command line", hint="--model emoji; `draft models` shows names"
        )
    embedded = {"num_inference_steps": 10, "guidance_scale": 2.0} if is_embedded(model) else {}
    overrides = {name: value for name, value in sampler.items() if value is not None}
    stage = {
        "kind": "strip",
        "model": model,
        "prompts": prompts,
        "adapters": {label: {"from": str(path)} for label, path in zip(_labels(files), files, strict=True)},
        "scales": list(scales),
        "seeds": list(seeds),
        "sampler": {**embedded, **overrides},
        "rewards": dict(rewards),
        "device": device,
    }
    return stage if scales_b is None else {**stage, "scales_b": list(scales_b)}


def write_strip(
    stage: Mapping[str, Any], target: Path, *, force: bool, quiet: bool = False
) -> tuple[dict[str, Path], Mapping[str, float]]:
    """Check a stage as `draft check` would, run it as `draft run` would, and give its folder a name.

    Args:
        stage: The stage as plain data.
        target: The folder to make.
        force: Whether a strip that is there may be replaced.
        quiet: Whether no progress is shown.

    Returns:
        Output name to path, and the closing figures.

    Raises:
        DraftError: Something the user can fix.
    """
    from draft.pipeline.document import dump_yaml
    from draft.pipeline.folders import publish
    from draft.pipeline.kinds.kind import Job
    from draft.progress import Silent, progress

    check_target(target, force=force)
    checked = check_stage(stage)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot write there: {error.strerror}", where=str(target)) from None
    reporter = Silent() if quiet else progress()
    try:
        figures = checked.kind.executor()(
            Job(
                stage=checked,
                folder=partial,
                files={file.keys: Path(file.source) for file in checked.files},
                progress=reporter,
                title=" and ".join(stage["adapters"]),
                config_text=dump_yaml({"strip": dict(checked.data)}),
            )
        )
        publish(partial, target)
    finally:
        reporter.stop()
        shutil.rmtree(partial, ignore_errors=True)
    return {name: target / path for name, path in checked.outputs.items()}, figures


def check_stage(stage: Mapping[str, Any]) -> CheckedStage:
    """Check a stage as `draft check` would.

    Args:
        stage: The stage as plain data.

    Returns:
        The stage with everything that can be known before it runs.

    Raises:
        DraftError: What is wrong with it.
    """
    from draft.pipeline.check import check_document
    from draft.pipeline.document import Document

    document = Document("command line", {"name": "strip", "stages": {"strip": dict(stage)}})
    pipeline, errors = check_document(document, Path.cwd() / "strip.yaml")
    if pipeline is None:
        raise errors[0] if len(errors) == 1 else ConfigErrors(errors)
    return pipeline.stages["strip"]


def check_target(target: Path, *, force: bool) -> None:
    """Refuse, before anything is loaded, a place that is taken.

    Args:
        target: The folder to make.
        force: Whether a strip that is there may be replaced.

    Raises:
        ConfigError: Something is there that may not be replaced.
    """
    if not usable(target).exists():
        return
    if not (target / _TELLS).is_file():
        what = "there is something else than a strip at this place"
        raise ConfigError(what, where=str(target), hint="name another folder with -o")
    if not force:
        what = "the output is already there"
        raise ConfigError(what, where=str(target), hint="add --force to replace it, or -o OTHER")


def _labels(files: Sequence[Path]) -> list[str]:
    """A label for each file out of its name; `base` is the model's own."""
    labels: list[str] = []
    for path in files:
        label = re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem).lstrip("_.-") or "adapter"
        label = "base_adapter" if label == "base" else label
        labels.append(f"{label}_{len(labels) + 1}" if label in labels else label)
    return labels
