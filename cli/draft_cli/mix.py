"""`draft mix a.safetensors:0.7 b.safetensors:0.3`: the exact sum of adapter files, and a strip of it with `--sweep`."""

from __future__ import annotations

import json as json_module
import typing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from draft.adapters.files.config import CONFIG, is_folder
from draft.adapters.identity import writes_over
from draft.adapters.settings import MixSettings
from draft.adapters.strength import Strength
from draft.errors import ConfigError, ConfigErrors, DraftError, did_you_mean
from draft.files import WEIGHTS, usable
from draft.outputs import check_output
from draft.rewards.words import bounds, choices, expected, shown
from draft_cli.inputs import parse_blocks, parse_factors, parse_input
from draft_cli.mix_report import as_json, lines
from draft_cli.strip import check_stage, check_target, parse_scales, strip_stage, write_strip

_WHERE = "draft mix"

Format = Annotated[str, typer.Option("--format", metavar="FORMAT", help="Keys: auto, kohya, diffusers or peft.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Factors: same, fp32, fp16 or bf16.")]

Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="PATTERN", help="Leave out tensors or modules that cannot be read; each is named."),
]


def mix(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:WEIGHT[:TEXT]]...",
            help="Adapters with weights, e.g. a.safetensors:0.7, or a.safetensors:0.7:0.3 with 0.3 for text encoders; "
            "or hf://org/repo/file.safetensors@revision:0.7.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: named after the inputs.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", help="Cut every module to the best of this rank.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", metavar="E", help="Keep this share of every module's squared singular values."),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", metavar="X", help="The smallest ranks with this relative error over all modules."),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="PATTERN=FACTOR", help="Weigh a part, e.g. text_encoder=0 to drop it."),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(
            "--block",
            metavar="[INPUT:]PATTERN=FACTOR",
            help="Weigh modules by their path, e.g. 'up_blocks.*=0.5'; of one input, by its number or name: 'a:mid=0'.",
        ),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Divide the weights by their sum.")] = False,
    method: Annotated[
        str,
        typer.Option("--method", metavar="METHOD", help="exact, or ties, dare, magnitude (with --rank, --density)."),
    ] = "exact",
    density: Annotated[
        float | None, typer.Option("--density", metavar="D", help="Share of entries that the other methods keep.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Of the method dare.")] = 0,
    dtype: Dtype = "same",
    format: Format = "auto",
    skip: Skip = None,
    verify: Annotated[
        str, typer.Option("--verify", metavar="HOW", help="Read back: factors, or full (by diffusers' reader too).")
    ] = "factors",
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep", metavar="A:B:N", help="Draw the mix at N strengths from A to B, with --model, --prompt."
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "--base", metavar="MODEL", help="What --sweep draws with.")] = "",
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What --sweep draws; again for more.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come out; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Mix adapters, each with a weight, into one exact adapter."""
    settings = mix_settings(
        _WHERE,
        method=method,
        rank=rank,
        energy=energy,
        max_error=max_error,
        components=parse_factors(component or [], "component"),
        normalize=normalize,
        density=density,
        dtype=dtype,
        format=format,
        skip=skip or [],
        verify=verify,
    )
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed must be at least 0 and less than 2^63 (got {seed})", where=_WHERE)
    if not inputs:
        raise ConfigError("nothing to mix", where=_WHERE, hint="draft mix a.safetensors:0.7 b.safetensors:0.3")
    blocks, terms = parse_blocks(block or [], [parse_input(text) for text in inputs])
    settings = replace(settings, blocks=blocks)
    target = Path(output_name(terms)) if output is None else usable(output)
    stage = None
    if sweep is not None:
        paths = [path for path, _ in terms]
        stage = _plan_sweep(sweep, model, prompt or [], paths, target, force=force, dry_run=dry_run)
    elif model or prompt:
        raise ConfigError("--model and --prompt are for --sweep", where=_WHERE, hint="add --sweep 0:1:5")
    _check_files([path for path, _ in terms], target, overwrite=force or dry_run, format=format)

    # Only now: importing torch, and diffusers, takes longer than all the checks above.
    from draft.adapters.mixture import mix_files

    reader = None
    if verify == "full" and not dry_run:
        from draft.diffusion.families.peer_reader import read_as_diffusers as reader
    report = mix_files(terms, target, settings=settings, seed=seed, reader=reader, dry_run=dry_run, overwrite=force)
    if json:
        print(json_module.dumps(as_json(report, target, dry_run=dry_run), indent=2))
    else:
        print("\n".join(lines(report, target, method=method, dry_run=dry_run)))
    if stage is not None:
        _draw_sweep(stage, target, force=force, quiet=json)


def mix_settings(command: str, **values: Any) -> MixSettings:
    """Validate options as a pipeline validates the settings of those names.

    Args:
        command: The command, for errors.
        **values: Settings by name; what is left out has its default.

    Returns:
        The settings.

    Raises:
        ConfigErrors: Values are out of their bounds or none of the choices; all of them.
    """
    try:
        return TypeAdapter(MixSettings).validate_python(values)
    except ValidationError as error:
        errors = [_refusal(command, finding) for finding in error.errors()]
        raise (errors[0] if len(errors) == 1 else ConfigErrors(errors)) from None


def _refusal(command: str, finding: Any) -> DraftError:
    name, got = str(finding["loc"][0]), finding["input"]
    hint = typing.get_type_hints(MixSettings, include_extras=True)[name]
    words = choices(hint)
    # All bounds of the setting, not only the one that the value has crossed.
    wanted = f"one of {', '.join(words)}" if words else " and ".join(bounds(hint)) or expected(finding)
    number = f"{got:g}" if isinstance(got, float) else shown(got)
    what = f"--{name.replace('_', '-')} must be {wanted} (got {number})"
    return ConfigError(what, where=command, hint=did_you_mean(str(got), words))


def _check_files(inputs: Sequence[Path], target: Path, *, overwrite: bool, format: str) -> None:
    for path in inputs:
        if not path.exists():
            raise ConfigError("no such adapter file", where=str(path))
        if writes_over(target, path):
            raise ConfigError("the output is also an input", where=str(target), hint="write to another file with -o")
    check_output(target, overwrite=overwrite, folder=is_folder(target, format), holds=(WEIGHTS, CONFIG))


def output_name(terms: Sequence[tuple[Path, Strength]]) -> str:
    """Name a mix after its inputs and weights.

    Args:
        terms: Paths and strengths.

    Returns:
        For example `a_0.7+b_0.3.safetensors`.
    """
    parts = [f"{path.stem or path.name}_{str(strength).replace(':', '_')}" for path, strength in terms]
    name = "+".join(parts)
    # File systems take 255 bytes; a mix of many is named by its first and its count.
    first = parts[0].encode()[:150].decode(errors="ignore")
    return f"{name if len(name.encode()) <= 200 else f'{first}+{len(parts) - 1}_more'}.safetensors"


def _plan_sweep(
    sweep: str, model: str, prompts: list[str], inputs: Sequence[Path], target: Path, *, force: bool, dry_run: bool
) -> dict[str, Any]:
    """A stage of kind `strip`, checked before anything is mixed, with the first input in place of the mix."""
    if dry_run:
        raise ConfigError("--sweep draws with the written mix, and --dry-run writes none", where=_WHERE)
    if not prompts:
        raise ConfigError("--sweep needs a prompt", where=_WHERE, hint='--prompt "a cat"')
    stage = strip_stage(
        inputs[:1],
        model=model,
        prompts=prompts,
        scales=parse_scales(sweep, option="--sweep"),
        scales_b=None,
        seeds=[0, 1, 2],
        rewards={},
        sampler={},
        device="auto",
    )
    check_stage(stage)
    check_target(_strip_folder(target), force=force)
    return stage


def _draw_sweep(stage: dict[str, Any], target: Path, *, force: bool, quiet: bool) -> None:
    stage = {**stage, "adapters": {"mix": {"from": str(target)}}}
    outputs, _ = write_strip(stage, _strip_folder(target), force=force, quiet=quiet)
    if not quiet:
        print(f"strip in {outputs['strip']}")


def _strip_folder(target: Path) -> Path:
    return target.with_name(f"{target.stem}_strip")
