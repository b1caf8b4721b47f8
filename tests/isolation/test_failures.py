"""Whatever happens in a reward's process is an error of that reward, and leaves nothing behind."""

from __future__ import annotations

import re
import shutil
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.errors import ConfigErrors, DraftError, PluginError, ResourceError, StageError
from draft.isolation.environment import interpreter
from draft.isolation.failures import IsolatedError
from draft.isolation.reward import ending_processes, isolated_reward
from draft.isolation.settings import Isolation
from draft.rewards.reward import Term
from draft.scoring.backward import Scorer, split_backward
from draft.scoring.objective import LinearLoss
from draft.scoring.rewards import LoadedReward
from draft.types import Prompts

CPU = torch.device("cpu")
REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""
IMAGES = torch.full((2, 3, 4, 4), 0.25)


@pytest.fixture(scope="module")
def faulty(room) -> Iterator[Any]:
    """A reward that does what its prompt says, loaded; what it may do and live on."""
    reward = room.reward("faulty")
    yield reward.load(CPU)
    reward.isolated.workers[0].end()


def error_of(score: Any, what: str) -> DraftError:
    with pytest.raises(DraftError) as raised:
        score(IMAGES, [what, what])
    assert raised.value.where == "stages.train.rewards.mine"
    return raised.value


def test_an_exception_is_one_line_with_its_type_message_package_and_place_in_the_code(faulty) -> None:
    error = error_of(faulty, "raise")
    assert isinstance(error, IsolatedError)
    told = r"reward 'faulty' raised ValueError: the cat is upside down \(mine-rewards 4.2, mine_rewards.py:\d+\)"
    assert re.fullmatch(told, error.what)
    assert str(error) == f"stages.train.rewards.mine: {error.what}"
    assert re.search(r"mine_rewards.py\", line \d+, in act(.|\n)*ValueError: the cat", str(error.__cause__))
    for what, raised in {"leave": "SystemExit: 3", "close": "GeneratorExit: no message"}.items():
        error = error_of(faulty, what)
        told = rf"reward 'faulty' raised {raised} \(mine-rewards 4.2, mine_rewards.py:\d+\)"
        assert re.fullmatch(told, error.what)


def test_an_error_of_drafts_kind_stays_what_it_is(faulty) -> None:
    error = error_of(faulty, "refuse")
    assert (error.what, error.hint) == ("must be a cat (got a dog)", "try a cat")
    assert isinstance(error_of(faulty, "memory"), ResourceError)


def test_a_result_that_is_no_score_per_image_is_refused(faulty) -> None:
    assert "must return a tensor of shape (2,) (got list)" in error_of(faulty, "list").what
    assert "must return one score per image, shape (2,) (got ())" in error_of(faulty, "scalar").what


def test_what_the_usual_checks_look_for_reaches_them(faulty) -> None:
    assert faulty(IMAGES, ["nan", "nan"]).isnan().all()
    pixels = IMAGES.clone().requires_grad_()
    assert not faulty(pixels, ["detached", ""]).requires_grad
    term = [LoadedReward(Term("mine", None, 1.0), faulty, CPU)]  # type: ignore[arg-type]
    with pytest.raises(StageError, match="not connected to the images"):
        split_backward(pixels * 1, Scorer(lambda x: x, term), Prompts(["detached", ""]), loss=LinearLoss())


