"""Adjoint Matching against autograd, finite differences and the closed form of a linear-Gaussian model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from draft.diffusion.sampling import sample
from draft.diffusion.schedule import Grid
from draft.diffusion.surrogate import roll_out
from draft.errors import DraftError
from draft.methods.adjoint_matching import (
    Target,
    draw_steps,
    lean_adjoint,
    matching_loss,
    noisy_steps,
    pull_back,
    running_quantile,
    step_mean,
)
from draft.methods.values import AdjointMatching

PREDICTIONS = ["epsilon", "v_prediction", "flow"]
LAM = 3.0


def _reward(x: Tensor) -> Tensor:
    return x.sin().flatten(1).sum(1) + x.flatten(1).square().mean(1)


def _end(state: Tensor) -> Tensor:
    """a_T = -lam dR/dx_T."""
    leaf = state.detach().requires_grad_()
    return -LAM * torch.autograd.grad(_reward(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_lean_adjoint_is_autograd_through_the_base_chain_with_noises_and_controls_fixed(toys, prediction) -> None:
    grid = toys.toy_grid(6, prediction, eta=1.0)
    base, tuned = toys.Linear(3, 6, nonlinear=True), toys.Linear(3, 6, nonlinear=True)
    with torch.no_grad():
        for weight in tuned.weights:
            weight.add_(0.2)
    fresh = [toys.noise(2, 3, seed=i) for i in range(6)]
    states = roll_out(tuned, grid, toys.noise(2, 3, seed=9), fresh).states
    x = states[0].clone().requires_grad_()
    chain = [x]
    for i in range(6):  # what the tuned net and the noise add to the base model's mean is a constant
        with torch.no_grad():
            added = states[i + 1] - step_mean(base, grid, states[i], i)
        chain.append(step_mean(base, grid, chain[-1], i) + added)
        chain[-1].retain_grad()
    torch.testing.assert_close(chain[-1], states[-1], rtol=1e-12, atol=1e-12)
    (-LAM * _reward(chain[-1])).sum().backward()
    found = {target.step: target for target in lean_adjoint(base, grid, states, _end(states[-1]))}
    assert sorted(found) == list(range(6))
    for i, target in found.items():
        torch.testing.assert_close(target.adjoint, chain[i + 1].grad, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(target.mean, step_mean(base, grid, states[i], i), rtol=0, atol=0)
        assert not target.adjoint.requires_grad and not target.mean.requires_grad
    torch.testing.assert_close(pull_back(base, grid, states[0], found[0].adjoint, 0)[1], x.grad, rtol=1e-12, atol=1e-13)


def test_the_adjoint_stops_where_it_is_no_longer_wanted(toys) -> None:
    grid, base, calls = toys.toy_grid(6, eta=1.0), toys.Linear(3, 6), []

    def counted(x: Tensor, i: int) -> Tensor:
        calls.append(i)
        return base(x, i)

    states = roll_out(base, grid, toys.noise(2, 3), [toys.noise(2, 3, seed=i) for i in range(6)]).states
    steps = [target.step for target in lean_adjoint(counted, grid, states, _end(states[-1]), 3)]
    assert steps == calls == [5, 4, 3]


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 4, 3, 6, 6), (2, 4, 10), (2, 4)])
def test_the_base_model_itself_has_the_loss_of_its_target_at_any_rank(toys, shape: tuple[int, ...]) -> None:
    grid, scale = toys.toy_grid(5, eta=1.0), torch.tensor(0.7, dtype=torch.float64)

    def base(x: Tensor, i: int) -> Tensor:
        return (x * scale).tanh()

    states = roll_out(base, grid, toys.noise(*shape), [toys.noise(*shape, seed=i) for i in range(5)]).states
    for target in lean_adjoint(base, grid, states, _end(states[-1])):
        std = grid.std[target.step]
        if std > 0:
            loss = matching_loss(step_mean(base, grid, states[target.step], target.step), target, std)
            expected = std**2 * target.adjoint.flatten(1).square().sum(1)  # a sum over elements
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
            assert loss.shape == (2,) and bool((loss > 0).all())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_gradient_of_the_loss_agrees_with_central_differences(toys, prediction: str) -> None:
    grid, net = toys.toy_grid(5, prediction, eta=1.0), toys.Linear(3, 5, nonlinear=True)
    x, i = toys.noise(2, 3), 2
    target = Target(i, toys.noise(2, 3, seed=1), toys.noise(2, 3, seed=2))

    def value() -> Tensor:
        return matching_loss(step_mean(net, grid, x, i), target, grid.std[i]).sum()

    (gradient,) = torch.autograd.grad(value(), net.weights[i])
    direction, h = toys.noise(3, 3, seed=3), 1e-5
    sides = []
    for sign in (1, -2):
        with torch.no_grad():
            net.weights[i].add_(direction, alpha=sign * h)
            sides.append(float(value()))
    assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(float((gradient * direction).sum()), rel=1e-7)


class Gaussian:
    """Data N(mu, C) in two dimensions with the exact denoiser, and an affine correction of its output per step."""

    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    mean = torch.tensor([0.4, -0.2], dtype=torch.float64)
    w = torch.tensor([0.8, -0.5], dtype=torch.float64)

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.corrections = [nn.Linear(2, 2).double() for _ in range(grid.steps)]
        for each in self.corrections:
            nn.init.zeros_(each.weight)
            nn.init.zeros_(each.bias)

    def base(self, x: Tensor, i: int) -> Tensor:
        """e, or v = e - x0, with x0 = mu + a C (a^2 C + s^2)^-1 (x - a mu)."""
        a, s = self.grid.alpha[i], self.grid.sigma[i]
        gain = a * self.covariance @ torch.linalg.inv(a * a * self.covariance + s * s * torch.eye(2, dtype=x.dtype))
        x0 = self.mean + (x - a * self.mean) @ gain.T
        e = (x - a * x0) / s
        return e if self.grid.prediction == "epsilon" else e - x0

    def tuned(self, x: Tensor, i: int) -> Tensor:
        """The base model and what was learned."""
        return self.base(x, i) + self.corrections[i](x)

    def train(self, adjoint_of: Callable[[Target, Target], Tensor] = lambda target, before: target.adjoint) -> None:
        """Minimise the loss, convex here, over one batch of rollouts of the base model."""
        generator = torch.Generator().manual_seed(0)
        noises = [torch.randn(64, 2, dtype=torch.float64, generator=generator) for _ in range(self.grid.steps + 1)]
        states = roll_out(self.tuned, self.grid, noises[0], noises[1:]).states
        last = (-LAM * self.w).expand(64, 2)
        targets = {target.step: target for target in lean_adjoint(self.base, self.grid, states, last)}
        start = Target(-1, states[0], pull_back(self.base, self.grid, states[0], targets[0].adjoint, 0)[1])
        for i in noisy_steps(self.grid):
            self._fit(i, states[i], replace(targets[i], adjoint=adjoint_of(targets[i], targets.get(i - 1, start))))

    def _fit(self, i: int, x: Tensor, target: Target) -> None:
        optimizer = torch.optim.LBFGS(
            self.corrections[i].parameters(), max_iter=100, tolerance_grad=1e-13, tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = matching_loss(step_mean(self.tuned, self.grid, x, i), target, self.grid.std[i]).mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    def gain(self) -> Tensor:
        """How far training moved the mean of x_T: the chain is affine, so its mean is what it makes of means."""
        zero = torch.zeros(1, 2, dtype=torch.float64)
        with torch.no_grad():
            still = [zero] * self.grid.steps
            return (sample(self.tuned, self.grid, zero, still) - sample(self.base, self.grid, zero, still))[0]

    def sampled_covariance(self) -> Tensor:
        """Covariance of the base sampler's x_T, from the noise that each step adds."""
        total = torch.zeros(2, 2, dtype=torch.float64)
        zero, eye = torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        for i in range(self.grid.steps):
            m = step_mean(self.base, self.grid, eye, i) - step_mean(self.base, self.grid, zero, i)
            total = m.T @ (total if i else eye) @ m + self.grid.std[i] ** 2 * eye
        return total


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _trained(toys: Any, prediction: str, steps: int, **options: Any) -> Gaussian:
    problem = Gaussian(toys.toy_grid(steps, prediction, eta=1.0))
    problem.train(**options)
    return problem


