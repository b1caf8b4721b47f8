"""One line on the terminal when somebody's code takes long: which reward is waited for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST = 10.0
"""Seconds after which a call is reported for the first time; then again when twice as long has passed."""
LOOK = 1.0
"""Seconds between two looks."""


@dataclass(eq=False)
class Wait:
    """A call that has begun.

    Args:
        what: Makes its name, e.g. ``"reward 'mine' (my-package 1.0) to load"``; called only where it is shown.
        began: When, on the monotonic clock.
        due: After how many seconds it is reported next.
    """

    what: Callable[[], str]
    began: float = field(default_factory=time.monotonic)
    due: float = field(default_factory=lambda: FIRST)


_open: list[Wait] = []
_watcher: threading.Thread | None = None


def begin(what: Callable[[], str]) -> Wait:
    """Watch a call from now on.

    Args:
        what: Makes the call's name.

    Returns:
        What `end` takes.
    """
    global _watcher
    wait = Wait(what)
    _open.append(wait)
    if _watcher is None or not _watcher.is_alive():
        # One for all calls, since a thread for each would cost more than many a reward does. It ends with the process.
        _watcher = threading.Thread(target=_watch, name="draft-waiting", daemon=True)
        _watcher.start()
    return wait


def end(wait: Wait) -> None:
    """Forget a call that has ended."""
    _open.remove(wait)


def _watch() -> None:
    while True:
        time.sleep(LOOK)
        for wait in _open[-1:]:  # the innermost: those around it wait for the same
            seconds = time.monotonic() - wait.began
            if seconds >= wait.due and sys.stderr is not None:
                wait.due = 2 * seconds
                print(f"waiting for {wait.what()}, {seconds:.0f} s so far", file=sys.stderr, flush=True)