def test_what_a_reward_prints_disturbs_nothing_and_the_process_lives_on(faulty) -> None:
    assert torch.equal(faulty(IMAGES, ["print", ""]), IMAGES.mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    ("what", "told", "wrote"),
    [
        ("crash", "was ended by SIGSEGV (Segmentation fault) while scoring", "in act"),
        ("hold", "did not answer within 1.5 s while scoring, and was stopped", "in act"),
        pytest.param("sleep", "did not answer within 1.5 s while scoring", "in act", marks=pytest.mark.slow),
        pytest.param("exit", "ended with exit code 7 while scoring", "about to go", marks=pytest.mark.slow),
    ],
)
def test_a_crash_or_a_hang_names_the_reward_and_shows_what_it_wrote(
    room, group, gone, what: str, told: str, wrote: str
) -> None:
    reward = room.reward("faulty", timeout=1.5)
    score = reward.load(CPU)
    worker = reward.isolated.workers[0]
    assert len(group(worker.pid)) == 2
    error = error_of(score, what)
    assert isinstance(error, IsolatedError)
    assert told in error.what and "reward 'faulty'" in error.what
    assert wrote in str(error).partition("it wrote:")[2]
    assert ("isolated.timeout" in error.hint) == ("within" in told)
    assert gone(worker.pid)
    assert error_of(score, "").what == "the process of reward 'faulty' has ended"


@pytest.mark.parametrize(
    ("what", "limits", "told"),
    [
        ("exit", {}, "ended with exit code 7 while loading"),
        ("sleep", {"load_timeout": 6}, "isolated.load_timeout"),
    ],
)
def test_one_that_fails_while_it_is_loaded_is_named_and_ended(
    room, gone, what: str, limits: dict[str, float], told: str
) -> None:
    reward = room.reward("faulty", {"loading": what}, **limits)
    with pytest.raises(IsolatedError) as raised:
        reward.load(CPU)
    assert told in str(raised.value)
    assert gone(reward.isolated.workers[0].pid)


def test_wrong_options_and_unknown_rewards_are_told_by_the_environment(room) -> None:
    with pytest.raises(ConfigErrors) as raised:
        room.reward("glow", {"amount": 3, "amuont": 1})
    assert [(error.where, error.what, error.hint) for error in raised.value.errors] == [
        ("stages.train.rewards.mine.amount", "must be at most 2 (got 3)", ""),
        ("stages.train.rewards.mine.amuont", "reward 'glow' has no option 'amuont'", "did you mean 'amount'?"),
    ]
    with pytest.raises(
        PluginError, match=rf"unknown reward \(got 'glwo'\), in the environment of {room.python}"
    ) as one:
        room.reward("glwo")
    assert one.value.hint == "did you mean 'glow'?"


def test_a_device_that_is_not_there_is_refused(room) -> None:
    with pytest.raises(StageError, match="device 'cuda:99' is not available in the environment"):
        room.reward("glow").load(torch.device("cuda:99"))


def test_an_environment_needs_draft_pytorch_pydantic_and_pluggy_and_nothing_else_of_drafts(
    tmp_path: Path, room
) -> None:
    poor = shutil.copytree(room.folder, tmp_path / "poor", symlinks=True)
    (packages,) = poor.glob("lib/python*/site-packages")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = ("pydantic", "pluggy", "torch", "annotated-types")
    names = [name for line in project["dependencies"] if (name := line.split(">=")[0]) not in needed]
    refused = [{"pillow": "PIL", "pyyaml": "yaml"}.get(name, name) for name in names]
    (packages / "sitecustomize.py").write_text(REFUSE.format(names=refused))
    reward = isolated_reward(Isolation(python=str(interpreter(poor))), "glow", {}, where="r")
    pixels = IMAGES.clone().requires_grad_()
    with ending_processes([Term("r", reward)]):
        (slope,) = torch.autograd.grad(reward.load(CPU)(pixels, ["a", "b"]).sum(), pixels)
    assert "numpy" in refused and slope.abs().min() > 0


def test_an_environment_without_draft_and_a_program_that_is_no_python_are_told(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    for program, told in (
        (
            tmp_path / "bare/bin/python",
            f"install Draft there: {tmp_path}/bare/bin/python -m pip install draft-diffusion",
        ),
        (Path("/bin/true"), "while starting"),
        (Path("/bin/echo"), "expected a message"),
    ):
        with pytest.raises(DraftError) as raised:
            isolated_reward(Isolation(python=str(program)), "glow", {}, where="r")
        assert told in str(raised.value), str(raised.value)
