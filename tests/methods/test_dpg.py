"""Deterministic policy gradient: what it is with an exact critic, and the critic itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from draft.diffusion.sampling import step
from draft.diffusion.surrogate import roll_out, sample_with_plan
from draft.errors import DraftError
from draft.methods.dpg import Critic, actor_loss
from draft.methods.modules import draw_plan
from draft.methods.values import Draft, DraftK, Method

GRIDS = ["epsilon", "v_prediction", "flow"]


def _reward(x: Tensor) -> Tensor:
    return x.sin().sum(1) + x.square().mean(1)


def _planned(toys, method: Method, grid) -> list[Tensor | None]:
    net = toys.Linear(3, grid.steps, nonlinear=True)
    plan = draw_plan(method, grid.steps, torch.Generator())
    (-_reward(sample_with_plan(toys.both(net), grid, plan, toys.noise(2, 3)))).sum().backward()
    return [weight.grad for weight in net.weights]


@pytest.mark.parametrize("prediction", GRIDS)
def test_with_the_exact_value_the_sum_over_the_steps_is_full_backpropagation(toys, prediction: str) -> None:
    grid = toys.toy_grid(6, prediction)
    net = toys.Linear(3, 6, nonlinear=True)
    frozen = copy.deepcopy(net).requires_grad_(False)
    path = roll_out(net, grid, toys.noise(2, 3))

    def value(x: Tensor, first: int) -> Tensor:
        """The reward of sampling on from level `first`."""
        for i in range(first, 6):
            x, _ = step(frozen, grid, x, i)
        return _reward(x)

    for i in range(6):
        x = path.states[i]
        actor_loss(grid, x, net(x, i), i, lambda y, first=i + 1: value(y, first)).sum().backward()
    for weight, expected in zip(net.weights, _planned(toys, Draft(), grid), strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("prediction", GRIDS)
def test_with_the_reward_itself_at_the_last_step_it_is_draft_1(toys, prediction: str) -> None:
    grid, net = toys.toy_grid(6, prediction), toys.Linear(3, 6, nonlinear=True)
    x = roll_out(net, grid, toys.noise(2, 3)).states[5]
    actor_loss(grid, x, net(x, 5), 5, _reward).sum().backward()
    expected = _planned(toys, DraftK(k=1), grid)
    assert all(net.weights[i].grad is None is expected[i] for i in range(5))
    torch.testing.assert_close(net.weights[5].grad, expected[5], rtol=0, atol=0)


def _critic(rank: int, seed: int = 0) -> Critic:
    return Critic(rank=rank, channels=4, text=5, width=8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("space", [(12,), (8, 8), (3, 8, 8), (1, 1)])
def test_the_critic_guesses_from_latent_level_and_prompt_whatever_the_size(toys, space: tuple[int, ...]) -> None:
    critic = _critic(len(space)).double()
    x, level, text = toys.noise(2, 4, *space), torch.tensor([[0.6, 0.8]] * 2).double(), toys.noise(2, 5)
    guess = critic(x, level, text)
    assert guess.shape == (2,)
    for other in (critic(x + 1, level, text), critic(x, 1 - level, text), critic(x, level, text.flip(0))):
        assert (other - guess).abs().min() > 1e-6
    torch.testing.assert_close(critic(x[:1], level[:1], text[:1]), guess[:1])


def test_latents_without_space_are_refused_with_what_to_do() -> None:
    with pytest.raises(DraftError, match=r"dpg needs latents with 1, 2 or 3 dimensions behind the channels \(got 0\)"):
        _critic(0)


def test_the_critic_starts_from_its_own_generator_and_leaves_torch_s_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = _critic(2), _critic(2), _critic(2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
