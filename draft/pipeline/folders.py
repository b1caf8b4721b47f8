"""Folders of results that are complete or not there: written next to their place, synced to the disk, renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from draft.files import sync

OLD = ".old"
"""The name of a result while the new one takes its place."""
GONE = ".gone"
"""The name of a folder while it is deleted."""


def publish(partial: Path, final: Path, *, keep: Path | None = None) -> None:
    """Give a finished folder its name. At every moment the name is an old whole folder, a new one, or nothing.

    Args:
        partial: The finished folder.
        final: Its name; a folder of that name is replaced.
        keep: The name that the replaced folder gets; None: it is deleted.
    """
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    old = keep or final.with_name(f"{final.name}{OLD}")
    if final.exists():
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    if keep is None:
        shutil.rmtree(old, ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a folder so that at every moment its name is the whole folder or nothing."""
    gone = folder.with_name(f"{folder.name}{GONE}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def settle(final: Path, *, others: Iterable[Path] = ()) -> None:
    """Mend what a crash between two renames has left, and delete what it was about to delete.

    Args:
        final: The name of a result.
        others: Folders beside it that `discard` may have been interrupted at.
    """
    old = final.with_name(f"{final.name}{OLD}")
    if old.exists() and not final.exists():
        old.rename(final)
    elif old.exists():
        shutil.rmtree(old)
    for folder in others:
        shutil.rmtree(folder.with_name(f"{folder.name}{GONE}"), ignore_errors=True)
