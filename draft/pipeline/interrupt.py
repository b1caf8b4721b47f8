"""What stops a run on its way - errors, Ctrl-C, SIGTERM - and what it says about going on."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from draft.errors import DraftError

RUNS = Path("runs")
"""Where results go unless the person says otherwise."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); treated like Ctrl-C, exit code 143."""


def resume_command(file: str | Path, overrides: Sequence[str], *, runs_dir: Path, only: str | None) -> str:
    """The command that goes on where a run stopped, ready to paste into a shell.

    `--force`, `--from` and `--fresh` are left out: they would begin again.
    """
    words = ["draft", "run", str(file), *overrides]
    if Path(runs_dir) != RUNS:
        words += ["--runs-dir", str(runs_dir)]
    if only is not None:
        words += ["--only", only]
    return shlex.join(words)


@contextmanager
def noting(resume: str, stage: str) -> Iterator[None]:
    """Add the way to go on to whatever stops a stage."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, DraftError) and not error.where:
            error.where = f"stage {stage!r}"
        error.add_note(f"resume: {resume}")
        raise


@contextmanager
def sigterm() -> Iterator[None]:
    """Turn SIGTERM into `Terminated`, where this thread may."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