@pytest.mark.parametrize(("prediction", "tolerance"), [("flow", 1e-8), ("epsilon", 0.01)])
def test_a_linear_model_of_gaussian_data_learns_the_tilted_mean(toys, prediction: str, tolerance: float) -> None:
    problem = _trained(toys, prediction, 12)
    assert _error(problem.gain(), LAM * problem.sampled_covariance() @ problem.w) < tolerance


def test_the_tilted_mean_is_that_of_the_data_as_the_grid_grows_finer(toys) -> None:
    errors = []
    for steps in (12, 48):
        problem = _trained(toys, "flow", steps)
        errors.append(_error(problem.gain(), LAM * problem.covariance @ problem.w))
    assert errors[1] < errors[0] / 2  # the sampler's own error: a chain's covariance is the data's in the limit


def test_the_adjoint_before_the_step_is_the_wrong_one(toys) -> None:
    right = _trained(toys, "flow", 12)
    wrong = _trained(toys, "flow", 12, adjoint_of=lambda target, before: before.adjoint)
    expected = LAM * right.sampled_covariance() @ right.w
    assert _error(right.gain(), expected) < 1e-8
    assert _error(wrong.gain(), expected) > 0.1


def test_only_steps_that_add_noise_are_drawn_some_early_and_some_late(toys) -> None:
    grid, generator = toys.toy_grid(10, eta=1.0), torch.Generator().manual_seed(0)
    drawn = [draw_steps(AdjointMatching(), grid, generator) for _ in range(200)]
    assert all(len(set(steps)) == 4 and steps == tuple(sorted(steps)) for steps in drawn)
    assert all(sum(i < 6 for i in steps) == 2 for steps in drawn)
    assert {i for steps in drawn for i in steps} == set(range(9))
    paper = AdjointMatching(early=7, late=10, boundary=0.75)
    steps = draw_steps(paper, toys.toy_grid(40, "flow", eta=1.0), generator)
    assert [i for i in steps if i >= 30] == list(range(30, 39)) and len(steps) == 16
    assert draw_steps(AdjointMatching(early=0, boundary=0.9), toys.toy_grid(3, eta=1.0), generator) == (1,)


@pytest.mark.parametrize(("steps", "eta"), [(4, 0.0), (1, 1.0)])
def test_a_sampler_without_noise_is_refused(toys, steps: int, eta: float) -> None:
    with pytest.raises(DraftError, match=rf"needs a sampling step that adds noise \(got {steps} without\)"):
        noisy_steps(toys.toy_grid(steps, eta=eta))


def test_the_threshold_is_a_running_mean_of_the_quantile_of_roots() -> None:
    terms = torch.arange(1.0, 12.0, dtype=torch.float64).square()
    assert running_quantile(None, terms, 0.9) == pytest.approx(10.0)
    assert running_quantile(20.0, terms.reshape(11, 1), 0.5) == pytest.approx(0.9 * 20 + 0.1 * 6)
