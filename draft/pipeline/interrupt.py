"""What interrupts a run (errors, Ctrl-C, SIGTERM), and the message about resuming it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from draft.errors import DivergedError, DraftError, ResourceError, StageError, system_error
from draft.pipeline.partial import holds_work
from draft.processes import on_termination

RUNS = Path("runs")
"""Where results go by default."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); treated like Ctrl-C, exit code 143."""


def resume_command(
    file: str | Path,
    overrides: Sequence[str],
    *,
    runs_dir: Path,
    only: str | None,
    rehearse: bool = False,
    branch_from: str | None = None,
) -> str:
    """The command that goes on where a run stopped, ready to paste into a shell.

    `--force`, `--from` and `--fresh` are left out: they would begin again.
    """
    words = ["draft", "run", str(file), *overrides]
    if rehearse:
        words += ["--rehearse"]
    if Path(runs_dir) != RUNS:
        words += ["--runs-dir", str(runs_dir)]
    if only is not None:
        words += ["--only", only]
    if branch_from is not None:
        words += ["--branch-from", branch_from]
    return shlex.join(words)


def rehearse_command(file: str | Path, *, runs_dir: Path) -> str:
    """The command that runs a pipeline at small scale; without overrides, which are meant for its full size."""
    return resume_command(file, (), runs_dir=runs_dir, only=None, rehearse=True)


@contextmanager
def noting(
    resume: str,
    stage: str,
    folder: Path,
    *,
    branch: Callable[..., str],
    mended: Callable[..., str] | None = None,
    rehearsal: str = "",
) -> Iterator[None]:
    """Add the way to go on to whatever stops a stage, where running again can help.

    Args:
        resume: The command that goes on.
        stage: The stage.
        folder: Where it writes.
        branch: Makes the command that goes on with other settings, given `branch_from`, where a training diverged.
        mended: Makes the same with the same settings, where it was a reward that broke; None: as `branch`.
        rehearsal: The command to offer where this machine is too small for the stage; empty: none.

    Yields:
        Nothing; the stage runs inside the block.
    """
    try:
        yield
    except BaseException as raised:
        error = system_error(raised, folder) or raised
        if isinstance(error, DraftError) and not error.where:
            error.where = f"stage {stage!r}"
        refused = error is not raised or isinstance(error.__cause__, OSError)  # a full disk is full at any scale
        if isinstance(error, ResourceError) and rehearsal and not refused:
            offer = f"try the same pipeline at small scale now: {rehearsal}"
            error.hint = f"{error.hint}; or {offer}" if error.hint else offer
        if isinstance(error, DivergedError):  # the same command would only come here again
            point = f"{stage}:{error.checkpoint}"
            if error.checkpoint is not None and error.by_reward:
                error.add_note(f"branch, once the reward is mended: {(mended or branch)(branch_from=point)}")
            elif error.checkpoint is not None:
                error.add_note(f"branch: {branch(branch_from=point)}")
        elif _may_help(error, folder):
            error.add_note(f"resume: {resume}")
        if error is raised:
            raise
        raise error from raised


@contextmanager
def resumable(resume: str, folder: Path) -> Iterator[None]:
    """Add the way to go on to what the system refuses or a user stops between stages.

    Args:
        resume: The command that goes on.
        folder: The run's folder.

    Yields:
        Nothing; the run's work happens inside the block.

    Raises:
        ResourceError: The system refused something.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as raised:
        error = system_error(raised, folder) or raised
        noted = any(note.startswith(("resume: ", "branch: ")) for note in getattr(error, "__notes__", ()))
        if not noted and isinstance(error, ResourceError | KeyboardInterrupt):
            error.add_note(f"resume: {resume}")
        if error is raised:
            raise
        raise error from raised


def _may_help(error: BaseException, folder: Path) -> bool:
    """Whether running the same command again can help: not where the input is wrong and nothing has been done yet."""
    if isinstance(error, ResourceError) or not isinstance(error, DraftError):
        return True
    return isinstance(error, StageError) and not error.images and holds_work(folder)


@contextmanager
def sigterm() -> Iterator[None]:
    """Turn SIGTERM into `Terminated`, where this thread may."""

    def stop() -> None:
        raise Terminated

    with on_termination(stop):
        yield
