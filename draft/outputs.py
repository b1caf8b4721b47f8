"""Files and folders that a user names: written where others may write too, by one process at a time. No torch."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from draft.errors import ConfigError, StageError
from draft.files import usable
from draft.writing import ASIDE, is_temporary, kind_of, put, refuse_irregular, remove, temporary_name

_LOCK = ".partial.lock"
_OTHER = "add --force to overwrite it, or -o OTHER"


def check_output(path: Path, *, overwrite: bool, folder: bool = False, holds: tuple[str, ...] = ()) -> None:
    """Refuse what cannot be written, before anything is computed.

    Args:
        path: The file or folder to write.
        overwrite: Whether one that is there may be replaced.
        folder: Whether a folder is to be written.
        holds: Names of which a folder that is replaced has at least one, unless it is empty; none: whatever it has.

    Raises:
        DraftError: The path has no name or cannot be used, something else is there, or it may not be replaced.
    """
    if path.name in ("", ".."):
        what = "a folder needs a name" if folder else "a file needs a name"
        raise ConfigError(f"{what} (got {str(path)!r})", hint="-o NAME")
    usable(path)
    try:
        there = os.path.lexists(path)
        if there:
            os.stat(path)
    except FileNotFoundError:  # a link to nothing, which is replaced
        pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"the path cannot be used: {reason}", where=str(path)) from None
    refuse_irregular(path, folder=folder)
    if there and not overwrite:
        raise ConfigError("the output is already there", where=str(path), hint=_OTHER)
    if there and folder and holds:
        names = os.listdir(path)
        if names and not set(holds) & set(names):
            raise ConfigError("the folder holds no adapter, so that it is not replaced", where=str(path), hint=_OTHER)
    for parent in path.parents:
        if kind := kind_of(parent):
            if kind != "a folder":
                raise StageError(f"cannot write the file ({str(parent)!r} is {kind}, not a folder)", where=str(path))
            break


@contextmanager
def publish(path: Path, *, overwrite: bool = True, folder: bool = False, holds: tuple[str, ...] = ()) -> Iterator[Path]:
    """Write a file or folder where others may write: atomically, and by one process at a time.

    Whatever happens, `path` is what it was or complete. What killed processes were writing beside it is removed first.

    Args:
        path: The file or folder to write; the folder that holds it is made if need be.
        overwrite: Whether one that is there, or comes to be there in the meantime, may be replaced.
        folder: Whether the block makes a folder.
        holds: As in `check_output`.

    Yields:
        The temporary path, which does not exist yet and is removed if the block fails; it ends with `.safetensors` if
        `path` does.

    Raises:
        DraftError: As from `check_output`, or another process is writing to `path`.
        OSError: The disk refuses.
    """
    check_output(path, overwrite=overwrite, folder=folder, holds=holds)
    if is_temporary(path):  # the caller writes as one what this is a part of
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    number = int(hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8], 16)
    partial = path.with_name(temporary_name(path, number))
    lock = path.with_name(f"{partial.name.rpartition('.partial')[0]}{_LOCK}")
    held = _lock(lock)
    if held is None:
        raise StageError("another process is writing to it", where=str(path), hint="wait for it, or write elsewhere")
    try:
        _clear(lock, path.name)
        os.write(held, os.fsencode(path.name))
        remove_dead(path.parent)
        check_output(path, overwrite=overwrite, folder=folder, holds=holds)
        yield partial
        put(partial, path, overwrite=overwrite)
    except FileExistsError as error:
        if overwrite:
            raise
        raise ConfigError("the output is already there by now", where=str(path), hint=_OTHER) from error
    except OSError as error:
        if error.filename in (None, str(partial)):  # a full disk does not name the file
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        remove(partial)
        _release(held, lock)


def remove_dead(folder: Path) -> None:
    """Remove what processes that were killed have left of `publish`; what a live one writes is locked and stays.

    Args:
        folder: Where to look; what lies deeper is left alone.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.endswith(_LOCK) and entry.is_file(follow_symlinks=False):
                lock = Path(entry.path)
                with suppress(OSError):
                    if (held := _lock(lock, make=False)) is not None:
                        try:
                            _clear(lock, os.fsdecode(os.read(held, 1024)))
                        finally:
                            _release(held, lock)


def _clear(lock: Path, name: str) -> None:
    """Remove what was being written under a lock that is held now; a folder that was put aside gets its name again."""
    base = lock.name.removesuffix(".lock")
    aside = lock.with_name(f"{base}{ASIDE}")
    target = lock.with_name(name) if name and os.sep not in name and name not in (".", "..") else None
    if target is not None and os.path.isdir(aside) and not os.path.lexists(target):
        os.rename(aside, target)
    for entry in list(os.scandir(lock.parent)):
        if entry.name == base or (entry.name.startswith(f"{base}.") and entry.name != lock.name):
            remove(Path(entry.path))


def _lock(path: Path, *, make: bool = True) -> int | None:
    """Open and lock a file for as long as this process lives or holds it; None: another does, or nobody can tell."""
    flags = os.O_RDWR | (os.O_CREAT if make else 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        number = os.open(path, flags, 0o666)
        if not _take(number, otherwise=make):
            os.close(number)
            return None
        # Whoever held it may have removed it since it was opened: then it is no lock any more.
        if os.path.exists(path) and os.path.samestat(os.fstat(number), os.stat(path)):
            return number
        os.close(number)


def _take(number: int, *, otherwise: bool) -> bool:
    """Lock an open file; the answer on a disk without locks is `otherwise`."""
    try:
        import fcntl  # Windows has none
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        return otherwise
    return True


def _release(number: int, path: Path) -> None:
    with suppress(OSError):
        path.unlink()  # while it is held, so that nobody takes it and finds it gone
    os.close(number)
    with suppress(OSError):  # Windows removes no open file
        path.unlink(missing_ok=True) if os.name == "nt" else None
