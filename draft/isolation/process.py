"""The process of an isolated reward: started, asked, watched, and ended with all that it has started itself."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast

from draft import processes
from draft.errors import PluginError
from draft.isolation.environment import child_variables
from draft.isolation.failures import IsolatedError, decode_error, missing, raised
from draft.isolation.frames import PROTOCOL, Broken, receive, send
from draft.isolation.settings import Isolation

MODULE = "draft.isolation.worker"
Doing: TypeAlias = Literal[
    "starting", "checking its options", "loading", "measuring prompts", "scoring", "computing a gradient"
]

_LOOK = 0.25
"""Seconds between two looks whether a process that has not answered is alive."""
_TAIL_BYTES = 32 * 1024
"""Bytes of a process's output that are kept, the newest."""


class Worker:
    """A process with a reward in another environment. Whatever ends this one - the last reference, the interpreter's
    end, SIGKILL - ends that one, too, and its children: it leads a process group, and a watchman in it waits for us.

    Args:
        python: That environment's Python.
        name: The reward's name, for errors.
        where: Its place in the pipeline, for errors.
        isolation: How long it may take.
    """

    def __init__(self, python: Path, *, name: str, where: str, isolation: Isolation) -> None:
        self.name, self.where, self.python, self._isolation = name, where, python, isolation
        # -P: a folder `draft` where we stand must not hide the one that is installed there.
        try:
            self._process = processes.start([str(python), "-P", "-m", MODULE], env=child_variables())
        except OSError as error:
            what = f"cannot start {str(python)!r} for reward {name!r}: {error.strerror or error}"
            raise IsolatedError(what, where=where) from None
        self._tail = _Tail(self._process.stderr)
        self._turn = threading.Lock()
        self._finalizer = weakref.finalize(self, _end, self._process, os.getpid())
        hello, _ = self._exchange(None, b"", "starting")
        if hello.get("protocol") != PROTOCOL:
            self.end()
            raise PluginError(
                f"the Draft in the environment of reward {name!r} is {hello.get('draft')}, which this one does not "
                f"understand (protocol {hello.get('protocol')}, not {PROTOCOL})",
                where=where,
                hint=f"install the same version in both: {python} -m pip install -U draft-diffusion",
            )

    @property
    def pid(self) -> int:
        """The number of the process, and of the group that it leads."""
        return self._process.pid

    def ask(self, doing: Doing, request: Mapping[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytearray]:
        """Send a request and wait for its answer, as long as the isolation allows; then the process is killed.

        Args:
            doing: What this is called in errors; it also says which of the two limits counts.
            request: What to do, under `ask`, and with what.
            body: The bytes of the tensors that it describes.

        Returns:
            The answer and its bytes.

        Raises:
            IsolatedError: The process crashed or hangs, or the reward raised something that is no error of Draft's.
            DraftError: What the reward raised, as it raised it.
        """
        if not self._finalizer.alive:
            what = f"the process of reward {self.name!r} has ended"
            raise IsolatedError(what, where=self.where, hint="load the reward again")
        with self._turn:
            answer, payload = self._exchange(request, body, doing)
        if answer.get("answer") == "errors":
            raise decode_error(answer["errors"], where=self.where)
        if answer.get("answer") == "raised":
            raise raised(answer, name=self.name, where=self.where)
        return answer, payload

    def end(self) -> None:
        """End the process and its children; doing so twice does nothing."""
        self._finalizer()

    def _exchange(
        self, request: Mapping[str, Any] | None, body: bytes, doing: Doing
    ) -> tuple[dict[str, Any], bytearray]:
        process, box = self._process, []
        limit = "timeout" if doing in ("scoring", "computing a gradient") else "load_timeout"
        seconds = getattr(self._isolation, limit)
        # Writing may block as reading does, where the process does not read; so both happen beside the watch.
        pipes = cast("tuple[FileIO, FileIO]", (process.stdin, process.stdout))  # unbuffered
        thread = threading.Thread(target=_talk, args=(*pipes, request, body, box), daemon=True)
        deadline = time.monotonic() + seconds
        try:
            thread.start()
            while thread.is_alive() and process.poll() is None and time.monotonic() < deadline:
                thread.join(min(_LOOK, max(deadline - time.monotonic(), 0)))
            # The answer may be on its way: of a process that has just ended, or of one that slept as long as we did.
            thread.join(_LOOK)
            if not thread.is_alive() and box and isinstance(box[0], tuple):
                return box[0]
            raise self._failure(box[0] if box else None, doing, f"{limit}: {seconds:g}")
        except BaseException:
            # Ctrl-C, too: what the process would answer next belongs to a question nobody asks any more.
            self.end()
            raise

    def _failure(self, error: Exception | None, doing: Doing, limit: str) -> IsolatedError:
        process, name = self._process, self.name
        if error is not None:
            # The pipe closes a moment before the process is gone.
            processes.wait(process)
        code = process.poll()
        if code is None and error is None:
            processes.show_stack(process, _LOOK)
            option, _, seconds = limit.partition(": ")
            what = f"reward {name!r} did not answer within {seconds} s while {doing}, and was stopped"
            hint = f"if it only needs longer, raise isolated.{option}"
        elif code is None:
            what, hint = f"the process of reward {name!r} broke off while {doing}: {error}", ""
        elif code < 0:
            what = f"the process of reward {name!r} was ended by {processes.signal_name(-code)} while {doing}"
            hint = "nobody sends SIGKILL but a system without memory left, or a person" if code == -9 else ""
        else:
            reason = f": {error}" if isinstance(error, Broken) else ""
            what, hint = f"the process of reward {name!r} ended with exit code {code} while {doing}{reason}", ""
        wrote = self._tail.text()
        return IsolatedError(what, wrote=wrote, where=self.where, hint=missing(wrote, self.python) or hint)


class _Tail:
    """Keeps the newest of what a process writes, so that it never waits for a reader."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._kept = bytearray()
        self._thread = threading.Thread(target=_read, args=(stream, self._kept), daemon=True)
        self._thread.start()

    def text(self) -> str:
        # A child of the process may hold the pipe open, so nobody waits long for its end.
        self._thread.join(_LOOK)
        return bytes(self._kept).decode(errors="replace")


def _read(stream: IO[bytes], tail: bytearray) -> None:
    with stream:
        while chunk := os.read(stream.fileno(), 4096):
            tail += chunk
            del tail[:-_TAIL_BYTES]


def _talk(requests: FileIO, answers: FileIO, request: Mapping[str, Any] | None, body: bytes, box: list[Any]) -> None:
    try:
        if request is not None:
            send(requests, request, body)
        answer = receive(answers)
        box.append(EOFError("it closed its end") if answer is None else answer)
    except (OSError, ValueError, Broken) as error:  # ValueError: the pipe was closed on this side, or no JSON
        box.append(error)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a process group: its leader may clean up, then everybody in it is killed."""
    if os.getpid() != owner:
        return  # a fork of ours that comes to its end; the process is not its own
    try:
        processes.end(process)
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
