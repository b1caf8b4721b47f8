"""`draft mix a.safetensors:0.7 b.safetensors:0.3`: the exact sum of adapter files."""

from __future__ import annotations

import json as json_module
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draft.adapters.hub import local_path
from draft.adapters.settings import MixSettings, check_settings
from draft.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from draft.adapters.mixture import MixReport

CHOICES = {
    "method": ("exact", "ties", "dare", "magnitude"),
    "dtype": ("same", "fp32", "fp16", "bf16"),
    "format": ("auto", "kohya", "diffusers", "peft"),
    "verify": ("factors", "full"),
}
"""What the options that take a word may say."""

BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "rank": (lambda value: value >= 1, "at least 1"),
    "energy": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "max_error": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "density": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
}
"""What the options that take a number may be, and how to say so."""

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf)", re.IGNORECASE)


def mix_command(
    inputs: list[str],
    *,
    output: Path | None = None,
    rank: int | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    component: Sequence[str] = (),
    block: Sequence[str] = (),
    normalize: bool = False,
    method: str = "exact",
    density: float | None = None,
    seed: int = 0,
    dtype: str = "same",
    format: str = "auto",
    verify: str = "factors",
    dry_run: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Mix adapter files with weights into one file and print what came out.

    Args:
        inputs: `path` or `path:weight`; a weight is a strength, negative and above 1 allowed, 1 by default.
        output: The file to write; None names it after the inputs and weights, in the current folder.
        rank: The largest rank of a module.
        energy: Share of the squared singular values to keep in every module.
        max_error: Relative error over all modules together.
        component: `pattern=factor` for parts of the pipeline.
        block: `pattern=factor` for module paths.
        normalize: Divide the weights by their sum.
        method: One of `CHOICES["method"]`.
        density: Share of entries that a method other than `exact` keeps.
        seed: Of the method `dare`.
        dtype: Of the written factors, one of `CHOICES["dtype"]`.
        format: Key format of the file, one of `CHOICES["format"]`.
        verify: How the written file is checked, one of `CHOICES["verify"]`.
        dry_run: Print ranks, size and predicted error, and write nothing.
        force: Overwrite a file that is there.
        json: Print one JSON object instead of lines.

    Raises:
        DraftError: Anything about the inputs, the output or the numbers that the user can mend.
    """
    given = {"method": method, "dtype": dtype, "format": format, "verify": verify}
    bounds = {"rank": rank, "energy": energy, "max_error": max_error, "density": density}
    for name, value in given.items():
        if value not in CHOICES[name]:
            hint = did_you_mean(value, list(CHOICES[name]))
            listed = ", ".join(CHOICES[name])
            raise ConfigError(f"{name} must be one of {listed} (got {value!r})", where="draft mix", hint=hint)
    for name, (holds, bound) in BOUNDS.items():
        if (number := bounds[name]) is not None and not holds(number):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} must be {bound} (got {number:g})", where="draft mix")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed must be at least 0 and below 2^63 (got {seed})", where="draft mix")
    weights = {"components": parse_factors(component, "component"), "blocks": parse_factors(block, "block")}
    settings = MixSettings(**given, **bounds, **weights, normalize=normalize)  # type: ignore[arg-type]
    check_settings(settings)
    if not inputs:
        raise ConfigError("nothing to mix", where="draft mix", hint="draft mix a.safetensors:0.7 b.safetensors:0.3")
    terms = [parse_input(text) for text in inputs]
    target = Path(output_name(terms)) if output is None else Path(output).expanduser()
    for path, _ in terms:
        if not path.exists():
            raise ConfigError("no such adapter file", where=str(path))
        if target.resolve() == path.resolve():
            raise ConfigError("the output is also an input", where=str(target), hint="write to another file with -o")
    if target.exists() and not force and not dry_run:
        raise ConfigError(
            "the output is already there", where=str(target), hint="add --force to overwrite it, or -o OTHER"
        )

    # Only now: importing torch, and diffusers, takes longer than all the checks above.
    from draft.adapters.mixture import mix_files

    reader = None
    if verify == "full" and not dry_run:
        from draft.diffusion.families.lora_reader import read_as_diffusers as reader
    report = mix_files(terms, target, settings=settings, seed=seed, reader=reader, dry_run=dry_run)
    if json:
        print(json_module.dumps(_as_json(report, target, dry_run=dry_run), indent=2))
        return
    for line in _lines(report, target, method=method, dry_run=dry_run):
        print(line)


def parse_factors(texts: Sequence[str], option: str) -> dict[str, float]:
    """Split `pattern=factor` texts at their last equals sign.

    Args:
        texts: For example `up_blocks.*=0.5`.
        option: The option's name, for errors.

    Returns:
        Factor by pattern.

    Raises:
        ConfigError: No pattern, no finite number, or a pattern twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        pattern, _, number = text.rpartition("=")
        where = f"draft mix, --{option} {text!r}"
        if not pattern or not _NUMBER.fullmatch(number) or not math.isfinite(float(number)):
            raise ConfigError(
                f"a {option} needs a pattern and a number (got {text!r})",
                where="draft mix",
                hint=(f"--{option} '{'text_encoder*' if option == 'component' else 'up_blocks.*'}=0.5'"),
            )
        if pattern in found:
            raise ConfigError(f"the pattern {pattern!r} is there twice", where=where)
        found[pattern] = float(number)
    return found


def parse_input(text: str) -> tuple[Path, float]:
    """Split `path:weight` at the last colon, if a number follows it.

    Args:
        text: For example `a.safetensors:0.7`, `a.safetensors`, `C:\\x.safetensors:-0.5`, or an address on the hub,
            `hf://org/repo/file.safetensors@revision:0.5`, which is downloaded into its cache.

    Returns:
        The path and the weight, 1.0 where there is none.

    Raises:
        ConfigError: No path, or a weight that is no finite number.
    """
    head, _, tail = text.rpartition(":")
    if not head or not _NUMBER.fullmatch(tail):
        path, weight = text, 1.0
    else:
        path, weight = head, float(tail)
    if not path.strip():
        raise ConfigError(f"an input needs a path (got {text!r})", where="draft mix")
    if not math.isfinite(weight):
        raise ConfigError(f"a weight must be a finite number (got {tail})", where=f"draft mix, {text!r}")
    if path == text and head.endswith(".safetensors"):
        raise ConfigError(f"a weight must be a number (got {tail!r})", where=f"draft mix, {text!r}")
    return local_path(path), weight


def output_name(terms: Sequence[tuple[Path, float]]) -> str:
    """Name a mix after its inputs and weights.

    Args:
        terms: Paths and weights.

    Returns:
        For example `a_0.7+b_0.3.safetensors`.
    """
    parts = [f"{path.stem or path.name}_{weight:g}" for path, weight in terms]
    name = "+".join(parts)
    # File systems take 255 bytes; a mix of many is named by its first and its count.
    return f"{name if len(name.encode()) <= 200 else f'{parts[0][:150]}+{len(parts) - 1}_more'}.safetensors"


def _lines(report: MixReport, target: Path, *, method: str, dry_run: bool) -> Iterator[str]:
    for path, weight, modules, ranks in report.inputs:
        yield f"{weight:+g} x {path}  ({_count(modules)}, {_ranks(ranks)})"
    if report.dropped:
        parts = Counter(name.partition(".")[0] for name in report.dropped)
        listed = ", ".join(f"{count} of {part}" for part, count in sorted(parts.items()))
        yield f"left out: {_count(len(report.dropped))} ({listed})"
    if report.predicted is not None:
        against = "the exact sum" if method == "exact" else f"the dense {method} result"
        yield f"smaller rank: relative error {report.predicted:.3g} over all modules, against {against}"
    size = _size(report.size) if dry_run else _size(sum(file.stat().st_size for file in _files(target)))
    verb = "would write" if dry_run else "wrote"
    yield f"{verb} {target}  ({_count(report.modules)}, {_ranks(report.ranks)}, {report.dtype}, {size})"
    if report.error is not None:
        yield f"read back: largest relative error {report.error:.1e}"
        if report.predicted is not None and report.total is not None and method == "exact":
            yield f"read back: relative error {report.total:.3g} over all modules"
    if report.peer_error is not None:
        yield f"read by diffusers: largest relative error {report.peer_error:.1e}"


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.iterdir())


def _count(modules: int) -> str:
    return f"{modules} module{'' if modules == 1 else 's'}"


def _ranks(ranks: dict[int, int]) -> str:
    if len(ranks) == 1:
        return f"rank {next(iter(ranks))}"
    if len(ranks) > 6:
        return f"ranks {min(ranks)} to {max(ranks)}"
    return "ranks " + ", ".join(f"{rank} ({count})" for rank, count in ranks.items())


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _as_json(report: MixReport, target: Path, *, dry_run: bool) -> dict[str, Any]:
    return {
        "output": str(target),
        "written": not dry_run,
        "inputs": [
            {"path": str(path), "weight": weight, "modules": modules, "ranks": ranks}
            for path, weight, modules, ranks in report.inputs
        ],
        "modules": report.modules,
        "left_out": list(report.dropped),
        "ranks": report.ranks,
        "dtype": report.dtype,
        "bytes_of_factors": report.size,
        "predicted_relative_error": report.predicted,
        "relative_error": report.total,
        "largest_relative_error": report.error,
        "worst_module": report.worst,
        "largest_relative_error_in_diffusers": report.peer_error,
    }
