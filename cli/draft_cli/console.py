"""How the command line speaks: results on standard output, errors with place and hint on standard error."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from draft.errors import ConfigErrors, DraftError, DraftWarning, RewardError, presentable
from draft.quiet import DOWNLOADS
from draft_cli.streams import StandardStream


def print_error(error: DraftError, stream: TextIO | None = None, *, traceback: bool = False) -> None:
    """Print an error, or all of several, each as ``error: WHERE: WHAT`` with its hint below.

    Args:
        error: What went wrong.
        stream: Where to; None: standard error.
        traceback: Print where it comes from, too.
    """
    if traceback:
        import traceback as tracebacks

        print_line("".join(tracebacks.format_exception(error)).rstrip(), stream)
    elif isinstance(error, RewardError) and error.__cause__ is not None and not error.hint:
        error.hint = "--traceback shows all of it"
    for problem in error.errors if isinstance(error, ConfigErrors) else [error]:
        print_line(f"error: {problem}", stream)
    print_notes(error, stream)


def print_notes(error: BaseException, stream: TextIO | None = None) -> None:
    """Print what was added to an error on its way up: how to go on."""
    for note in getattr(error, "__notes__", ()):
        print_line(f"  {note}", stream)


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print to standard error, or to `stream`; where that does not take it, the exit code has to do."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr if stream is None else stream, flush=True)


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
            print(f"warning: {presentable(str(message))}", file=sys.stderr)
        elif sys.warnoptions:
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show


@contextmanager
def keep_results_apart() -> Iterator[None]:
    """Keep standard output for what Python prints there; what C code and other programs write goes to standard error.

    Yields:
        Nothing.
    """
    before = sys.stdout
    try:
        before.flush()
        own, kept = before.fileno() == 1, os.dup(1)
        os.fstat(2)
    except (AttributeError, ValueError, OSError):  # one of them is closed, or no file
        own, kept = False, -1
    if not own:
        yield
        return
    try:
        os.dup2(2, 1)
        raw = io.BufferedWriter(StandardStream(kept, "standard output"))
        with io.TextIOWrapper(raw, encoding=before.encoding, errors=before.errors) as sys.stdout:
            yield
    finally:
        sys.stdout = before
        os.dup2(kept, 1)
        os.close(kept)


def rows(pairs: Sequence[tuple[str, str]]) -> str:
    """Two columns, the first as wide as its widest cell."""
    width = max((len(first) for first, _ in pairs), default=0)
    return "\n".join(f"  {first:<{width}}  {second}".rstrip() for first, second in pairs)
