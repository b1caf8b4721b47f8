"""The standard streams: closed ones are replaced, and an error of one says which it is."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


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


def open_streams() -> None:
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


def flushed(code: Any) -> Any:
    """Flush standard output and standard error at the end of the process.

    Args:
        code: The exit code so far.

    Returns:
        The exit code, another one where output could not be written that nobody has complained of yet.
    """
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
