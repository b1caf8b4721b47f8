"""An isolated reward is the reward: the same scores and the same gradients as in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import draft.testing
from draft.errors import StageError
from draft.isolation.reward import ending_processes
from draft.rewards.reading import cut_prompts, readings_of
from draft.rewards.reward import Reward, Score, Term
from draft.scoring.backward import Scorer, split_backward
from draft.scoring.objective import LinearLoss
from draft.scoring.rewards import LoadedReward
from draft.types import Prompts

CPU = torch.device("cpu")
PROMPTS = Prompts(["a cat", "a red house", "two", "a dog in the rain"], {"thing": ["cat", "house", "two", "rain"]})


@pytest.fixture(scope="module")
def pairs(room) -> Iterator[dict[str, tuple[Reward, Score, Score]]]:
    """By name the isolated reward, its score, and the score of the same class in this process."""
    original, found = room.original(), {}
    for name, options in (("glow", {"amount": 1.5, "target": "{thing}"}), ("spread", {}), ("counted", {})):
        reward = room.reward(name, options)
        own = getattr(original, type(reward).__name__)(**options)
        found[name] = (reward, reward.load(CPU), own.load(CPU))
    yield found
    for reward, _, _ in found.values():
        for worker in reward.isolated.workers:
            worker.end()


def images(count: int = 4, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count), dtype=dtype)


def both(pair: Any, batch: Tensor, cotangent: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    found = []
    for score in pair[1:]:
        pixels = batch.clone().requires_grad_()
        scores = score(pixels, PROMPTS.take(range(len(batch))))
        (gradient,) = torch.autograd.grad(scores, pixels, cotangent.to(scores))
        found.append((scores.detach(), gradient))
    return tuple(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["glow", "spread"])
def test_scores_and_gradients_are_those_of_this_process_bit_for_bit(pairs, name: str, dtype: torch.dtype) -> None:
    there, here = both(pairs[name], images(dtype=dtype), torch.ones(4))
    assert torch.equal(there[0], here[0]) and there[0].dtype == dtype
    assert torch.equal(there[1], here[1]) and there[1].dtype == dtype


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize("name", ["glow", "spread"])
def test_any_cotangent_gives_the_gradient_of_this_process(pairs, name: str, dtype: torch.dtype, error: float) -> None:
    cotangent = torch.tensor([0.3, -2.0, 0.0, 1.0], dtype=dtype)
    there, here = both(pairs[name], images(dtype=dtype), cotangent)
    assert (there[1] - here[1]).norm() <= error * here[1].norm()


@pytest.mark.parametrize("name", ["glow", "spread"])
def test_the_gradient_is_that_of_finite_differences(pairs, name: str) -> None:
    batch = images(3, 4, torch.float64).requires_grad_()
    score = pairs[name][1]
    assert torch.autograd.gradcheck(lambda pixels: score(pixels, PROMPTS.take(range(3))), batch, fast_mode=True)


def test_a_trainings_backward_pass_is_the_same_for_every_micro_batch_size(pairs) -> None:
    for micro in (0, 1, 3):
        slopes = []
        for which in (1, 2):
            terms = [
                LoadedReward(Term(n, pairs[n][0], w), pairs[n][which], CPU)
                for n, w in (("glow", 0.7), ("spread", -2.0))
            ]
            theta = torch.linspace(-1, 1, 4 * 3 * 8 * 8).requires_grad_()
            latents = theta.sin().reshape(4, 3, 8, 8)
            split_backward(latents, Scorer(torch.sigmoid, terms, micro), PROMPTS, loss=LinearLoss())
            slopes.append(theta.grad)
        assert torch.equal(*slopes)


def test_it_keeps_the_contract_of_rewards(pairs) -> None:
    results = draft.testing.check_reward(pairs["glow"][0].model_copy(update={"target": "{prompt}"}))
    skipped = {result.check: result.detail for result in results if result.status == "skipped"}
    assert skipped == {"another_device": "it runs in a process of its own, where no accelerator is pretended"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["glow", "spread"])
def test_on_a_gpu_it_is_the_gradient_of_this_process_too(room, name: str) -> None:
    device = torch.device("cuda:0")
    reward, own = room.reward(name), getattr(room.original(), name.title())()
    with ending_processes([Term(name, reward)]):
        pair = (reward, reward.load(device), own.load(device))
        there, here = both(pair, images().to(device), torch.tensor([0.3, -2.0, 0.0, 1.0]))
    assert there[1].device == here[1].device
    assert (there[1] - here[1]).norm() <= 1e-5 * here[1].norm()


def test_it_says_whether_it_uses_prompts_and_how_much_of_them(pairs) -> None:
    reward, there, here = pairs["glow"]
    assert reward.uses_prompt and not pairs["spread"][0].uses_prompt
    ((isolated,), (own,)) = readings_of(there), readings_of(here)
    assert isolated.limit == own.limit == 4
    assert isolated.lengths(PROMPTS) == own.lengths(PROMPTS) == [3, 5, 3, 4]
    assert "1 of 4 prompts is longer (up to 5)" in cut_prompts("glow", readings_of(there), PROMPTS)
    assert readings_of(pairs["spread"][1]) == ()


def test_a_metric_is_a_metric(pairs) -> None:
    reward, there, here = pairs["counted"]
    assert not reward.differentiable
    scores = there(images().requires_grad_(), PROMPTS)
    assert torch.equal(scores, here(images(), PROMPTS)) and not scores.requires_grad


def test_a_gradient_of_the_gradient_is_refused(pairs) -> None:
    batch = images().requires_grad_()
    (slope,) = torch.autograd.grad(pairs["glow"][1](batch, PROMPTS).sum(), batch, create_graph=True)
    with pytest.raises(StageError, match="'glow' cannot be differentiated again") as raised:
        slope.square().sum().backward()
    assert raised.value.where == "stages.train.rewards.mine"


def test_without_a_gradient_none_is_computed_and_an_empty_batch_stays_empty(pairs) -> None:
    _, there, here = pairs["glow"]
    with torch.no_grad():
        assert torch.equal(there(images().requires_grad_(), PROMPTS), here(images(), PROMPTS))
    assert there(images(4)[:0], Prompts([], {"thing": []})).shape == (0,)
