"""What `draft mix` prints: lines, or one JSON object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draft.errors import presentable

if TYPE_CHECKING:
    from draft.adapters.mixture import MixReport
    from draft.adapters.skipped import Skipped


def lines(report: MixReport, target: Path, *, method: str, dry_run: bool) -> Iterator[str]:
    """Describe a mix to a person.

    Args:
        report: The mix.
        target: Its file.
        method: How its inputs were thinned out.
        dry_run: Whether nothing was written.

    Yields:
        A line each for every input, for what was left out, for the file and for its errors.
    """
    for (path, weight, modules, ranks), strength in zip(report.inputs, report.strengths, strict=True):
        of_text = "" if strength.text_encoder is None else f", text encoders {strength.text_encoder:+g}"
        blocks = "".join(f", {pattern} times {factor:g}" for pattern, factor in strength.blocks.items())
        yield f"{weight:+g} x {path}  ({_count(modules)}, {_ranks(ranks)}{of_text}{blocks})"
    yield from skipped_lines(report.skipped)
    if report.dropped:
        parts = Counter(name.partition(".")[0] for name in report.dropped)
        listed = ", ".join(f"{count} of {part}" for part, count in sorted(parts.items()))
        yield f"left out: {_count(len(report.dropped))} ({listed})"
    if report.predicted is not None:
        against = "the exact sum" if method == "exact" else f"the dense {method} result"
        yield f"smaller rank: relative error {report.predicted:.3g} over all modules, against {against}"
    verb, size = "would write" if dry_run else "wrote", _size(report.file_size)
    yield f"{verb} {target}  ({_count(report.modules)}, {_ranks(report.ranks)}, {report.dtype}, {size})"
    if report.error is not None:
        yield f"read back: largest relative error {report.error:.2e}"
        if report.predicted is not None and report.total is not None:
            yield f"read back: relative error {report.total:.3g} over all modules"
    if report.peer_error is not None:
        yield f"read by diffusers: largest relative error {report.peer_error:.2e}"


def skipped_lines(skipped: Sequence[tuple[Path, Skipped]]) -> Iterator[str]:
    """Name every tensor that was left out because it cannot be read."""
    for path, each in skipped:
        yield presentable(f"skipped: {each.tensor} of {path}  ({each.reason})")


def skipped_json(skipped: Sequence[tuple[Path, Skipped]]) -> list[dict[str, str]]:
    """The same for a program."""
    return [{"path": str(path), "tensor": each.tensor, "reason": each.reason} for path, each in skipped]


def _count(modules: int) -> str:
    return f"{modules} module{'' if modules == 1 else 's'}"


def _ranks(ranks: Mapping[int, int] | Mapping[int | str, int]) -> str:
    """Ranks with their counts, and forms that have none, such as LoKr, with theirs."""
    numbers = {rank: count for rank, count in ranks.items() if isinstance(rank, int)}
    forms = {form: count for form, count in ranks.items() if isinstance(form, str)}
    listed = [form if len(ranks) == 1 else f"{form} ({count})" for form, count in forms.items()]
    if len(ranks) == len(numbers) == 1:
        listed.append(f"rank {next(iter(numbers))}")
    elif len(numbers) > 6:
        listed.append(f"ranks {min(numbers)} to {max(numbers)}")
    elif numbers:
        counts = ", ".join(f"{rank} ({count})" for rank, count in numbers.items())
        listed.append(f"{'rank' if len(numbers) == 1 else 'ranks'} {counts}")
    return ", ".join(listed)


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def as_json(report: MixReport, target: Path, *, dry_run: bool) -> dict[str, Any]:
    """Describe a mix to a program.

    Args:
        report: The mix.
        target: Its file.
        dry_run: Whether nothing was written.

    Returns:
        Plain values; `predicted_relative_error` is that of a smaller rank.
    """
    return {
        "output": str(target),
        "written": not dry_run,
        "inputs": [
            {
                "path": str(path),
                "weight": weight,
                "text_encoder": strength.text_encoder,
                "blocks": dict(strength.blocks),
                "modules": modules,
                "ranks": ranks,
            }
            for (path, weight, modules, ranks), strength in zip(report.inputs, report.strengths, strict=True)
        ],
        "modules": report.modules,
        "left_out": list(report.dropped),
        "skipped": skipped_json(report.skipped),
        "ranks": report.ranks,
        "dtype": report.dtype,
        "bytes": report.file_size,
        "bytes_of_factors": report.size,
        "predicted_relative_error": report.predicted,
        "relative_error": report.total,
        "largest_relative_error": report.error,
        "worst_module": report.worst,
        "largest_relative_error_in_diffusers": report.peer_error,
    }
