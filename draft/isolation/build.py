"""Making the environment of an isolated reward: `python -m venv`, then pip, once for each set of requirements."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from draft import processes
from draft.errors import ResourceError, StageError
from draft.isolation.environment import FINISHED, child_variables, draft_requirement, environment_folder, interpreter
from draft.isolation.failures import IsolatedError, last_lines
from draft.isolation.settings import Isolation
from draft.rewards.discovery import DISTRIBUTION

_UNREACHED = re.compile(
    r"NewConnectionError|NameResolutionError|name resolution|Name or service not known|Network is unreachable|"
    r"Connection refused|ConnectTimeout|Read timed out|ProxyError|getaddrinfo failed"
)


def build_environment(isolation: Isolation, *, where: str, say: Callable[[str], None]) -> Path:
    """Make the environment of an isolation's `requirements`, or find the one that was made before.

    Args:
        isolation: With absolute paths.
        where: The place of `isolated`, for errors.
        say: Told that an environment is made, which takes minutes.

    Returns:
        Its Python.

    Raises:
        IsolatedError: pip refuses; its last lines are shown.
        ResourceError: pip cannot reach a package index.
    """
    folder = environment_folder(isolation)
    python, place = interpreter(folder), f"{where}.requirements"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(
            f"cannot make environments in {str(folder.parent)!r}: {error.strerror}",
            where=place,
            hint="set DRAFT_CACHE to a folder that can be written to",
        ) from None
    with _alone(folder) as lock:
        if (folder / FINISHED).is_file() and python.exists():
            return python
        say(f"{where}: making its environment, which may take minutes, once; it stays in {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        _call([sys.executable, "-m", "venv", str(folder)], Path.cwd(), lock, "an environment", place)
        pip = [
            str(python),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
        ]
        requirements, start = isolation.requirements, Path.cwd()
        if isinstance(requirements, str):
            # A requirements file's relative paths are meant from where it lies.
            requirements, start = ("--requirement", requirements), Path(requirements).parent
        _call([*pip, *draft_requirement(), *(requirements or ())], start, lock, "the requirements", place)
        record = {"requirements": isolation.requirements, "draft": draft_requirement(), "python": sys.version}
        (folder / FINISHED).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return python


def _call(command: Sequence[str], start: Path, lock: int, subject: str, where: str) -> None:
    # pip inherits the lock: should this process be killed, nobody begins anew before pip has gone, too.
    done = subprocess.run(
        command, cwd=start, env=child_variables(), **processes.passed_on(lock),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode == 0:
        return
    wrong = [line for line in last_lines(done.stdout, 200) if line.startswith("ERROR:")]
    if _UNREACHED.search(done.stdout):
        raise ResourceError(
            f"pip cannot reach a package index ({wrong[-1] if wrong else 'no answer'})",
            needs="a connection the first time; a made environment needs none",
            where=where,
            hint="name local wheels, set PIP_FIND_LINKS, or make an environment elsewhere and name it as 'python'",
        )
    hint = "fix the requirements, or create an environment by hand and name it as 'python'"
    if f"No matching distribution found for {DISTRIBUTION}" in done.stdout:
        hint = f"{DISTRIBUTION} is on no index that pip asks: set PIP_FIND_LINKS to a folder with its wheel"
    raise IsolatedError(
        f"{subject} could not be installed (exit code {done.returncode})",
        wrote=done.stdout,
        where=where,
        hint=hint,
    )


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Wait until no other process makes this environment; the operating system drops the lock of one that dies."""
    # Not draft.files.locked: pip must inherit the open file that holds the lock.
    with folder.with_name(f"{folder.name}.lock").open("a+b") as stream:
        processes.hold(stream.fileno())
        yield stream.fileno()
