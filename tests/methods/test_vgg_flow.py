"""VGG-Flow: the target is the base model's velocity minus beta eta(s) times the reward's gradient, for every model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draft.diffusion.sampling import predict
from draft.diffusion.schedule import Grid
from draft.methods.values import VGGFlow
from draft.methods.vgg_flow import capped, damping, draw_steps, target, velocity_loss, velocity_slope

PREDICTIONS = ["epsilon", "v_prediction", "flow"]


def _velocity(grid: Grid, x: Tensor, out: Tensor, i: int) -> Tensor:
    x0, e = predict(grid, x, out, i)
    return e - x0


@pytest.mark.parametrize("schedule", ["quadratic", "linear", "constant"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_linear_reward_shifts_the_velocity_by_exactly_minus_beta_eta_w(toys, prediction: str, schedule) -> None:
    grid, net = toys.toy_grid(6, prediction), toys.Linear(3, 6, nonlinear=True)
    method, x = VGGFlow(beta=0.7, schedule=schedule), toys.noise(2, 3)
    w = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64)  # norm 1.3
    power = {"quadratic": 2, "linear": 1, "constant": 0}[schedule]
    for i in range(1, 6):
        base = net(x, i).detach()
        s = grid.sigma[i] / (grid.alpha[i] + grid.sigma[i])
        for cap, q in ((10.0, w), (1.0, w / 1.3)):
            limited, norms = capped(w.expand(2, 3), cap)
            wanted = target(method, grid, base, limited, i)
            shift = _velocity(grid, x, wanted, i) - _velocity(grid, x, base, i)
            torch.testing.assert_close(shift, (-0.7 * (1 - s) ** power * q).expand(2, 3), rtol=1e-11, atol=1e-13)
            torch.testing.assert_close(norms, torch.full((2,), 1.3, dtype=torch.float64))


def test_in_flow_matching_it_is_the_published_formula(toys) -> None:
    grid, base, q = toys.toy_grid(5, "flow"), toys.noise(2, 3), toys.noise(2, 3, seed=1)
    for i in range(5):
        s = grid.sigma[i]
        expected = base - 1e3 * (1 - s) ** 2 * q
        torch.testing.assert_close(target(VGGFlow(), grid, base, q, i), expected, rtol=1e-12, atol=1e-12)
        assert velocity_slope(grid, i) == 1
    assert damping(VGGFlow(), grid, 0) == 0 and damping(VGGFlow(schedule="constant"), grid, 0) == 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_diffusion_model_and_its_flow_model_have_the_same_target(toys, prediction: str) -> None:
    """The map z = x / (alpha + sigma), s = sigma / (alpha + sigma), u = e - x0, done by hand."""
    grid, x, out, q = toys.toy_grid(5, prediction), toys.noise(2, 3), toys.noise(2, 3, seed=1), toys.noise(2, 3, seed=2)
    i, totals = 2, [a + s for a, s in zip(grid.alpha, grid.sigma, strict=True)]
    flow = replace(
        grid,
        prediction="flow",
        alpha=tuple(a / t for a, t in zip(grid.alpha, totals, strict=True)),
        sigma=tuple(s / t for s, t in zip(grid.sigma, totals, strict=True)),
    )
    u = _velocity(grid, x, out, i)
    torch.testing.assert_close(predict(flow, x / totals[i], u, i)[0], predict(grid, x, out, i)[0], rtol=1e-9, atol=1e-9)
    found = _velocity(grid, x, target(VGGFlow(), grid, out, q, i), i)
    torch.testing.assert_close(found, target(VGGFlow(), flow, u, q, i), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_velocity_moves_with_the_output_as_said(toys, prediction: str) -> None:
    grid, x = toys.toy_grid(5, prediction), toys.noise(1, 1)
    for i in range(5):
        out = toys.noise(1, 1, seed=1).requires_grad_()
        (slope,) = torch.autograd.grad(_velocity(grid, x, out, i).sum(), out)
        assert float(slope) == pytest.approx(velocity_slope(grid, i), rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 4, 3, 6, 6), (2, 4, 10), (2, 4)])
def test_with_beta_0_the_base_model_has_loss_0_at_any_rank(toys, shape: tuple[int, ...]) -> None:
    grid, base = toys.toy_grid(5), toys.noise(*shape)
    q, _ = capped(toys.noise(*shape, seed=1), 1.0)
    loss = velocity_loss(base, target(VGGFlow(beta=0.0), grid, base, q, 2))
    assert loss.shape == (2,) and bool((loss == 0).all())
    assert bool((velocity_loss(base, target(VGGFlow(), grid, base, q, 2)) > 0).all())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_gradient_of_the_loss_agrees_with_central_differences(toys, prediction: str) -> None:
    grid, net, i = toys.toy_grid(5, prediction), toys.Linear(3, 5, nonlinear=True), 2
    x, wanted = toys.noise(2, 3), target(VGGFlow(beta=2.0), grid, toys.noise(2, 3, seed=1), toys.noise(2, 3, seed=2), i)
    (gradient,) = torch.autograd.grad(velocity_loss(net(x, i), wanted).sum(), net.weights[i])
    direction, h = toys.noise(3, 3, seed=3), 1e-5
    sides = []
    for sign in (1, -2):
        with torch.no_grad():
            net.weights[i].add_(direction, alpha=sign * h)
            sides.append(float(velocity_loss(net(x, i), wanted).sum()))
    assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(float((gradient * direction).sum()), rel=1e-7)


def test_the_cap_shortens_long_gradients_and_leaves_short_ones_and_zero() -> None:
    q = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    limited, norms = capped(q, 1.0)
    torch.testing.assert_close(limited, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.5, 0.0], dtype=torch.float64))


def test_one_step_of_each_chunk_is_drawn_and_the_last() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_steps(VGGFlow(), 20, generator) for _ in range(300)]
    for steps in drawn:
        assert steps[-1] == 19 and steps == tuple(sorted(set(steps)))
        assert all(sum(4 * k <= i < 4 * k + 4 for i in steps) in ({1} if k < 4 else {1, 2}) for k in range(5))
    assert {i for steps in drawn for i in steps} == set(range(1, 20))
    assert draw_steps(VGGFlow(share=1.0), 3, generator) == (1, 2)
    assert draw_steps(VGGFlow(), 1, generator) == (0,)
