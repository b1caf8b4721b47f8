"""One run at a time per folder: a lock that the operating system drops when its process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from draft.errors import StageError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process.

    Args:
        folder: An existing folder.

    Yields:
        Nothing; the lock lasts as long as the block.

    Raises:
        StageError: Another process holds it.
    """
    with (folder / ".lock").open("a+b") as stream:
        try:
            _take(stream.fileno())
        except OSError:
            raise StageError(
                f"another run is writing to {str(folder)!r}",
                hint="wait for it, or give this one another --runs-dir",
            ) from None
        yield


if os.name == "nt":
    import msvcrt

    def _take(number: int) -> None:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:
    import fcntl

    def _take(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
