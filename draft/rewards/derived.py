"""Named models that are made on this machine from others, once, when they are first loaded."""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from pathlib import Path

from draft.errors import DraftError, PluginError
from draft.files import cache_folder, locked, sha256, write_text
from draft.rewards.calls import Called, brief, calling
from draft.rewards.hookspecs import NamedModel

RECORD = "draft.json"
"""The file in a derived model's folder that is written last: the digest of every other one."""


def place(path: Path) -> Path:
    """Where a derived model is or will be; a relative path starts at Draft's cache."""
    return cache_folder() / "models" / path


def ensure_derived(model: NamedModel) -> None:
    """Make a derived model if it has not been made yet or is damaged; several processes may do so at once.

    Args:
        model: A named model with `derive`, its path absolute.

    Raises:
        PluginError: It cannot be written.
    """
    folder, derive = model.path, model.derive
    if derive is None or _intact(folder):
        return
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(partial.with_suffix(".making"), timeout=-1):
            if _intact(folder):
                return
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir()
            with calling(
                Called(f"model {model.name!r}", lambda: [derive.__module__]), "being made", passing=BaseException
            ):
                derive(partial)
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            digests = {file.relative_to(partial).as_posix(): sha256(file) for file in files}
            write_text(partial / RECORD, json.dumps({"sha256": digests}, indent=1) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
    except OSError as error:
        raise PluginError(
            f"the model {model.name!r} cannot be made in {str(folder.parent)!r}: {error.strerror or error}",
            hint="set DRAFT_CACHE to a folder that can be written to",
        ) from error
    except (KeyboardInterrupt, DraftError, MemoryError):
        raise
    except BaseException as error:
        raise PluginError(f"the model {model.name!r} cannot be made: {brief(error)}") from error


def _intact(folder: Path) -> bool:
    try:
        digests = json.loads((folder / RECORD).read_text(encoding="utf-8"))["sha256"]
        return all(digest(folder / file) == expected for file, expected in digests.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def digest(file: Path) -> str:
    """The sha256 of a file; read again in this process only if it has changed.

    Args:
        file: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    state = file.stat()
    return _digest(file, state.st_mtime_ns, state.st_size)


@cache
def _digest(file: Path, modified: int, size: int) -> str:
    return sha256(file)
