"""Loaded rewards: their scores and gradients, what they refuse, and scores of many batches."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from draft.errors import DraftError, DraftWarning, RewardError, StageError
from draft.rewards.reward import Reward, Term
from draft.rewards.terms import build_term
from draft.scoring.rewards import LoadedReward, finite_mean, load_rewards, numbers, score_batches
from draft.types import Prompts

CPU = torch.device("cpu")


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1.5])
def test_a_broken_image_is_an_error_and_not_a_score(broken: float) -> None:
    (size,) = load_rewards([build_term("size", {"use": "jpeg_size"})], CPU, check_images=True)
    images = torch.full((2, 3, 16, 16), 0.5)
    assert all(score > 0 for score in numbers(size.scores(images, Prompts(["a", "b"]))))
    images[1, 0, 3, 3] = broken
    with pytest.raises(DraftError, match="images must be in .0, 1.") as raised:
        size.scores(images, Prompts(["a", "b"]))
    assert raised.value.where == "rewards.size"


class Steep(Reward):
    """Three times the mean value.

    Args:
        shape: What is returned.
    """

    name = "steep"
    shape: str = "right"

    def load(self, device: torch.device) -> Any:
        def score(images: torch.Tensor, prompts: Any) -> Any:
            values = 3 * images.mean(dim=(1, 2, 3))
            wrong = {"scalar": values.sum(), "list": values.tolist(), "cut": values.detach()}
            return wrong.get(self.shape, values)

        return score


def loaded(shape: str = "right", *, device: str = "") -> LoadedReward:
    (reward,) = load_rewards([Term("mine", Steep(shape=shape), 0.5, device)], CPU)
    return reward


def test_a_reward_gives_its_scores_and_their_gradient_whatever_its_weight() -> None:
    images, prompts = torch.rand(2, 3, 4, 4), Prompts(["a", "b"])
    scores, gradient = loaded().scores_and_gradient(images, prompts)
    assert torch.equal(scores, loaded().scores(images, prompts))
    torch.testing.assert_close(gradient, torch.full_like(images, 3 / 48))
    assert not scores.requires_grad and not images.requires_grad and images.grad is None
    assert (loaded().label, loaded().summary) == ("mine", "Three times the mean value.")


@pytest.mark.parametrize(
    ("shape", "message"),
    [("scalar", r"shape \(2,\) \(got \(\)\)"), ("list", r"shape \(2,\) \(got list\)"), ("cut", "not connected")],
)
def test_what_a_reward_must_not_return_is_refused_with_its_label(shape: str, message: str) -> None:
    with pytest.raises(StageError, match=f"reward 'mine'.*{message}") as raised:
        loaded(shape).scores_and_gradient(torch.rand(2, 3, 4, 4), Prompts(["a", "b"]))
    assert raised.value.hint


def test_a_reward_that_sees_all_images_gets_them_after_the_last_batch_and_the_others_batch_by_batch() -> None:
    seen: list[tuple[str, int]] = []

    class Counting(Reward):
        """How many images it gets."""

        name = "counting"

        def load(self, device: torch.device) -> Any:
            def score(images: torch.Tensor, prompts: Any) -> torch.Tensor:
                seen.append((self.name, len(images)))
                return torch.full((len(images),), float(len(prompts)))

            return score

    class Together(Counting):
        """How many images it gets, all at once."""

        name = "together"
        per_image = False

    rewards = load_rewards([Term("all", Together()), Term("each", Counting())], CPU)
    prompts = Prompts(["a", "b", "c"])
    batches = [(prompts[:2], torch.rand(2, 3, 4, 4)), (prompts[2:], torch.rand(1, 3, 4, 4))]
    assert score_batches(rewards, batches, prompts) == {"all": [3.0] * 3, "each": [2.0, 2.0, 1.0]}
    assert seen == [("counting", 2), ("counting", 1), ("together", 3)]


class Rude(Reward):
    """The mean of an image, and what else it does."""

    name = "rude"
    does: str = ""

    def load(self, device: torch.device) -> Any:
        if self.does == "dtype while loading":
            torch.set_default_dtype(torch.float64)

        def score(images: torch.Tensor, prompts: Any) -> torch.Tensor:
            scores = images.mean(dim=(1, 2, 3))
            if self.does == "in place":
                images.detach().mul_(0.5)
            if self.does == "dtype":
                torch.set_default_dtype(torch.float64)
            if self.does == "seed":
                torch.manual_seed(0)
            if self.does == "exit":
                sys.exit(0)
            return scores

        return score


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("in place", "changed the images that it scores in place"),
        ("dtype", "default dtype"),
        ("dtype while loading", "default dtype"),
        ("seed", "torch's global random generator"),
    ],
)
def test_one_term_does_nothing_to_the_next_one_and_to_the_run(does: str, told: str, gradient: bool) -> None:
    images, prompts = torch.rand(2, 3, 4, 4), Prompts(["a", "b"])
    before, state = images.clone(), torch.get_rng_state()

    def scored() -> list[torch.Tensor]:
        rewards = load_rewards([Term("first", Rude(does=does)), Term("second", Steep())], CPU)
        return [
            reward.scores_and_gradient(images, prompts)[0] if gradient else reward.scores(images, prompts)
            for reward in rewards
        ]

    with pytest.warns(DraftWarning, match=told):
        scores = scored()
    assert torch.equal(scores[1], 3 * before.mean(dim=(1, 2, 3)))
    assert torch.equal(images, before)
    assert torch.get_default_dtype() == torch.float32 and torch.equal(torch.get_rng_state(), state)


def test_a_term_that_exits_is_an_error_of_that_term() -> None:
    (rude,) = load_rewards([Term("mine", Rude(does="exit"))], CPU)
    with pytest.raises(RewardError, match=r"reward 'mine' raised SystemExit: 0 \(tests/scoring/test_rewards.py:\d+\)"):
        rude.scores(torch.rand(1, 3, 4, 4), Prompts(["a"]))


def test_a_mean_leaves_out_what_has_no_score() -> None:
    assert finite_mean([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(finite_mean([math.nan]))


def test_the_objective_s_settings_need_no_torch() -> None:
    code = "import sys, draft.scoring.objective; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
