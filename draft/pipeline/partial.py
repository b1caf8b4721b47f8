"""A stage that has begun: what its folder records, and the names of folders that keep what does not fit any more."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from draft.files import write_text
from draft.marks import Inert
from draft.pipeline.fields import walk
from draft.pipeline.kinds.kind import CheckedStage
from draft.pipeline.resolve import masked

PARTIAL = ".partial"
"""How the name of the folder ends that a stage writes to until it is done."""
KEPT = ".kept-"
"""What comes before the number of a folder that nothing touches any more."""
BEGINNING = ".beginning"
"""How the name of a partial folder ends until it holds all that its stage begins with."""
_BEGUN = "begun.json"


@dataclass(frozen=True)
class Begun:
    """The content of `begun.json` in the folder of a stage that has begun.

    Args:
        fingerprint: The sha256 of `identity`.
        identity: Everything that the result depends on.
        inert: The settings that it began with and that decide about rounding alone, by dotted key.
        changes: How those have changed since, one line for each.
        branch: The sha256 of the checkpoint of another run that it began at; empty: it did not.
    """

    fingerprint: str
    identity: Mapping[str, Any] = field(default_factory=dict)
    inert: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    branch: str = ""


def read_begun(folder: Path) -> Begun | None:
    """Read which stage has begun in a folder; None where there is no record that can be read."""
    try:
        data = json.loads((folder / _BEGUN).read_text(encoding="utf-8"))
        begun = Begun(**{**data, "changes": tuple(data.get("changes", ()))})
        return begun if isinstance(begun.identity, dict) and isinstance(begun.inert, dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not ours or damaged: it cannot be continued


def write_begun(folder: Path, begun: Begun) -> None:
    """Record in a folder which stage has begun there."""
    write_text(folder / _BEGUN, json.dumps(asdict(begun), indent=1) + "\n")


def remove_begun(folder: Path) -> None:
    """Remove the record from the folder of a stage that is done, which has its name by now."""
    (folder / _BEGUN).unlink(missing_ok=True)


def is_begun(folder: Path) -> bool:
    """Whether a folder holds such a record: a finished stage's does where a crash came before the last steps."""
    return (folder / _BEGUN).is_file()


def holds_work(folder: Path) -> bool:
    """Whether a stage that has begun has written anything that would be lost with its folder."""
    return any(path.name != _BEGUN and path.is_file() for path in folder.rglob("*"))


def holds_checkpoints(folder: Path) -> bool:
    """Whether there are states of a training in a folder."""
    return any(folder.rglob("*.ckpt"))


def kept_folders(final: Path) -> list[Path]:
    """What was moved aside of a stage, the newest first."""
    folders = final.parent.glob(f"{final.name}{KEPT}*")
    return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)


def kept_name(final: Path, taken: Collection[str] = ()) -> str:
    """A free name for what is moved aside.

    Args:
        final: The stage's folder.
        taken: Names that are not free although nothing is there yet.

    Returns:
        The name of a folder next to it.
    """
    number = 1
    while (name := f"{final.name}{KEPT}{number}") in taken or final.with_name(name).exists():
        number += 1
    return name


def inert_settings(stage: CheckedStage) -> dict[str, Any]:
    """The settings of a stage that decide about rounding alone, by dotted key."""
    config = stage.config
    settings = {
        ".".join(map(str, place.keys)): place.value
        for place in walk(type(config), config)
        if (mark := place.mark(Inert)) and mark.rounding
    }
    entered = {".".join(map(str, keys)): keys for keys in stage.environment}
    settings = {key: masked(value, stage.environment, entered.get(key, ())) for key, value in settings.items()}
    return json.loads(json.dumps(settings))


def inert_changes(begun: Begun, stage: CheckedStage) -> tuple[str, ...]:
    """How the settings that decide about rounding alone are other than when a stage began: ``"device auto -> cpu"``."""
    return tuple(
        f"{key} {json.dumps(begun.inert[key])} -> {json.dumps(value)}"
        for key, value in inert_settings(stage).items()
        if key in begun.inert and begun.inert[key] != value
    )
