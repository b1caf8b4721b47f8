"""How the command line speaks: results on standard output, errors with place and hint on standard error."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from draft.errors import ConfigErrors, DraftError, DraftWarning
from draft.quiet import DOWNLOADS


def print_error(error: DraftError, stream: TextIO | None = None) -> None:
    """Print an error, or all of several, each as ``error: WHERE: WHAT`` with its hint below.

    Args:
        error: What went wrong.
        stream: Where to; None: standard error.
    """
    out = sys.stderr if stream is None else stream
    for problem in error.errors if isinstance(error, ConfigErrors) else [error]:
        print(f"error: {problem}", file=out)
    print_notes(error, out)


def print_notes(error: BaseException, stream: TextIO | None = None) -> None:
    """Print what was added to an error on its way up: how to go on."""
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr if stream is None else stream)


def quiet_libraries() -> None:
    """Show Draft's own warnings as one line each, and drop those of libraries, which are for developers.

    Python's `-W` and `PYTHONWARNINGS` bring the libraries' warnings back, `TRANSFORMERS_VERBOSITY` and
    `DIFFUSERS_VERBOSITY` their logs, `HF_HUB_DISABLE_PROGRESS_BARS=0` their progress bars. On a terminal those of
    downloads are shown anyway. Isolated rewards inherit all of it.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if DOWNLOADS not in os.environ:
        # Read when tqdm is imported. The hub's downloads decide themselves; the rest counts tensors, for a moment.
        os.environ.setdefault("TQDM_DISABLE", "1")
    if not sys.stderr.isatty():
        # Read when the hub's library is imported; it and transformers draw bars wherever standard error goes.
        os.environ.setdefault(DOWNLOADS, "1")
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, DraftWarning):
            print(f"warning: {message}", file=sys.stderr)
        elif sys.warnoptions:
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def rows(pairs: Sequence[tuple[str, str]]) -> str:
    """Two columns, the first as wide as its widest cell."""
    width = max((len(first) for first, _ in pairs), default=0)
    return "\n".join(f"  {first:<{width}}  {second}".rstrip() for first, second in pairs)
