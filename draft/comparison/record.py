"""What a training of a comparison came to, as a value and as a file in its folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from draft.errors import DraftWarning
from draft.files import write_text


@dataclass(frozen=True, kw_only=True)
class Point:
    """What proper samples scored at one moment of a training.

    Args:
        spending: Axis to what was spent by then: updates, evaluations, seconds.
        figures: Mean score by label, and `reward`, the weighted sum.
    """

    spending: Mapping[str, float]
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """One training, as far as it came.

    Args:
        rate: Its learning rate.
        seed: Its seed.
        curve: Points on training prompts, in order.
        spent: Axis to where it stood when that budget was spent; without those that it never spent.
        spending: What it spent in all.
        memory: The most memory that its updates took beyond what was held before it, bytes; None: unknown.
        failure: Why it broke off; empty where it did not.
    """

    rate: float
    seed: int
    curve: tuple[Point, ...] = ()
    spent: Mapping[str, Point] = field(default_factory=dict)
    spending: Mapping[str, float] = field(default_factory=dict)
    memory: int | None = None
    failure: str = ""


def write_training_record(run: TrainingRecord, file: Path) -> None:
    """Write what a training came to; the file is complete at every moment, the old one or the new one.

    Args:
        run: The training.
        file: Where; its folder exists.
    """
    write_text(file, json.dumps(asdict(run), indent=1) + "\n")


def read_training_record(file: Path) -> TrainingRecord | None:
    """Read what a training came to.

    Args:
        file: As `write_training_record` wrote it.

    Returns:
        The training; None where there is no such file, or a damaged one, which a warning names.
    """
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        curve = tuple(Point(**point) for point in data.pop("curve"))
        spent = {axis: Point(**point) for axis, point in data.pop("spent").items()}
        return TrainingRecord(curve=curve, spent=spent, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        warnings.warn(f"{file} is damaged; its training begins again", DraftWarning, stacklevel=2)
        return None
