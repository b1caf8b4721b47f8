"""Breaks a run at every change that it makes on the disk, one change at a time, and lets the same command go on.

    inject.py WORK FAULTS [--first OVERRIDE] [--every N] WORDS...

One process imports everything and forks for each run; the first one goes through and counts the changes. A run is
`draft WORDS... --runs-dir WORK/runs`; with --first it finds what the same command with that override has left there.
The faults, separated by commas, take turns; each run dies of one. Prints one line of JSON for each.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2}


class Points:
    """Counts the changes under a folder, and breaks the process at one of them."""

    def __init__(self, root: Path, fault: str, at: int, seen: Callable[[str], None]) -> None:
        self.root, self.fault, self.at, self.seen = str(root), fault, at, seen
        self.count = 0
        self.full = False

    def install(self) -> None:
        """Watch this process from now on; there is no way back."""
        sys.addaudithook(self._audit)
        opened = io.open
        io.open = builtins.open = lambda file, mode="r", *args, **kwargs: self._open(  # type: ignore[assignment]
            opened, file, mode, *args, **kwargs
        )
        shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]

    def pass_by(self, what: str, path: Any) -> None:
        """A change is about to be made."""
        number, self.count = self.count, self.count + 1
        self.seen(f"{what} {os.path.relpath(path, self.root)}")
        if number == self.at:
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "interrupt":
                signal.raise_signal(signal.SIGINT)
            self.full = self.fault == "full"
            if self.full and what != "write":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if self._inside(path) and (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                self.pass_by("open", path)
        elif event in _CHANGES and any(self._inside(path) for path in args[: _CHANGES[event]]):
            self.pass_by(event.removeprefix("os."), args[0])

    def _inside(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.root)

    def _open(self, opened: Any, file: Any, mode: str, *args: Any, **kwargs: Any) -> Any:
        if not self._inside(file) or not set(mode) & set("wax+"):
            return opened(file, mode, *args, **kwargs)
        raw = _Counted(file, mode.replace("b", "").replace("t", ""))
        raw.points = self
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        names = ("buffering", "encoding", "errors", "newline")
        text = {**dict(zip(names, args, strict=False)), **kwargs}
        text.pop("buffering", None)
        return io.TextIOWrapper(buffered, **text)


class _Counted(io.FileIO):
    points: Points

    def write(self, data: Any) -> int:
        self.points.pass_by("write", self.name)
        if self.points.full:
            with contextlib.suppress(OSError):
                super().write(bytes(data)[: len(data) // 2])  # what still fitted
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as from the system, without the file's name
        return super().write(data)


def fork(work: Callable[[], None]) -> int:
    """Do something in a twin of this process; returns its exit code, or minus the signal that ended it."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(words: list[str], outputs: Path, points: Points | None) -> int:
    """Run `draft` with its output in two files, from the state in which this process is."""

    def run() -> None:
        for number, name in ((1, "out"), (2, "err")):
            stream = os.open(outputs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["draft", *words]
        if points is not None:
            points.install()
        from draft_cli.start import main

        main()

    return fork(run)


def here(words: list[str]) -> None:
    """Run `draft` in this process, so that its twins have what it imports and keeps."""
    import torch

    from draft_cli.app import main as run

    torch.set_num_threads(1)
    sys.argv = ["draft", *words]
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
        try:
            run()
        except SystemExit as end:
            code = end.code
    assert not code


def contents(folder: Path) -> dict[str, str]:
    """Every file of a run and its digest; "" where it holds times."""
    timed = (".json", ".jsonl", ".ckpt")
    return {
        str(file.relative_to(folder)): "" if file.suffix in timed else hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def updates(run: Path) -> int:
    """The updates that a training has logged, wherever its folder is by now."""
    files = [run / name / "metrics.jsonl" for name in ("train.partial", "train")]
    return next((file.read_text().count("\n") for file in files if file.exists()), 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("faults")
    parser.add_argument("--first")
    parser.add_argument("--every", type=int, default=1)
    options, words = parser.parse_known_args()
    faults = options.faults.split(",")
    work: Path = options.work.resolve()
    runs, before, outputs = work / "runs", work / "before", work / "output"
    words += ["--runs-dir", str(runs)]
    run = runs / "small"

    def restore() -> None:
        shutil.rmtree(runs, ignore_errors=True)
        if before.is_dir():
            shutil.copytree(before, runs)

    def said(name: str) -> str:
        return (outputs / name).read_text()

    outputs.mkdir(parents=True, exist_ok=True)
    restore()
    if options.first:
        here([*words, options.first])
        runs.rename(before)
        restore()
    here(words)
    # A twin has one thread: what waits for one of a library would wait for ever. Python's own begin anew there.
    assert not os.path.isdir("/proc/self/task") or len(os.listdir("/proc/self/task")) == threading.active_count()
    expected = contents(run)
    restore()
    seen = outputs / "seen"
    with seen.open("w", buffering=1) as log:
        code = command(words, outputs, Points(runs, "none", -1, lambda text: print(text, file=log)))
    assert code == 0, said("err")
    assert contents(run) == expected, "two runs differ"
    places = seen.read_text().splitlines()
    for number in range(0, len(places), options.every):
        place, fault = places[number], faults[number // options.every % len(faults)]
        restore()
        code = command(words, outputs, Points(runs, fault, number, lambda text: None))
        first = said("err")
        made = updates(run)
        again = command(words, outputs, None)
        resumed = re.search(r"going on after update (\d+)", said("out"))
        kept = made if "train: reused" in said("out") else int(resumed[1]) if resumed else 0
        got = contents(run)
        line = {
            "point": number,
            "place": place,
            "fault": fault,
            "code": code,
            "err": first,
            "again": again,
            "again_err": said("err"),
            "made": made,
            "lost": made - kept,
            "differs": sorted(name for name in {*expected, *got} if expected.get(name) != got.get(name)),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
