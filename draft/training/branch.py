"""Checkpoints by their files' names, and a training that branches from one of another training. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from draft.errors import StageError
from draft.files import sha256

FOLDER = "checkpoints"
"""Where checkpoints are in a training's folder."""


@dataclass(frozen=True)
class Branch:
    """A training that begins at a checkpoint of another one, with other settings.

    Args:
        checkpoint: The file.
        metrics: That training's metrics.jsonl, whose lines up to the checkpoint are copied; None: none are.
    """

    checkpoint: Path
    metrics: Path | None = None

    @classmethod
    def at(cls, checkpoint: Path) -> Branch:
        """The branch at a checkpoint in a training's folder, with the metrics that lie there."""
        near = (checkpoint.with_name("metrics.jsonl"), checkpoint.parent.with_name("metrics.jsonl"))
        return cls(checkpoint, next((path for path in near if path.is_file()), None))

    def digest(self) -> str:
        """The sha256 of the checkpoint."""
        return sha256(self.checkpoint)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; none where it is missing."""
    return sorted(folder.glob("step-*.ckpt"))


def update_of(path: Path) -> int:
    """The updates made before a checkpoint was written, by its file's name."""
    return int(path.stem.removeprefix("step-"))


def remove_superseded(folder: Path, *, keep_final: bool) -> None:
    """Remove the checkpoints of a finished training; only once its adapter is where nothing takes it away again.

    Args:
        folder: Folder of checkpoints; may be missing.
        keep_final: Whether the last one stays, so that a longer training can go on from it.
    """
    files = checkpoints(folder)
    for path in files[:-1] if keep_final else files:
        path.unlink(missing_ok=True)
    if not keep_final:
        shutil.rmtree(folder, ignore_errors=True)


def find_checkpoint(folders: Iterable[Path], update: int) -> Path:
    """Find the checkpoint after a number of updates, to branch from.

    Args:
        folders: Folders with checkpoints in them, however deep; the preferred first.
        update: Updates made.

    Returns:
        Its path.

    Raises:
        StageError: There is none after that many updates; the hint lists those that there are.
    """
    files = [path for folder in folders for path in sorted(folder.rglob("step-*.ckpt"))]
    for path in files:
        if update_of(path) == update:
            return path
    updates = sorted({update_of(path) for path in files})
    raise StageError(
        f"there is no checkpoint after update {update}",
        hint=f"there are some after {', '.join(map(str, updates))}"
        if updates
        else "set checkpoint.every in the training",
    )
