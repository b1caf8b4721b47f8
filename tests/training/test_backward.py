"""The split backward pass against the plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from draft.rewards.reward import Reward, Term
from draft.scoring.backward import Scorer, split_backward
from draft.scoring.objective import LinearLoss
from draft.scoring.rewards import LoadedReward
from draft.training.schedule import learning_rate_factor
from draft.types import Prompts

CPU = torch.device("cpu")
DECODER = torch.randn(3 * 16, 4 * 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Smooth(Reward):
    """A smooth score that depends on the prompt."""

    name = "smooth"

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: (
            images.square().mean(dim=(1, 2, 3)) * torch.tensor([float(p) for p in prompts])
        ).sin()


class Spread(Reward):
    """How far each image is from the mean of its batch."""

    name = "spread"
    per_image = False

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: (images - images.mean(0)).square().mean(dim=(1, 2, 3))


def _decode(latents: Tensor) -> Tensor:
    return (latents.flatten(1) @ DECODER.T).reshape(-1, 3, 4, 4).sigmoid()


def _latents(count: int) -> tuple[Tensor, Tensor]:
    theta = torch.linspace(-1, 1, count * 16, dtype=torch.float64).requires_grad_()
    return theta, (theta.sin() * theta).reshape(count, 4, 2, 2)


def _terms(*rewards: Reward) -> list[LoadedReward]:
    return [LoadedReward(Term(r.name, r, w), r.load(CPU), CPU) for r, w in zip(rewards, (0.7, -2.0), strict=False)]


PROMPTS = Prompts(["1", "2", "3"])


@pytest.mark.parametrize("micro", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("groups", [1, 3])
def test_split_equals_plain_for_every_micro_batch_size(micro: int, groups: int) -> None:
    theta, latents = _latents(3 * groups)
    terms = _terms(Smooth(), Smooth())
    figures = split_backward(latents, Scorer(_decode, terms, micro), PROMPTS, loss=LinearLoss(), scale=0.5)
    plain, again = _latents(3 * groups)
    images, prompts = _decode(again), list(PROMPTS) * groups
    scores = [loaded.score(images, prompts) for loaded in terms]
    loss = -0.5 * sum(loaded.term.weight * score for loaded, score in zip(terms, scores, strict=True)).mean()
    loss.backward()
    torch.testing.assert_close(theta.grad, plain.grad, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(
        figures.scores.double(), torch.stack([s.mean() for s in scores]).detach(), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("micro", [0, 1, 2])
def test_a_batch_level_reward_sees_each_group_whole(micro: int) -> None:
    theta, latents = _latents(6)
    split_backward(latents, Scorer(_decode, _terms(Spread(), Smooth()), micro), PROMPTS, loss=LinearLoss())
    plain, again = _latents(6)
    images = _decode(again)
    spread, smooth = Spread().load(CPU), Smooth().load(CPU)
    parts = [0.7 * spread(group, PROMPTS) - 2.0 * smooth(group, PROMPTS) for group in images.chunk(2)]
    (-torch.cat(parts).mean()).backward()
    torch.testing.assert_close(theta.grad, plain.grad, rtol=1e-12, atol=1e-15)


def test_saturated_pixels_are_counted() -> None:
    _, latents = _latents(2)
    figures = split_backward(
        latents,
        Scorer(lambda x: (x.flatten(1)[:, :12].reshape(-1, 3, 2, 2) * 1e3).clamp(0, 1), _terms(Smooth())),
        Prompts(["1", "2"]),
        loss=LinearLoss(),
    )
    assert figures.saturated > 0.9


def test_learning_rates_rise_and_fall() -> None:
    def factors(schedule: Any, warmup: int = 0) -> list[float]:
        return [learning_rate_factor(k, schedule=schedule, warmup_steps=warmup, max_steps=4) for k in range(4)]

    assert factors("constant") == [1, 1, 1, 1]
    assert factors("linear") == [1, 0.75, 0.5, 0.25]
    assert factors("linear", 2) == [0.5, 1, 1, 0.5]
    assert factors("cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
