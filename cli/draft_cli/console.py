"""How the command line speaks: results on standard output, errors with place and hint on standard error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from draft.errors import ConfigErrors, DraftError, PluginWarning


def print_error(error: DraftError, stream: TextIO | None = None) -> None:
    """Print an error, or all of several, each as ``error: WHERE: WHAT`` with its hint below.

    Args:
        error: What went wrong.
        stream: Where to; None: standard error.
    """
    out = sys.stderr if stream is None else stream
    for each in error.errors if isinstance(error, ConfigErrors) else [error]:
        print(f"error: {each}", file=out)
    print_notes(error, out)


def print_notes(error: BaseException, stream: TextIO | None = None) -> None:
    """Print what was added to an error on its way up: how to go on."""
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr if stream is None else stream)


def plain_warnings() -> None:
    """Let Draft's warnings about plugins appear as one line, without the source line that raised them."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, PluginWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def rows(pairs: Sequence[tuple[str, str]]) -> str:
    """Two columns, the first as wide as its widest cell."""
    width = max((len(first) for first, _ in pairs), default=0)
    return "\n".join(f"  {first:<{width}}  {second}".rstrip() for first, second in pairs)
