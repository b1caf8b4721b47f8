"""Where the command `draft` begins: Ctrl-C and closed streams are dealt with before anything large is imported."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

_ONE_WISH = 1.0
"""Seconds within which further presses of Ctrl-C mean the same as the one before."""


class Interrupts:
    """What Ctrl-C does: it ends a command that has not begun at once, and one that has begun in order.

    Several presses in a row are one, so that the later ones cannot interrupt the way out.
    """

    def __init__(self) -> None:
        self.begun = False
        """Whether there may be something to put in order; before, half an import would only break libraries."""
        self.raised = False
        """Whether an interrupt was raised; a library may have made another exception of it."""
        self._last = float("-inf")

    def listen(self) -> None:
        """Hear Ctrl-C, where the shell does not have its background jobs ignore it."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self.begun:
            os.write(2, b"interrupted\n")
            os._exit(130)
        before, self._last = self._last, time.monotonic()
        if self._last - before > _ONE_WISH:
            self.raised = True
            raise KeyboardInterrupt


interrupts = Interrupts()


def main() -> None:
    """Run the command line to the end of this process; the one place that changes what belongs to the process."""
    _open_streams()
    interrupts.listen()
    code: Any = 0
    try:
        from draft_cli.app import main as run

        run()
    except SystemExit as end:
        code = end.code
    finally:
        # The interpreter still waits for threads, and calls what wanted to be called at the end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(_flushed(code))


class StandardStream(io.FileIO):
    """A standard stream, which names itself where it refuses; closing it leaves its number open.

    Args:
        number: Its number.
        name: What it is called.
    """

    def __init__(self, number: int, name: str) -> None:
        super().__init__(number, "w", closefd=False)
        self._title = name

    def write(self, data: Any) -> int:
        """Write bytes."""
        try:
            return super().write(data)
        except OSError as error:
            error.stream = self._title  # type: ignore[attr-defined]
            raise


def _open_streams() -> None:
    """Give a closed standard stream the null device, before a file that is opened gets its number and its output.

    The open ones get a name for errors.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if (stream := getattr(sys, name)) is None:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
            raw = io.BufferedReader(io.FileIO(0)) if number == 0 else io.BufferedWriter(io.FileIO(number, "w"))
            setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", errors="replace"))
        elif number and not stream.isatty():  # a terminal always takes it, and Windows has a way of its own there
            stream.flush()
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    io.BufferedWriter(StandardStream(number, f"standard {'output' if number == 1 else 'error'}")),
                    encoding=stream.encoding,
                    errors=stream.errors,
                    line_buffering=stream.line_buffering or stream.write_through,
                ),
            )


def _flushed(code: Any) -> Any:
    """The exit code, another one where output could not be written that nobody has complained of yet."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            broken = isinstance(error, BrokenPipeError)
            if number == 1 and not code and not broken:
                os.write(2, f"error: standard output cannot be written to: {error.strerror}\n".encode())
            code = code or (1 if broken else 2)
            # What could not be written stays in the buffer, and the interpreter would complain of it once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return code
