"""Processes, signals and locks where a system has them, and where it has not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from draft import processes
from draft.errors import ConfigError

PATIENT = "import sys; print('up', flush=True); sys.stdin.read(); print('bye', flush=True)"


def started() -> subprocess.Popen[bytes]:
    process = processes.start([sys.executable, "-c", PATIENT])
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    return process


def test_a_process_leads_a_group_where_there_are_groups() -> None:
    with started() as process:
        assert os.getpgid(process.pid) == process.pid
        processes.end(process)
        assert process.returncode == -signal.SIGTERM


def test_without_groups_the_end_of_its_input_lets_a_process_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GROUPS", False)
    with started() as process:
        assert os.getpgid(process.pid) == os.getpgrp()
        processes.end(process)
        assert process.returncode == 0 and process.stdout and process.stdout.read() == b"bye\n"


def test_without_groups_and_forks_nothing_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FORKS", False)
    assert processes.watch(0, 1) is False


def test_a_request_to_end_reaches_the_block_and_only_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    calls: list[str] = []
    with processes.on_termination(lambda: calls.append("asked")):
        signal.raise_signal(signal.SIGTERM)
    assert calls == ["asked"] and signal.getsignal(signal.SIGTERM) is before


def test_ctrl_break_is_a_request_to_end_where_there_is_such_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR2, raising=False)
    calls: list[str] = []
    with processes.on_termination(lambda: calls.append("asked")):
        signal.raise_signal(signal.SIGUSR2)
    assert calls == ["asked"]


def test_in_a_thread_signals_stay_as_they_are() -> None:
    before = signal.getsignal(signal.SIGTERM)
    handlers: list[object] = []

    def work() -> None:
        with processes.on_termination(lambda: None):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_a_lock_is_held_by_whoever_inherits_the_open_file(tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "lock").open("a+b") as file:
        processes.hold(file.fileno())
        command = [sys.executable, "-c", PATIENT]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, **processes.passed_on(file.fileno()))
    with child, (tmp_path / "lock").open("a+b") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.communicate(b"")
        fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with (tmp_path / "lock").open("a+b") as file, pytest.raises(ConfigError, match="files cannot be locked"):
        processes.hold(file.fileno())


@pytest.mark.parametrize(("number", "name"), [(signal.SIGSEGV, "SIGSEGV (Segmentation fault)"), (4000, "signal 4000")])
def test_a_signal_is_named_in_words(number: int, name: str) -> None:
    assert processes.signal_name(number) == name
