"""DDPO: densities, ratios and advantages, and that the gradient is the one of the expected reward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draft.diffusion.sampling import step
from draft.diffusion.surrogate import Rollout, roll_out
from draft.methods.ddpo import (
    base_distance,
    clipped_loss,
    log_density,
    noisy_steps,
    step_mean,
    weigh_rewards,
)

GRIDS = ["epsilon", "v_prediction", "flow"]
SHAPES = [(2, 4, 6, 6), (2, 4, 3, 6, 6), (2, 4, 10), (2, 4)]


def _path(toys, net, grid, count: int, width: int = 3) -> Rollout:
    return roll_out(net, grid, toys.noise(count, width), list(toys.noise(grid.steps, count, width, seed=1)))


def _densities(net, grid, path: Rollout) -> Tensor:
    """log p of every noisy step, (steps, B)."""
    found = []
    for i in noisy_steps(grid):
        x, x_next = path.states[i], path.states[i + 1]
        found.append(log_density(x_next, step_mean(grid, x, net(x, i), i), grid.std[i]))
    return torch.stack(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_density_is_that_of_torch_and_a_mean_over_elements_of_any_rank(toys, shape: tuple[int, ...]) -> None:
    x, mean = toys.noise(*shape), toys.noise(*shape, seed=1)
    expected = torch.distributions.Normal(mean, 0.3).log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(log_density(x, mean, 0.3), expected, rtol=1e-12, atol=1e-12)
    assert log_density(x.bfloat16(), mean.bfloat16(), 0.3).dtype == torch.float32


@pytest.mark.parametrize("prediction", GRIDS)
def test_a_step_is_its_mean_and_its_noise(toys, prediction: str) -> None:
    grid, net, x, z = (
        toys.toy_grid(5, prediction, eta=0.7),
        toys.Linear(3, 5),
        toys.noise(2, 3),
        toys.noise(2, 3, seed=1),
    )
    for i in range(5):
        landed, _ = step(net, grid, x, i, z)
        torch.testing.assert_close(landed, step_mean(grid, x, net(x, i), i) + grid.std[i] * z, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("prediction", GRIDS)
def test_steps_without_noise_have_no_density_and_are_left_out(toys, prediction: str) -> None:
    assert noisy_steps(toys.toy_grid(5, prediction, eta=1.0)) == [0, 1, 2, 3]
    assert noisy_steps(toys.toy_grid(5, prediction)) == []
    assert noisy_steps(toys.toy_grid(1, prediction, eta=1.0)) == []
    assert noisy_steps(toys.toy_grid(5, final="first_alpha", eta=1.0)) == [0, 1, 2, 3, 4]


def test_the_loss_stops_teaching_only_where_the_ratio_went_too_far_in_the_advantage_s_direction() -> None:
    # on-policy with A > 0; above and below the range with A > 0; above and below it with A < 0
    log_ratio = torch.tensor([0.0, 0.3, -0.3, 0.3, -0.3], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    loss = clipped_loss(log_ratio, advantages, 0.1)
    torch.testing.assert_close(
        loss, torch.maximum(-advantages * log_ratio.exp(), -advantages * log_ratio.exp().clamp(0.9, 1.1))
    )
    (slope,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert (slope / log_ratio.detach().exp()).tolist() == pytest.approx([-1, 0, -1, 1, 0], abs=1e-12)


@pytest.mark.parametrize("prediction", GRIDS)
@pytest.mark.parametrize("clip", [1e-4, 0.2])
def test_on_policy_the_gradient_is_minus_advantage_times_that_of_the_log_density(
    toys, prediction: str, clip: float
) -> None:
    grid, net = toys.toy_grid(4, prediction, eta=1.0), toys.Linear(3, 4, nonlinear=True)
    path, advantages = _path(toys, net, grid, 5), toys.noise(5, seed=7)
    old = _densities(net, grid, path).detach()

    def surrogate(c: float) -> Tensor:
        return clipped_loss(_densities(net, grid, path) - old, advantages, c).sum()

    found = torch.autograd.grad(surrogate(clip), list(net.weights)[:3])
    expected = torch.autograd.grad(-(advantages * _densities(net, grid, path)).sum(), list(net.weights)[:3])
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        direction, h, sides = toys.noise(3, 3, seed=i), 1e-6, []
        for sign in (1, -2, 1):
            with torch.no_grad():
                net.weights[i].add_(direction, alpha=sign * h)
            sides.append(float(surrogate(0.2).detach()))  # a range that the differences stay within
        assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(float((a * direction).sum()), rel=1e-6)


def test_the_mean_gradient_is_that_of_the_expected_reward(toys) -> None:
    count, grid, net = 400_000, toys.toy_grid(3, eta=1.0), toys.Linear(1, 3, nonlinear=True)
    path = _path(toys, net, grid, count, width=1)
    rewards = path.states[-1].squeeze(1).square().tanh()
    score = (rewards - rewards.mean()) * _densities(net, grid, path)
    found = torch.autograd.grad(score.sum(0).mean(), list(net.weights)[:2])
    x = toys.noise(count, 1)
    for i, z in enumerate(toys.noise(3, count, 1, seed=1)):
        x, _ = step(net, grid, x, i, z)
    expected = torch.autograd.grad(x.square().tanh().mean(), list(net.weights)[:2])
    for a, b in zip(found, expected, strict=True):
        assert float(a) == pytest.approx(float(b), abs=0.01) and abs(float(b)) > 0.1


def _weigh(rewards: Tensor, prompts: list[int], memory=None, **options):
    defaults = {"buffer": 0, "min_count": 1, "clip": 5.0}
    return weigh_rewards(rewards, prompts, memory or {}, **{**defaults, **options})


def test_advantages_are_standard_scores_of_the_update_until_a_prompt_has_enough_rewards() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0])
    mean, spread = 3.0, math.sqrt((4 + 1 + 0 + 9) / 4)
    plain, memory = _weigh(rewards, [0, 0, 1, 1])
    assert plain.tolist() == pytest.approx([(r - mean) / spread for r in rewards.tolist()], rel=1e-5) and memory == {}
    own, memory = _weigh(rewards, [0, 0, 1, 1], {0: [3.0]}, buffer=3, min_count=3)
    # Prompt 0 has 3, 1, 2; prompt 1 has two only.
    third = math.sqrt(2 / 3)
    assert own.tolist() == pytest.approx([-1 / third, 0, 0, 3 / spread], rel=1e-5, abs=1e-5)
    assert memory == {0: [3.0, 1.0, 2.0], 1: [3.0, 6.0]}
    assert _weigh(rewards, [0, 0, 1, 1], memory, buffer=3, min_count=3)[1] == {0: [2.0, 1.0, 2.0], 1: [6.0, 3.0, 6.0]}


def test_advantages_are_clipped_and_equal_rewards_teach_nothing() -> None:
    assert float(_weigh(torch.tensor([0.0] * 99 + [1.0]), [0] * 100)[0].max()) == 5
    for value in (0.1, 1e6 / 3, -7.7e-5):
        assert _weigh(torch.full((7,), value), list(range(7)))[0].tolist() == [0] * 7
        assert _weigh(torch.full((7,), value), [0] * 7, buffer=4, min_count=2)[0].tolist() == [0] * 7


@pytest.mark.parametrize("prediction", GRIDS)
def test_the_distance_to_the_base_model_is_that_of_the_predicted_noise_or_velocity(toys, prediction: str) -> None:
    grid, x, base = toys.toy_grid(5, prediction, eta=1.0), toys.noise(2, 4, 6), toys.noise(2, 4, 6, seed=1)
    factor = grid.alpha[2] if prediction == "v_prediction" else 1.0
    assert base_distance(grid, x, base, base, 2).tolist() == [0, 0]
    assert base_distance(grid, x, base + 0.5, base, 2).tolist() == pytest.approx([0.25 * factor**2] * 2)
