"""What a long job tells the person who waits: a bar with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """The reporter that every long job gets."""

    def say(self, text: str) -> None:
        """Print one permanent line."""
        ...

    def start(self, label: str, total: int, *, done: int = 0) -> None:
        """Begin a counter of `total` steps, `done` of which an earlier run has made."""
        ...

    def advance(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Count `count` more steps; `values` are the newest figures by name."""
        ...

    def stop(self) -> None:
        """End the counter; without one it does nothing."""
        ...


class Silent:
    """A reporter that says nothing, for tests and for use as a library."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def start(self, label: str, total: int, *, done: int = 0) -> None:
        """Show nothing."""

    def advance(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""


class Lines:
    """A reporter for logs and pipes: whole lines, never a carriage return.

    A counter's line comes with its first step, its last one, and in between when `seconds` have passed or a tenth
    of the steps is made, whichever is later, so that neither a fast nor a slow job floods the log.

    Args:
        stream: Where the lines go.
        seconds: Least time between two lines of a counter, seconds.
        clock: The time in seconds; tests give their own.
    """

    def __init__(self, stream: TextIO, *, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._seconds = seconds
        self._clock = clock
        self._label = ""
        self._total = 0
        self._begun = self._done = self._shown = 0
        self._started = self._last = 0.0

    def say(self, text: str) -> None:
        """Print one line at once."""
        print(text, file=self._stream, flush=True)

    def start(self, label: str, total: int, *, done: int = 0) -> None:
        """Begin a counter."""
        self._label, self._total = label, total
        self._begun = self._done = done
        self._shown = -total
        self._started, self._last = self._clock(), float("-inf")

    def advance(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Count steps and print a line where one is due."""
        self._done += count
        now = self._clock()
        due = now - self._last >= self._seconds and (self._done - self._shown) * 10 >= self._total
        overdue = now - self._last >= 12 * self._seconds
        if not (due or overdue or self._done >= self._total):
            return
        self._last, self._shown = now, self._done
        advanced = self._done - self._begun
        figures = "".join(f"  {name} {value:.4g}" for name, value in (values or {}).items())
        left = (now - self._started) / advanced * (self._total - self._done) if advanced > 0 else 0.0
        eta = f"  {duration(left)} left" if 0 < self._done < self._total else f"  {duration(now - self._started)}"
        self.say(f"{self._label}: {self._done}/{self._total}{figures}{eta}")

    def stop(self) -> None:
        """End the counter."""
        self._label, self._total = "", 0


class Bar:
    """A reporter for terminals: rich's progress bar with an ETA; lines stay above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None
        self._task: Any = None

    def say(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, label: str, total: int, *, done: int = 0) -> None:
        """Show a bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.stop()
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Console(file=self._stream),
        )
        self._task = self._bar.add_task(label, total=total, completed=done, figures="")
        self._bar.start()

    def advance(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Move the bar on."""
        if self._bar is None:
            return
        self._bar.advance(self._task, count)
        if values:
            self._bar.update(self._task, figures="  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def stop(self) -> None:
        """Leave the bar as it is and free the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def progress(stream: TextIO | None = None) -> Progress:
    """The reporter that suits a stream: a bar on a terminal, lines elsewhere.

    Args:
        stream: Where to report; None: standard output.

    Returns:
        A `Bar` or `Lines`.
    """
    chosen = sys.stdout if stream is None else stream
    return Bar(chosen) if chosen.isatty() else Lines(chosen)


def duration(seconds: float) -> str:
    """A span of time as people say it: ``"42 s"``, ``"3 min 05 s"``, ``"2 h 10 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
