"""Files: written completely or not at all, digests, locks, and where Draft keeps what it can make again. No torch."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from draft.errors import ConfigError, ResourceError, StageError, system_error
from draft.writing import TEMPORARY, kind_of, put, remove, temporary_name

WEIGHTS = "adapter_model.safetensors"
"""The file with the numbers in a peft adapter folder."""

_LONGEST_NAME = 120
"""Bytes of a name; file systems take 255, and something may be put around it."""
_READ_COMPLETELY = 16 * 2**20
_BLOCKS = 64
_BLOCK = 64 * 2**10


def weights_file(path: Path) -> Path:
    """Find the file with an adapter's numbers.

    Args:
        path: A file, or a peft folder.

    Returns:
        The file itself, or the one in the folder; it need not exist.
    """
    return path / WEIGHTS if os.path.isdir(path) else path


def safe_name(label: str) -> str:
    """Make a folder name of a label: other characters than letters, digits, `.`, `-`, `_` become `_`.

    A long one is cut, with a digest of all of it at its end.

    Args:
        label: Any label.

    Returns:
        A name that every file system takes.
    """
    name = re.sub(r"[^\w.-]", "_", label).strip(".") or "_"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    start = name.encode()[: _LONGEST_NAME - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(label.encode(errors='replace')).hexdigest()[:8]}"


@contextmanager
def replace(path: Path) -> Iterator[Path]:
    """Write a file atomically: whatever happens, `path` holds its old content or the complete new one.

    The block writes to a temporary neighbour, which is then synced to the disk and renamed. If the block made a folder,
    it takes the place of the folder `path`, with what that holds besides.

    Args:
        path: The file or folder to write; the folder that holds it exists.

    Yields:
        The temporary path, with the suffix of `path`; it does not exist yet and is removed if the block fails.

    Raises:
        StageError: What is there is no regular file, and the block wrote one.
        OSError: The disk refuses.
    """
    # A thread's number is unique on its machine, so that neither threads nor processes write to one temporary file.
    partial = path.with_name(temporary_name(path, threading.get_native_id()))
    remove(partial)  # a killed process may have left one
    try:
        yield partial
        put(partial, path)
    except OSError as error:
        if error.filename in (None, str(partial)):  # a full disk does not name the file
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        remove(partial)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed in `replace` have left directly in a folder; nobody writes there now."""
    for path in folder.glob(".*.partial*"):
        if TEMPORARY.fullmatch(path.name):
            remove(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Args:
        path: The file; its folder exists.
        text: Its new content.
    """
    with replace(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sha256(path: Path, *, skip: int = 0) -> str:
    """Digest the content of a file or of a folder.

    A folder's digest is that of the lines "relative path NUL digest NUL" of all files in it, sorted by path.

    Args:
        path: The file or folder.
        skip: Bytes at the start of a file that are left out.

    Returns:
        64 hexadecimal digits.

    Raises:
        StageError: It is neither.
        OSError: It cannot be read.
    """
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("".join(f"{name}\0{sha256(path / name)}\0" for name in names).encode()).hexdigest()
    if (kind := kind_of(path)) not in ("", "a file"):  # a pipe would be waited for, a device has no end
        raise StageError(f"{kind}, not a file", where=str(path))
    with path.open("rb") as stream:
        stream.seek(skip)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_digest(path: Path) -> str:
    """A digest of a model's files that costs no more than a moment, however large they are.

    Names and sizes do not tell a retrained model from the old one. Files up to 16 MB are read whole, of a larger one
    64 blocks of 64 kB, spread evenly: a training changes nearly every weight.

    Args:
        path: A folder or a file; the folder of a file's name beside it, which may overrule parts of it, counts too.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    folder = path if path.is_dir() else path.with_suffix("")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files if path.is_dir() else [path, *files]:
        size = file.stat().st_size
        name = "" if file == path else file.relative_to(folder).as_posix()
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _READ_COMPLETELY:
                digest.update(stream.read())
                continue
            for index in range(_BLOCKS):
                stream.seek((size - _BLOCK) * index // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


@contextmanager
def locked(path: Path, *, timeout: float = 0, who: str = "process", hint: str = "wait for it") -> Iterator[None]:
    """Hold a file or a folder for this process; the operating system drops the lock when its process ends, however.

    Args:
        path: A folder, which then holds the file `.lock`, or a file, which gets a neighbour `NAME.lock`.
        timeout: How long to wait for another holder, seconds; negative: for as long as it takes.
        who: What another holder is, for the error.
        hint: What to do about it, for the error.

    Yields:
        Nothing; the lock lasts as long as the block.

    Raises:
        StageError: Another process holds it after `timeout`, or the disk has no locks.
    """
    # Here, as the process of an isolated reward has Draft and no filelock.
    from filelock import FileLock, Timeout

    lock = FileLock(path / ".lock" if path.is_dir() else path.with_name(f"{path.name}.lock"), timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise StageError(f"another {who} is writing to {str(path)!r}", hint=hint) from None
    except OSError as error:
        refused = system_error(error, path)
        needs = refused.needs if refused else "a disk with locks"
        raise ResourceError(f"cannot lock {str(path)!r} ({error.strerror or error})", needs=needs) from error
    try:
        yield
    finally:
        lock.release()


def cache_folder() -> Path:
    """Find where Draft keeps what it can make again.

    `DRAFT_CACHE`, else `draft` in the user's cache folder (`XDG_CACHE_HOME`, on Windows `LOCALAPPDATA`, else
    `~/.cache`), else, where that cannot be written to, a folder of this user's among the temporary files.

    Returns:
        An absolute path; only the temporary folder is made.
    """
    if chosen := os.environ.get("DRAFT_CACHE"):
        return absolute(Path.cwd(), chosen)
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else "") or ".cache"
    try:
        folder = absolute(Path.home(), base) / "draft"
    except RuntimeError:  # a user without a home
        return _temporary_folder()
    return folder if _writable(folder) else _temporary_folder()


def absolute(base: Path, path: str) -> Path:
    """Resolve a path that somebody wrote: `~` is their home, a relative one starts at `base`; links stay.

    Args:
        base: A folder.
        path: As written.

    Returns:
        An absolute path.
    """
    return Path(os.path.abspath(usable(path, base)))


def usable(path: str | Path, base: Path = Path()) -> Path:
    """A path that somebody wrote, with `~` as their home, if the system can look there.

    Args:
        path: As written.
        base: The folder in which a relative one starts.

    Returns:
        The path; whether anything is there is not looked at.

    Raises:
        ConfigError: There is no such user, a name is too long, or a folder on the way cannot be looked into.
    """
    try:
        expanded = base / Path(path).expanduser()
        # Existing or not: what the system refuses to look for is a mistake in the path.
        os.lstat(expanded)
    except (FileNotFoundError, NotADirectoryError):
        return expanded
    except RuntimeError:
        raise ConfigError(f"there is no home folder of that user (got {str(path)!r})", hint="write the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the path cannot be used: {reason.lower()} (got {str(path)!r})") from None
    return expanded


def _writable(folder: Path) -> bool:
    """Whether a folder, existing or not, can be written to."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


@cache
def _temporary_folder() -> Path:
    """A folder among the temporary files, the same one each time unless another user has taken its name."""
    user = os.getuid() if hasattr(os, "getuid") else None
    folder = Path(tempfile.gettempdir()) / ("draft" if user is None else f"draft-{user}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        state = folder.lstat()
        # What lies there is run and read back: nobody else may have put it there.
        shared = user is not None and (state.st_uid != user or state.st_mode & 0o022)
        if shared or not stat.S_ISDIR(state.st_mode):
            return Path(tempfile.mkdtemp(prefix="draft-"))
    return folder
