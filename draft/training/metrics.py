"""metrics.jsonl: one line per update. Checkpoints hold the lines too, so that a damaged file is written again."""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from draft.errors import DraftWarning
from draft.files import write_text
from draft.progress import Progress


@dataclass(frozen=True)
class MetricsLog:
    """The file of a training in progress and its lines.

    Args:
        path: The file.
        lines: What it holds, one line per update, without their ends.
    """

    path: Path
    lines: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, float]]:
        """The lines as figures by name."""
        rows = [json.loads(line) for line in self.lines]
        return [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]

    def packed(self) -> Tensor:
        """The lines for a checkpoint: compressed, uint8."""
        return torch.frombuffer(bytearray(zlib.compress("\n".join(self.lines).encode(), 1)), dtype=torch.uint8)


def append_metrics(log: MetricsLog, row: Mapping[str, float]) -> None:
    """Add one line."""
    # JSON has no word for what is not finite, and not every reader takes Python's.
    log.lines.append(json.dumps({key: value if math.isfinite(value) else None for key, value in row.items()}))
    with log.path.open("a", encoding="utf-8") as file:
        file.write(f"{log.lines[-1]}\n")


def unpacked(packed: Tensor | None) -> tuple[str, ...] | None:
    """The lines that a checkpoint holds; None where an earlier version wrote it, without them."""
    if packed is None:
        return None
    return tuple(zlib.decompress(packed.numpy().tobytes()).decode().splitlines())


def open_log(
    path: Path, step: int, lines: Sequence[str] | None, *, needs: Collection[str], progress: Progress
) -> MetricsLog:
    """Cut the file back to where a training goes on; what is damaged or missing there is restored.

    Args:
        path: The file; may be missing.
        step: Updates that the training has made.
        lines: The lines up to there as its checkpoint has them; None: it has none, so the file's own count.
        needs: The figures that every line must have.
        progress: Hears whether the file was damaged.

    Returns:
        The file with exactly those lines, ready for the next. Where the checkpoint has none and the file lacks some of
        them, a warning says how many.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if lines is None:
        lines = _intact(text, step, needs)
        if len(lines) < step:
            warnings.warn(
                f"{path} has intact lines of {len(lines)} of the {step} updates made before; the others are lost, "
                "and do not count in the training's closing figures",
                DraftWarning,
                stacklevel=2,
            )
    elif text.splitlines()[: len(lines)] != list(lines):
        progress.say(f"{path.name} was damaged; its lines up to update {step} are restored from the checkpoint")
    write_text(path, "".join(f"{line}\n" for line in lines))
    return MetricsLog(path, list(lines))


def _intact(text: str, step: int, needs: Collection[str]) -> list[str]:
    """The lines of the updates up to `step` that can be read, in order, each update once."""
    lines, update = [], 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict) or not all(isinstance(row.get(key), int | float) for key in needs):
            continue
        if update < row["step"] <= step and not math.isnan(row["step"]):
            lines.append(line)
            update = row["step"]
    return lines
