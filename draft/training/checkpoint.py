"""The state of a training on disk: written completely or not at all, checked before use, never deleted unasked."""

from __future__ import annotations

import hashlib
import io
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from draft.errors import DraftWarning
from draft.files import replace
from draft.training.branch import checkpoints
from draft.training.identity import Identity, differences

_MAGIC = b"draft-checkpoint-1 "


@dataclass(frozen=True)
class Checkpoint:
    """A state that a training can go on from.

    Args:
        path: The file.
        step: Updates made.
        state: What `save_checkpoint` was given.
        changes: Dotted key to the old and new value as JSON text: inert settings and lengths that differ now.
    """

    path: Path
    step: int
    state: Mapping[str, Any]
    changes: Mapping[str, tuple[str, str]]


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write a checkpoint atomically and remove old ones.

    The file is the SHA-256 of the rest, then torch's own format.

    Args:
        folder: Folder of checkpoints, made if missing in the training's.
        step: Updates made.
        state: Tensors, numbers, strings, and lists and mappings of them.
        keep: How many of the newest checkpoints stay.

    Returns:
        The checkpoint's path.
    """
    folder.mkdir(exist_ok=True)  # alone: a training whose folder was removed must not go on in half a one
    buffer = io.BytesIO()
    torch.save({"step": step, **state}, buffer)
    payload = buffer.getvalue()
    path = folder / f"step-{step:08d}.ckpt"
    with replace(path) as partial:
        partial.write_bytes(_MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(folder: Path, *, identity: Identity, max_steps: int) -> Checkpoint | None:
    """Read the newest intact checkpoint that this training can go on from; what does not fit is moved aside.

    Args:
        folder: Folder of checkpoints; may be missing.
        identity: What the training is.
        max_steps: Updates that it is to make; a checkpoint after more does not fit.

    Returns:
        The checkpoint, or None. Intact ones of another training, or after more updates, are then in `FOLDER.kept-N`
        next to the folder, and a warning names it.
    """
    fitting, unfit = None, []
    for path in reversed(checkpoints(folder)):
        state = read_checkpoint(path)
        if state is None:
            warnings.warn(f"checkpoint {path} is damaged; going back to the one before", DraftWarning, stacklevel=2)
            continue
        saved = Identity.restored(state.get("identity"))
        if saved is None or saved.decisive != identity.decisive or state["step"] > max_steps:
            unfit.append(path)
        elif fitting is None:
            changes = differences(saved.rounding, identity.rounding) | differences(saved.extends, identity.extends)
            fitting = Checkpoint(path, int(state["step"]), state, changes)
    if unfit:
        aside = _set_aside(unfit, folder)
        warnings.warn(
            f"checkpoints of other settings, or after more updates than max_steps, are kept in {aside}",
            DraftWarning,
            stacklevel=2,
        )
    return fitting


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read one file.

    Args:
        path: A checkpoint.

    Returns:
        Its state with its `step`; None where it is damaged.
    """
    content = path.read_bytes()
    head, _, payload = content.partition(b"\n")
    if head != _MAGIC + hashlib.sha256(payload).hexdigest().encode():
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def _set_aside(files: list[Path], folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.kept-{number}")).exists():
        number += 1
    aside.mkdir()
    for path in files:
        path.rename(aside / path.name)
    metrics = folder.with_name("metrics.jsonl")
    if metrics.is_file():  # its later lines go when the training goes on from an earlier update
        shutil.copy(metrics, aside / metrics.name)
    return aside
