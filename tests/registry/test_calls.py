"""What a plugin's code does to its process is put back and named, and what it raises is one error of that plugin."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draft.errors import DraftError, DraftWarning, RewardError
from draft.pipeline.interrupt import Terminated
from draft.rewards import waiting
from draft.rewards.calls import Called, calling, protected
from draft.rewards.surroundings import surroundings

MINE = Called("reward 'mine'", lambda: [__name__])


def _grad_off() -> None:
    torch.set_grad_enabled(False)


CHANGES = {
    "torch's default dtype (torch.float64, was torch.float32)": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device (meta, was cpu)": lambda: torch.set_default_device("meta"),
    "torch's grad mode (False, was True)": _grad_off,
    "torch's deterministic algorithms ((True, False), was (False, False))": lambda: torch.use_deterministic_algorithms(
        True
    ),
    "torch's anomaly detection (True, was False)": lambda: torch.autograd.set_detect_anomaly(True),
    "torch's precision of matrix products (medium, was highest)": lambda: torch.set_float32_matmul_precision("medium"),
    "cuDNN's flag 'benchmark' (True, was False)": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch's number of threads (7, was": lambda: torch.set_num_threads(7),
    "torch's global random generator": lambda: torch.rand(1),
    "numpy's global random generator": lambda: np.random.rand(1),  # noqa: NPY002
    "random's global random generator": lambda: random.random(),
    "numpy's handling of errors": lambda: np.seterr(all="raise"),
    "the current folder (": lambda: os.chdir("/"),
    "the handler of SIGINT": lambda: signal.signal(signal.SIGINT, lambda *_: None),
    "the handler of SIGTERM": lambda: signal.signal(signal.SIGTERM, lambda *_: None),
}


@pytest.mark.parametrize("named", CHANGES)
def test_what_a_call_changes_is_put_back_and_named(named: str) -> None:
    before = surroundings()
    with pytest.warns(DraftWarning) as warned, calling(MINE, "loading"):
        CHANGES[named]()
    assert surroundings() == before
    (text,) = (str(warning.message) for warning in warned)
    assert text.startswith(f"reward 'mine' changed {named}") and "while loading; put back as before" in text
    assert ("draft.frozen_network" in text) == named.endswith("generator")


def test_a_call_that_changes_nothing_is_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    with calling(MINE, "scoring"):
        torch.rand(3, generator=torch.Generator().manual_seed(0)).sum()
    assert not recwarn.list


def test_what_was_changed_is_put_back_when_the_call_fails_too(recwarn: pytest.WarningsRecorder) -> None:
    def fail() -> None:
        torch.set_default_dtype(torch.float64)
        raise ValueError

    with pytest.raises(RewardError), calling(MINE, "loading"):
        fail()
    assert torch.get_default_dtype() == torch.float32
    assert "default dtype" in str(recwarn.pop(DraftWarning).message)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ValueError("the cat is upside down\nand more"), "ValueError: the cat is upside down"),
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit(), "GeneratorExit: no message"),
        (StopIteration("x" * 1000), f"StopIteration: {'x' * 300}"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_whatever_is_raised_is_one_line_with_its_place(raised: BaseException, told: str) -> None:
    with pytest.raises(RewardError) as caught, calling(MINE, "scoring"):
        raise raised
    line = raised.__traceback__.tb_lineno if raised.__traceback__ else 0
    assert str(caught.value) == f"reward 'mine' raised {told} (tests/registry/test_calls.py:{line})"
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_what_stops_a_run_stops_it(stop: type[BaseException]) -> None:
    with pytest.raises(stop), calling(MINE, "scoring"):
        raise stop


@pytest.mark.parametrize("raised", [DraftError("must be a cat"), MemoryError(), torch.OutOfMemoryError("full")])
def test_drafts_own_errors_and_full_memory_stay_what_they_are(raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught, calling(MINE, "scoring"):
        raise raised
    assert caught.value is raised


def test_what_a_plugin_prints_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with calling(MINE, "scoring"):
        print("hello")
    print("done")
    assert capsys.readouterr() == ("done\n", "hello\n")


def test_a_long_call_says_who_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(waiting, "FIRST", 0.01)
    deadline = time.monotonic() + 30
    with calling(MINE, "loading"):
        while not errors.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert errors.getvalue().startswith("waiting for reward 'mine' while loading, 0 s so far\n") or (
        errors.getvalue().startswith("waiting for reward 'mine' while loading, 1 s so far\n")
    )


def test_a_score_in_a_program_of_ones_own_gets_a_copy_whose_gradient_comes_through() -> None:
    def score(images: Any, prompts: Any) -> Any:
        images.detach().mul_(0.5)
        return images.square().mean(dim=(1, 2, 3))

    images = torch.full((2, 3, 2, 2), 0.5).requires_grad_()
    with pytest.warns(DraftWarning, match="changed the images that it scores in place; it has a copy"):
        scores = protected(score, MINE, torch.device("cpu"))(images, ["", ""])
    scores.sum().backward()
    assert scores.tolist() == [0.0625, 0.0625]
    assert images.detach().unique().tolist() == [0.5]
    assert images.grad is not None and images.grad.abs().min() > 0


def test_the_surroundings_of_a_folder_that_is_gone_can_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with calling(MINE, "loading"):
        pass


def test_two_threads_that_call_leave_standard_output_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    inside, over = threading.Event(), threading.Event()

    def call() -> None:
        with calling(MINE, "scoring"):
            inside.set()
            over.wait(30)

    output, thread = sys.stdout, threading.Thread(target=call)
    with calling(MINE, "scoring"):
        thread.start()
        assert inside.wait(30)
    over.set()
    thread.join()
    assert sys.stdout is output
