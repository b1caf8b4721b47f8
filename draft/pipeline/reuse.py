"""Whether what a finished stage has made can be used again, gone on from, or written again from its last state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draft.pipeline.cache import StageRecord, damage
from draft.pipeline.identity import differences, lengths, settled
from draft.pipeline.kinds.kind import CheckedStage
from draft.pipeline.partial import holds_checkpoints
from draft.pipeline.references import parse_reference


@dataclass(frozen=True, kw_only=True)
class Past:
    """What there is of a stage, and what it is to be.

    Args:
        stage: The stage.
        folder: Where its results are.
        current: Everything that its result depends on.
        records: The records of all stages of the pipeline.
        again: The stages it refers to that run again.
        content: Whether the sha256 of every file is compared, not only where size or time differ.
    """

    stage: CheckedStage
    folder: Path
    current: Mapping[str, Any]
    records: Mapping[str, StageRecord | None]
    again: tuple[str, ...] = ()
    content: bool = False

    @property
    def record(self) -> StageRecord | None:
        """The stage's own record."""
        return self.records[self.stage.name]

    @property
    def fits(self) -> bool:
        """Whether the finished stage depends on the same as it does now."""
        return self.record is not None and settled(self.record.identity, self.stage) == self.current


def reasons_to_run(past: Past) -> list[str]:
    """Why a stage must run; nothing where its results can be used again."""
    record, reasons = past.record, []
    if record is None:
        reasons.append("has not run" if not past.folder.exists() else "no usable record")
    elif (before := settled(record.identity, past.stage)) != past.current:
        reasons += differences(before, past.current) or ["fingerprint changed"]
    elif broken := _damage(past, record):
        reasons.append(broken)
    elif not past.again and (moved := _moved(past, record)):
        reasons.append(f"upstream changed: {moved}")
    if past.again and not any(reason.startswith("upstream changed") for reason in reasons):
        reasons.append(f"upstream runs: {', '.join(past.again)}")
    return reasons


def lengthened(past: Past) -> dict[str, tuple[Any, Any]]:
    """How much further a finished stage is to go, if it can go on from what it has made: setting to both values."""
    record = past.record
    changed = lengths(settled(record.identity, past.stage), past.current, past.stage) if record is not None else {}
    if record is None or any(old is None or new is None or new < old for old, new in changed.values()):
        return {}
    usable = changed and not past.again and holds_checkpoints(past.folder)
    return changed if usable and not _damage(past, record) and not _moved(past, record) else {}


def can_mend(past: Past) -> bool:
    """Whether damage to its results is all that is wrong with a finished stage, and its last state can mend it."""
    record = past.record
    if record is None or record.branch or past.again or not past.fits or not _damage(past, record):
        return False
    return any(holds_checkpoints(past.folder / name) for name in past.stage.kind.carries)


def lost_byproduct(past: Past) -> str:
    """What is wrong with what a finished stage has left besides its results, in words."""
    return damage(past.record, past.folder, content=past.content, names=_byproducts(past)) if past.record else ""


def _damage(past: Past, record: StageRecord) -> str:
    """What is wrong with a stage's results, if it is something that is made again."""
    is_byproduct = _byproducts(past)
    return damage(record, past.folder, content=past.content, names=lambda name: not is_byproduct(name))


def _byproducts(past: Past) -> Callable[[str], bool]:
    return past.stage.kind.byproducts.__contains__


def _moved(past: Past, record: StageRecord) -> str:
    """The first input whose content is no longer what the stage saw."""
    for text, digest in record.inputs.items():
        reference = parse_reference(text)
        source = past.records.get(reference.stage) if reference else None
        if reference and (source is None or source.digest(reference.output) != digest):
            return f"{reference.stage}.{reference.output}"
    return ""
