"""What is written gets its name when it is complete: the steps of an atomic write. No torch."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from pathlib import Path

from draft.errors import StageError

ASIDE = ".old"
"""The suffix of a folder that is about to be replaced."""

TEMPORARY = re.compile(r"\..+\.\d+\.partial(\.[^.]*)?")
"""The name of something that is being written; `temporary_name` makes them."""

_LONGEST_SUFFIX = 20


def kind_of(path: Path) -> str:
    """What is at a path, through links: `a file`, `a folder`, `a pipe`, `a device`, `a socket`; empty: nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def refuse_irregular(path: Path, *, folder: bool = False) -> None:
    """Refuse to replace what is neither a file nor nothing: a device would be gone, a folder with all that it holds.

    Args:
        path: Where something is to be written; a link counts as what it leads to.
        folder: Whether a folder is to be written.

    Raises:
        StageError: Something else is there.
    """
    there, wanted = kind_of(path), "a folder" if folder else "a file"
    if there not in ("", wanted):
        raise StageError(f"the output is {there}, which {wanted} cannot replace", where=str(path))


def temporary_name(path: Path, number: int) -> str:
    """What a file or folder is called while it is written.

    Args:
        path: What it will be.
        number: Whose it is, at least 0.

    Returns:
        A name that every file system takes, with the suffix of `path` unless that is long.
    """
    suffix = path.suffix if len(path.suffix.encode()) <= _LONGEST_SUFFIX else ""
    return f".{path.stem[:50]}.{number}.partial{suffix}"


def is_temporary(path: Path) -> bool:
    """Whether a path is one under which something is written that will be renamed, or in such a folder."""
    return any(TEMPORARY.fullmatch(name) for name in (path.name, path.parent.name))


def put(partial: Path, path: Path, *, overwrite: bool = True) -> None:
    """Give what was written its name, at once and on the disk.

    Args:
        partial: A file or folder, complete.
        path: Its name. A folder that is there is replaced as one, and what only it holds is taken along.
        overwrite: Whether something may be there.

    Raises:
        StageError: What is there is no regular file, or no folder.
        FileExistsError: Something is there and may not be replaced.
        OSError: The disk refuses.
    """
    if partial.is_dir():
        _put_folder(partial, path, overwrite=overwrite)
    else:
        refuse_irregular(path)
        sync(partial)
        if overwrite:
            os.replace(partial, path)
        else:
            _put_first(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Push a file, or a folder's list of names, to the disk."""
    windows = os.name == "nt"
    if path.is_symlink() or (windows and path.is_dir()):
        return
    # Windows syncs only what is open for writing.
    number = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _put_folder(partial: Path, path: Path, *, overwrite: bool) -> None:
    refuse_irregular(path, folder=True)
    path = Path(os.path.realpath(path))
    for file in sorted(partial.iterdir()):
        sync(file)
    sync(partial)
    if not path.exists():
        os.rename(partial, path)
        return
    if not overwrite:
        raise _exists(path)
    for old in sorted(path.iterdir()):
        if old.is_dir() and not os.path.lexists(partial / old.name):
            shutil.copytree(old, partial / old.name, symlinks=True)
        elif not os.path.lexists(partial / old.name):
            shutil.copy2(old, partial / old.name, follow_symlinks=False)
    # Two names change: whoever comes in between, or after a crash, finds the old folder beside it.
    aside = partial.with_name(f"{partial.name.rpartition('.partial')[0]}.partial{ASIDE}")
    os.rename(path, aside)
    try:
        os.rename(partial, path)
    except BaseException:
        os.rename(aside, path)
        raise
    sync(path.parent)
    remove(aside)


def _put_first(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)  # unlike a rename it never replaces
    except FileExistsError:
        raise
    except OSError:
        # A disk without links: nobody else may come in between who does not look first.
        if os.path.lexists(path):
            raise _exists(path) from None
        os.rename(partial, path)
    else:
        partial.unlink()


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
