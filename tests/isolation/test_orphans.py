"""A reward's process ends with Draft, however Draft ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from draft import processes
from draft.errors import DraftError
from draft.isolation.reward import ending_processes
from draft.rewards.reward import Term

CPU = torch.device("cpu")
SCRIPT = """
import signal
import sys
import torch
from draft.isolation.reward import isolated_reward
from draft.isolation.settings import Isolation

# A shell has its background jobs ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
reward = isolated_reward(Isolation(python=sys.argv[1]), "faulty", {}, where="stages.train.rewards.mine")
score = reward.load(torch.device("cpu"))
print(reward.isolated.workers[0].pid, flush=True)
score(torch.zeros(1, 3, 4, 4), [sys.argv[2]])
if sys.argv[3] == "raise":
    raise ValueError("a bug of ours")
"""


def start(room, what: str, then: str = "", script: str = SCRIPT) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(room.python), what, then],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("then", [pytest.param("", marks=pytest.mark.slow), "raise"])
def test_it_ends_with_the_interpreter_and_after_an_exception(room, gone, then: str) -> None:
    process, worker = start(room, "", then)
    _, wrote = process.communicate(timeout=60)
    assert (process.returncode, "a bug of ours" in wrote) == ((1, True) if then else (0, False))
    assert gone(worker)


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("hold", signal.SIGKILL),
        ("sleep", signal.SIGINT),
        pytest.param("sleep", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("hold", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_it_ends_with_its_children_when_draft_is_killed_or_interrupted_while_it_hangs(
    room, group, gone, what: str, number: signal.Signals
) -> None:
    process, worker = start(room, what)
    # It itself, its watchman, and the child that it starts before it sleeps.
    deadline = time.monotonic() + 30
    while len(group(worker)) < (3 if what == "sleep" else 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    assert len(group(worker)) == (3 if what == "sleep" else 2)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == -number or number == signal.SIGINT
    assert gone(worker)


def test_it_ends_with_the_block_that_uses_it_and_with_the_last_reference(room, gone) -> None:
    reward = room.reward("counted")
    with ending_processes([Term("mine", reward)]):
        reward.load(CPU)
        worker = reward.isolated.workers[0]
    assert gone(worker.pid) and reward.isolated.workers == []
    score = reward.load(CPU)
    worker = reward.isolated.workers.pop().pid
    assert score(torch.ones(1, 3, 2, 2), [""]).tolist() == [12]
    del score
    gc.collect()
    assert gone(worker)


TASKKILL = """#!/bin/sh
children=$(cat /proc/$4/task/*/children)
echo "$1 $2 $3 $4 and" $children >> {log}
kill -9 $children $4
"""


@pytest.fixture
def groupless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system without process groups, as Windows: its tool that ends a process with its children writes here."""
    tool = tmp_path / "bin" / "taskkill"
    tool.parent.mkdir()
    tool.write_text(TASKKILL.format(log=tmp_path / "log"))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(processes, "GROUPS", False)
    return tmp_path / "log"


def ended(number: int) -> bool:
    """Whether a process is gone, or becomes so within seconds."""
    deadline = time.monotonic() + 10
    while alive(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(number)


def alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_without_process_groups_it_works_and_ends_by_the_end_of_its_input(room, groupless: Path) -> None:
    reward = room.reward("counted")
    score = reward.load(CPU)
    worker = reward.isolated.workers[0]
    assert score(torch.ones(1, 3, 2, 2), [""]).tolist() == [12]
    worker.end()
    assert worker._process.returncode == 0  # it was not killed: what it had registered for its end has run


def test_without_process_groups_a_hang_is_ended_with_its_children(room, groupless: Path) -> None:
    reward = room.reward("faulty", timeout=1.5)
    score = reward.load(CPU)
    worker = reward.isolated.workers[0]
    with pytest.raises(DraftError, match=r"did not answer within 1\.5 s while scoring"):
        score(torch.ones(1, 3, 2, 2), ["sleep"])
    calls = dict(line.split(" and") for line in groupless.read_text().splitlines())
    (child,) = calls[f"/T /F /PID {worker.pid}"].split()
    assert ended(worker.pid) and ended(int(child))


def test_without_process_groups_it_ends_when_draft_is_killed_while_it_hangs(room) -> None:
    script = f"from draft import processes\nprocesses.GROUPS = False\n{SCRIPT}"
    process, worker = start(room, "sleep", script=script)
    children = Path(f"/proc/{worker}/task/{worker}/children")
    deadline = time.monotonic() + 30
    while not children.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    (child,) = children.read_text().split()
    process.kill()
    process.communicate(timeout=60)
    assert ended(worker)
    os.kill(int(child), signal.SIGKILL)  # the tool that would have ended it is not here


def test_started_by_hand_it_says_so(room) -> None:
    command = [str(room.python), "-m", "draft.isolation.worker"]
    leader, follower = os.openpty()
    done = subprocess.run(command, stdin=follower, capture_output=True, text=True, timeout=60)
    os.close(leader)
    os.close(follower)
    assert (done.returncode, done.stdout) == (1, "")
    assert "started by Draft" in done.stderr
