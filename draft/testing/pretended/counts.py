"""What happened on a pretended accelerator, and which lines asked for it. Imports no torch."""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

_LIBRARIES = {
    "accelerate", "diffusers", "einops", "kornia", "numpy", "open_clip", "peft", "PIL", "pluggy", "pydantic",
    "safetensors", "scipy", "timm", "tokenizers", "torch", "torchvision", "transformers", *sys.stdlib_module_names,
}  # fmt: skip
"""Packages whose lines are not the ones to look at: whoever called them asked."""


class At(NamedTuple):
    """What was done, and the line that asked for it.

    Args:
        what: The operator's name, or a word for a move.
        line: ``"package/module.py:12 the line's text"``; ``"?"`` where no code but libraries' was on the way.
    """

    what: str
    line: str


@dataclass
class Counts:
    """What happened on the device so far. A copy is what happened until now; a difference is what happened since.

    Args:
        operators: By name, without views, which launch nothing.
        reads: Values that the host read, each time waiting for the device.
        copies: Tensors with a dimension or more that went from the host to the device.
        doubles: Results in float64, which not every device has.
    """

    operators: Counter[str] = field(default_factory=Counter)
    reads: Counter[At] = field(default_factory=Counter)
    copies: Counter[At] = field(default_factory=Counter)
    doubles: Counter[At] = field(default_factory=Counter)

    def copy(self) -> Counts:
        """The counts as they are now."""
        return Counts(self.operators.copy(), self.reads.copy(), self.copies.copy(), self.doubles.copy())

    def __sub__(self, earlier: Counts) -> Counts:
        """What was counted since an earlier copy."""
        return Counts(
            self.operators - earlier.operators,
            self.reads - earlier.reads,
            self.copies - earlier.copies,
            self.doubles - earlier.doubles,
        )

    def __str__(self) -> str:
        """A few lines for people: how often what was asked for, and where."""
        lines = [f"operators on the device: {self.operators.total()}"]
        for title, counted in (
            ("reads by the host", self.reads),
            ("copies to the device", self.copies),
            ("results in float64", self.doubles),
        ):
            lines.append(f"{title}: {counted.total()}")
            lines += [f"{number:6d}  {at.what:20s} {at.line}" for at, number in counted.most_common()]
        return "\n".join(lines)


def asking_line() -> str:
    """The innermost line on the way here that is neither a library's nor this package's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        package = module.partition(".")[0]
        if package not in _LIBRARIES and not module.startswith("draft.testing"):
            name = frame.f_code.co_filename
            text = linecache.getline(name, frame.f_lineno).strip()
            return f"{_short(name, package)}:{frame.f_lineno} {text}".rstrip()
        frame = frame.f_back
    return "?"


def _short(name: str, package: str) -> str:
    """A file's path from its package on, which is the same on every machine."""
    parts = Path(name).parts
    start = max((place for place, part in enumerate(parts) if part == package), default=len(parts) - 1)
    return "/".join(parts[start:])
