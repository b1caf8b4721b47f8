"""`draft mix a.safetensors:0.7 b.safetensors:0.3`: the exact sum of adapter files."""

from __future__ import annotations

import json as json_module
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draft.errors import ConfigError

if TYPE_CHECKING:
    from draft.adapters.mixture import MixReport

FORMATS = ("auto", "kohya", "diffusers", "peft")
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf)", re.IGNORECASE)


def mix_command(
    inputs: list[str], *, output: Path | None = None, format: str = "auto", force: bool = False, json: bool = False
) -> None:
    """Mix adapter files with weights into one file and print what came out.

    Args:
        inputs: `path` or `path:weight`; a weight is a strength, negative and above 1 allowed, 1 by default.
        output: The file to write; None names it after the inputs and weights, in the current folder.
        format: Key format of the file, one of `FORMATS`.
        force: Overwrite a file that is there.
        json: Print one JSON object instead of lines.

    Raises:
        DraftError: Anything about the inputs, the output or the numbers that the user can mend.
    """
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)} (got {format!r})", where="draft mix")
    if not inputs:
        raise ConfigError("nothing to mix", where="draft mix", hint="draft mix a.safetensors:0.7 b.safetensors:0.3")
    terms = [parse_input(text) for text in inputs]
    target = Path(output_name(terms)) if output is None else Path(output).expanduser()
    for path, _ in terms:
        if not path.exists():
            raise ConfigError("no such adapter file", where=str(path))
        if target.resolve() == path.resolve():
            raise ConfigError("the output is also an input", where=str(target), hint="write to another file with -o")
    if target.exists() and not force:
        raise ConfigError(
            "the output is already there", where=str(target), hint="add --force to overwrite it, or -o OTHER"
        )

    # Only now: importing torch takes longer than all the checks above.
    from draft.adapters.mixture import mix_files

    report = mix_files(terms, target, format=format)  # type: ignore[arg-type]
    if json:
        print(json_module.dumps(_as_json(report, terms, target), indent=2))
        return
    for (path, weight), (modules, ranks) in zip(terms, report.inputs, strict=True):
        print(f"{weight:+g} x {path}  ({_count(modules)}, {_ranks(ranks)})")
    print(f"wrote {target}  ({_count(report.modules)}, {_ranks(report.ranks)}, {report.dtype}, {_size(target)})")
    print(f"read back: largest relative error {report.error:.1e}")


def parse_input(text: str) -> tuple[Path, float]:
    """Split `path:weight` at the last colon, if a number follows it.

    Args:
        text: For example `a.safetensors:0.7`, `a.safetensors`, or `C:\\x.safetensors:-0.5`.

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
    return Path(path).expanduser(), weight


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


def _count(modules: int) -> str:
    return f"{modules} module{'' if modules == 1 else 's'}"


def _ranks(ranks: dict[int, int]) -> str:
    if len(ranks) == 1:
        return f"rank {next(iter(ranks))}"
    return "ranks " + ", ".join(f"{rank} ({count})" for rank, count in ranks.items())


def _size(path: Path) -> str:
    files = [path] if path.is_file() else list(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _as_json(report: MixReport, terms: Sequence[tuple[Path, float]], target: Path) -> dict[str, Any]:
    return {
        "output": str(target),
        "inputs": [
            {"path": str(path), "weight": weight, "modules": modules, "ranks": ranks}
            for (path, weight), (modules, ranks) in zip(terms, report.inputs, strict=True)
        ],
        "modules": report.modules,
        "ranks": report.ranks,
        "dtype": report.dtype,
        "largest_relative_error": report.error,
        "worst_module": report.worst,
    }
