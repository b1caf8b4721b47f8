"""The state of a training on disk: written whole or not at all, checked before it is believed."""

from __future__ import annotations

import hashlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from draft.errors import DraftWarning
from draft.files import replace

_MAGIC = b"draft-checkpoint-1 "


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write a checkpoint atomically and remove old ones.

    The file is the SHA-256 of the rest, then torch's own format.

    Args:
        folder: Folder of checkpoints, made if missing.
        step: Updates made.
        state: Tensors, numbers, strings, and lists and mappings of them.
        keep: How many of the newest checkpoints stay.

    Returns:
        The checkpoint's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"step": step, **state}, buffer)
    payload = buffer.getvalue()
    path = folder / f"step-{step:08d}.ckpt"
    with replace(path) as partial:
        partial.write_bytes(_MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
    for old in _checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(folder: Path, *, identity: str) -> dict[str, Any] | None:
    """Read the newest intact checkpoint of this training.

    Args:
        folder: Folder of checkpoints; may be missing.
        identity: What the training is; a checkpoint of another one is passed over with a warning.

    Returns:
        The state with its `step`, or None.
    """
    for path in reversed(_checkpoints(folder)):
        state = _read(path)
        if state is None:
            warnings.warn(f"checkpoint {path} is damaged; going back to the one before", DraftWarning, stacklevel=2)
        elif state.get("identity") != identity:
            warnings.warn(f"checkpoint {path} belongs to other settings and is not used", DraftWarning, stacklevel=2)
        else:
            return state
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a finished training."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> dict[str, Any] | None:
    content = path.read_bytes()
    head, _, payload = content.partition(b"\n")
    if head != _MAGIC + hashlib.sha256(payload).hexdigest().encode():
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.ckpt"))
