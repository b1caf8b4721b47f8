"""Folders of results that are complete or not there: written next to their place, synced to the disk, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from draft.writing import sync

OLD = ".old"
"""The name of a result while the new one takes its place."""
GONE = ".gone"
"""The name of a folder while it is deleted."""


def publish(partial: Path, final: Path, *, keep: Path | None = None) -> None:
    """Give a finished folder its name. At every moment the name is an old whole folder, a new one, or nothing.

    Args:
        partial: The finished folder.
        final: Its name; what has that name is replaced: of a link the link, never what it points at.
        keep: The name that the replaced folder gets; None: it is deleted.
    """
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    old = keep or final.with_name(f"{final.name}{OLD}")
    if os.path.lexists(final):
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    if keep is None:
        remove(old)


def discard(folder: Path) -> None:
    """Delete a folder, or a link, so that at every moment its name is all of it or nothing."""
    gone = folder.with_name(f"{folder.name}{GONE}")
    remove(gone)
    folder.rename(gone)
    remove(gone)


def settle(final: Path, *, others: Iterable[Path] = ()) -> None:
    """Mend what a crash between two renames has left, and delete what it was about to delete.

    Args:
        final: The name of a result.
        others: Folders beside it that `discard` may have been interrupted at.
    """
    old = final.with_name(f"{final.name}{OLD}")
    if os.path.lexists(old) and not os.path.lexists(final):
        old.rename(final)
    else:
        remove(old)
    for folder in others:
        remove(folder.with_name(f"{folder.name}{GONE}"))


def remove(path: Path) -> None:
    """Delete a folder, or whatever has its name; of a link the link alone. What cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        with suppress(OSError):
            path.unlink()
