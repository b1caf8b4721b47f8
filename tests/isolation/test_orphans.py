"""A reward's process ends with Draft, however Draft ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

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


def start(room, what: str, then: str = "") -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(room.python), what, then],
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


def test_started_by_hand_it_says_so(room) -> None:
    command = [str(room.python), "-m", "draft.isolation.worker"]
    leader, follower = os.openpty()
    done = subprocess.run(command, stdin=follower, capture_output=True, text=True, timeout=60)
    os.close(leader)
    os.close(follower)
    assert (done.returncode, done.stdout) == (1, "")
    assert "started by Draft" in done.stderr
