"""Folders and files that are whole or not there: written beside, synced to the disk, renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

OLD = ".old"
"""The name of a result while the new one takes its place."""


def publish(partial: Path, final: Path) -> None:
    """Give a finished folder its name. At every moment the name is an old whole folder, a new one, or nothing.

    Args:
        partial: The finished folder.
        final: Its name; a folder of that name is replaced.
    """
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    old = final.with_name(f"{final.name}{OLD}")
    if final.exists():
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def settle(final: Path) -> None:
    """Mend what a crash between two renames has left."""
    old = final.with_name(f"{final.name}{OLD}")
    if old.exists() and not final.exists():
        old.rename(final)
    elif old.exists():
        shutil.rmtree(old)


def sync(path: Path) -> None:
    """Push a file or a folder's list of names to the disk."""
    if path.is_symlink() or (path.is_dir() and os.name == "nt"):
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it has its old content or the whole new one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    sync(new)
    new.replace(path)
