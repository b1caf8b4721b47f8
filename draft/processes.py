"""Processes, signals and locks on open files: the one place that knows which of them a system has. No torch."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from draft.errors import ConfigError

GROUPS = hasattr(os, "killpg")
"""Whether a process and all that it starts can be ended together by a number; Windows walks the tree instead."""

FORKS = hasattr(os, "fork") and hasattr(select, "poll")
"""Whether a process can leave a twin behind that watches a pipe."""

_GRACE = 2.0
"""Seconds for a process to clean up after itself before it is killed."""


def start(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that leads a group of its own and gets no Ctrl-C of ours, with unbuffered pipes.

    Args:
        command: The program and its arguments.
        env: Its environment variables; None: ours.

    Returns:
        The process; `end` ends it.

    Raises:
        OSError: It cannot be started.
    """
    return subprocess.Popen(
        command,
        env=env,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=GROUPS,
        creationflags=0 if GROUPS else getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def passed_on(number: int) -> dict[str, Any]:
    """Get the arguments of `subprocess.Popen` for a process that inherits an open file; on Windows none can."""
    return {} if os.name == "nt" else {"pass_fds": (number,)}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that `start` has started: it may clean up, then it and all that it started are killed.

    Args:
        process: The process; one that has ended may have left others.
    """
    try:
        if process.poll() is None:
            if GROUPS:
                process.terminate()
            elif process.stdin is not None:
                process.stdin.close()  # on Windows `terminate` kills at once; the end of its input is what it can see
            wait(process, _GRACE)
    finally:
        _kill(process)
        process.wait()


def wait(process: subprocess.Popen[bytes], seconds: float = _GRACE) -> None:
    """Wait for a process to end, but not longer than `seconds`."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def watch(requests: int, answers: int) -> bool:
    """Fork a process that ends this group as soon as the other end of a pipe is gone, even if this one hangs in C code.

    The pipe hangs up when the process that writes to it closes it or dies of whatever, and only then.

    Args:
        requests: The pipe to watch.
        answers: A pipe that the watching process must not hold open.

    Returns:
        Whether something watches now. Where it is False, see `end_late`.
    """
    if not FORKS or os.getpgrp() != os.getpid():
        return False
    if os.fork():
        return True
    try:
        os.close(answers)
        silent = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(silent, number)
        hangup = select.poll()
        hangup.register(requests, 0)
        hangup.poll()
        os.killpg(0, signal.SIGKILL)
    finally:
        os._exit(1)


def end_late(seconds: float = 2 * _GRACE) -> None:
    """End this process and what it started after `seconds`; for a thread, where nothing can `watch`."""
    time.sleep(seconds)
    if not GROUPS:
        _kill_tree(os.getpid())
    os._exit(1)


def dump_stacks(register: Callable[[int], object]) -> None:
    """Let `show_stack` make this process write where it is.

    Args:
        register: `faulthandler.register`, or what else takes a signal's number.
    """
    if hasattr(signal, "SIGUSR1"):
        register(signal.SIGUSR1)


def show_stack(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Let a process that hangs write where it is, if it has called `dump_stacks` and the system has the signal for it.

    Args:
        process: The process.
        seconds: How long to wait for it to write.
    """
    if hasattr(signal, "SIGUSR1"):
        process.send_signal(signal.SIGUSR1)
        time.sleep(seconds)


def signal_name(number: int) -> str:
    """Name a signal in words: `SIGSEGV (Segmentation fault)`."""
    try:
        return f"{signal.Signals(number).name} ({signal.strsignal(number)})"
    except ValueError:
        return f"signal {number}"


@contextmanager
def on_termination(stop: Callable[[], object]) -> Iterator[None]:
    """Call a function when this process is asked to end (SIGTERM; on Windows also Ctrl-Break), where this thread may.

    Args:
        stop: Called in the main thread, between two instructions; it may raise.

    Yields:
        Nothing; signals are as before after the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hold(number: int) -> None:
    """Wait for the lock of an open file; whoever inherits the open file holds it, too, until the last one has ended.

    Args:
        number: The file's descriptor.

    Raises:
        ConfigError: The system has no such lock, or (Windows) another process has held it for ten seconds.
    """
    try:
        import fcntl
    except ImportError:
        _hold_on_windows(number)
    else:
        fcntl.flock(number, fcntl.LOCK_EX)


def _hold_on_windows(number: int) -> None:
    try:
        import msvcrt

        msvcrt.locking(number, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
    except ImportError:
        raise ConfigError("this system has neither fcntl nor msvcrt, so that files cannot be locked") from None
    except OSError:
        raise ConfigError("another process holds the lock", hint="wait for it") from None


def _kill(process: subprocess.Popen[bytes]) -> None:
    if not GROUPS:
        _kill_tree(process.pid)
        process.kill()
        return
    try:
        # Who watches stays in the group to the last, so that its number cannot mean another group by now.
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of them have gone
    except PermissionError:
        process.kill()  # macOS says so of a group in which only dead processes wait to be collected


def _kill_tree(number: int) -> None:
    """Windows knows no groups that can be killed, but its own tool walks the tree of a process."""
    with suppress(OSError):
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(number)], capture_output=True, check=False)
