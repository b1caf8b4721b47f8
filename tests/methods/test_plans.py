"""ReFL, AlignProp and DRTune: what they draw, and that their gradients are what their papers say."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from draft.diffusion.linear import linear_form
from draft.diffusion.plan import Plan
from draft.diffusion.sampling import predict, sample, step
from draft.diffusion.schedule import Schedule, make_grid
from draft.diffusion.settings import SamplerSettings
from draft.diffusion.surrogate import roll_out, sample_with_plan
from draft.errors import DraftError
from draft.methods.modules import draw_plan
from draft.methods.values import AlignProp, Draft, DraftK, DRTune, Method, ReFL

GRIDS = ["epsilon", "v_prediction", "flow"]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _gradients(toys, method: Method, grid, *, seed: int = 0, width: int = 3) -> list[Tensor | None]:
    net = toys.Linear(width, grid.steps, nonlinear=True)
    plan = draw_plan(method, grid.steps, _generator(seed))
    fresh = list(toys.noise(grid.steps, 2, width, seed=5)) if grid.stochastic else None
    sample_with_plan(toys.both(net), grid, plan, toys.noise(2, width), fresh=fresh).sin().sum().backward()
    return [weight.grad for weight in net.weights]


def _equal(left: list[Tensor | None], right: list[Tensor | None], tolerance: float = 1e-12) -> None:
    assert [g is None for g in left] == [g is None for g in right]
    for a, b in zip(left, right, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=1e-15)


def test_refl_stops_at_a_step_of_the_window_and_scores_its_prediction(toys) -> None:
    plans = [draw_plan(ReFL(window=3), 8, _generator(seed)) for seed in range(200)]
    drawn = Counter(plan.stop for plan in plans)
    assert set(drawn) == {5, 6, 7} and min(drawn.values()) > 40
    assert all(plan.recorded == tuple(i == plan.stop for i in range(8)) == plan.cut for plan in plans)
    grid, net, x = toys.toy_grid(8), toys.Linear(3, 8), toys.noise(2, 3)
    plan = next(plan for plan in plans if plan.stop == 5)
    found = sample_with_plan(toys.both(net), grid, plan, x)
    with torch.no_grad():
        for i in range(5):
            x, _ = step(net, grid, x, i)
        x0, _ = predict(grid, x, net(x, 5), 5)
    torch.testing.assert_close(found, x0, rtol=0, atol=0)


@pytest.mark.parametrize("prediction", GRIDS)
def test_refl_with_a_window_of_one_is_draft_1(toys, prediction: str) -> None:
    grid = toys.toy_grid(6, prediction)
    _equal(_gradients(toys, ReFL(window=1), grid), _gradients(toys, DraftK(k=1), grid), 0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("method", [AlignProp(), AlignProp(truncation="gaussian", mean=0.5, std=0.3)], ids=str)
def test_alignprop_is_draft_k_at_the_k_that_it_drew(toys, method: AlignProp, eta: float) -> None:
    grid = toys.toy_grid(8, eta=eta)
    for seed in range(5):
        k = draw_plan(method, 8, _generator(seed)).recorded_steps
        _equal(_gradients(toys, method, grid, seed=seed), _gradients(toys, DraftK(k=k), grid), 0)


def test_alignprop_draws_k_as_it_says() -> None:
    def drawn(method: AlignProp, steps: int = 50) -> list[int]:
        generator = _generator()
        return [draw_plan(method, steps, generator).recorded_steps for _ in range(4000)]

    uniform = Counter(drawn(AlignProp(), 8))
    assert set(uniform) == set(range(1, 9)) and max(uniform.values()) < 1.25 * min(uniform.values())
    # The published code's draw: E[K] = 9.1, P(K = 1) = 2.7 %.
    gaussian = drawn(AlignProp(truncation="gaussian"))
    assert sum(gaussian) / 4000 == pytest.approx(9.1, abs=0.3)
    assert gaussian.count(1) / 4000 == pytest.approx(0.027, abs=0.01) and 1 <= min(gaussian) <= max(gaussian) < 50
    assert set(drawn(AlignProp(truncation="fixed", k=3), 8)) == {3}


def test_alignprop_per_step_records_each_step_with_its_own_chance_and_keeps_the_chain(toys) -> None:
    generator = _generator()
    plans = [draw_plan(AlignProp(truncation="per_step"), 4, generator) for _ in range(4000)]
    assert not any(any(plan.cut) for plan in plans)
    assert all(plan.recorded_steps for plan in plans)  # where none would be, it is drawn again
    some = 1 - 4 / 5 * 3 / 5 * 2 / 5 * 1 / 5
    for i in range(4):
        assert sum(plan.recorded[i] for plan in plans) / 4000 == pytest.approx((i + 1) / 5 / some, abs=0.03)
    # An output that is not recorded is a constant, but the latent stays in the chain: x' = p x + q sg(W x).
    grid, net = toys.toy_grid(3), toys.Linear(3, 3)
    plan = next(plan for plan in plans if plan.recorded[:3] == (True, False, True))
    plan = type(plan)(recorded=plan.recorded[:3], cut=plan.cut[:3])
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    sample_with_plan(toys.both(net), grid, plan, toys.noise(1, 3)).matmul(w).sum().backward()
    states = roll_out(net, grid, toys.noise(1, 3)).states
    form = linear_form(grid)
    w2, w1 = net.weights[2].detach(), form.carry[1]
    lam = w1 * (form.carry[2] * w + form.gain[2] * w2.T @ w)
    torch.testing.assert_close(net.weights[0].grad, form.gain[0] * torch.outer(lam, states[0][0]))
    assert net.weights[1].grad is None


@pytest.mark.parametrize("frozen", ["epsilon", "velocity"])
@pytest.mark.parametrize("prediction", GRIDS)
def test_drtune_has_its_closed_form(toys, prediction: str, frozen: str) -> None:
    """dJ/dW_i = w_i q^T dslope_i/dW_i with one q = dR/dx0 for all steps, and nothing at the others."""
    grid = toys.toy_grid(9, prediction, spacing="linspace" if prediction == "flow" else "trailing")
    if prediction == "flow" and frozen == "epsilon":
        with pytest.raises(DraftError, match="method.frozen must be 'velocity'"):
            linear_form(grid, "epsilon")
        return
    net, noise = toys.Linear(3, 9, nonlinear=True), toys.noise(2, 3)
    plan = draw_plan(DRTune(k=3, stop=0.5, frozen=frozen), 9, _generator(3))  # type: ignore[arg-type]
    found = sample_with_plan(toys.both(net), grid, plan, noise)
    found.sin().sum().backward()
    form, stop = linear_form(grid, frozen), plan.stop  # type: ignore[arg-type]
    assert stop is not None and sum(plan.recorded) == 3
    states = roll_out(net, grid, noise).states
    x0, _ = predict(grid, states[stop], net(states[stop], stop), stop)
    torch.testing.assert_close(found, x0, rtol=1e-10, atol=1e-12)
    q = x0.detach().cos()
    _, weights = form.weights(0, stop)
    weights = [w / form.scale[stop] for w in weights] + [-form.tau[stop]]
    for i in range(9):
        if not plan.recorded[i]:
            assert net.weights[i].grad is None
            continue
        slope = form.slope(states[i], net(states[i], i), i)
        (expected,) = torch.autograd.grad((q * slope).sum() * weights[i], net.weights[i])
        torch.testing.assert_close(net.weights[i].grad, expected, rtol=1e-9, atol=1e-13)


def test_auto_holds_the_velocity_on_a_grid_that_starts_without_signal(toys) -> None:
    """Zero terminal SNR with v prediction and trailing spacing, where x / alpha does not exist at the first step."""
    squares = (*np.linspace(0.99, 0.01, 999).tolist(), 0.0)
    grid = make_grid(Schedule(squares, "v_prediction"), SamplerSettings(num_inference_steps=5))
    assert grid.alpha[0] == 0 and linear_form(grid, "auto") == linear_form(grid, "velocity")
    assert linear_form(toys.toy_grid(5, "v_prediction")).frozen == "epsilon"
    net = toys.Linear(3, 5)
    plan = draw_plan(DRTune(k=5, stop=0), 5, _generator(0))
    sample_with_plan(toys.both(net), grid, plan, toys.noise(2, 3)).sum().backward()
    assert all(weights.grad is not None and weights.grad.isfinite().all() for weights in net.weights)
    with pytest.raises(DraftError, match="method.frozen must be 'velocity'"):
        linear_form(grid, "epsilon")


def test_drtune_spaces_its_steps_and_stops_where_it_says() -> None:
    for seed in range(100):
        plan = draw_plan(DRTune(k=3, stop=0.4), 20, _generator(seed))
        assert plan.stop is not None and 12 <= plan.stop < 20 and not plan.jacobians
        chosen = [i for i in range(20) if plan.recorded[i]]
        assert len(chosen) == 3 and max(chosen) <= plan.stop
        assert len({b - a for a, b in pairwise(chosen)}) == 1
        whole = draw_plan(DRTune(k=2, stop=0.44, spacing="whole"), 25, _generator(seed))
        assert 1 <= whole.recorded_steps <= 2 and whole.stop is not None and 14 <= whole.stop < 25
        assert draw_plan(DRTune(k=5, stop=0), 5, _generator(seed)).recorded == (True,) * 5


def test_a_plan_for_more_steps_than_there_are_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="a plan of 5 steps cannot record 6"):
        draw_plan(DraftK(k=6), 5, _generator())
    with pytest.raises(ValueError, match="a plan of 5 steps cannot stop at step -2"):
        Plan(recorded=(True,) * 5, cut=(False,) * 5, stop=-2)
    assert draw_plan(AlignProp(k=6), 5, _generator()).steps == 5


@pytest.mark.parametrize("prediction", GRIDS)
@pytest.mark.parametrize("method", [Draft(), DraftK(k=3), AlignProp()], ids=str)
def test_a_stochastic_rollout_is_differentiated_with_its_noise_fixed(toys, method: Method, prediction: str) -> None:
    grid = toys.toy_grid(6, prediction, eta=0.7, spacing="trailing")
    net, noise, fresh = toys.Linear(3, 6, nonlinear=True), toys.noise(2, 3), list(toys.noise(6, 2, 3, seed=1))
    plan = draw_plan(method, 6, _generator(4))
    latents = sample_with_plan(toys.both(net), grid, plan, noise, fresh=fresh)
    with torch.no_grad():
        torch.testing.assert_close(latents, sample(net, grid, noise, fresh), rtol=1e-12, atol=1e-13)
    latents.sin().sum().backward()
    last = net.weights[5]
    direction, h = toys.noise(3, 3, seed=2), 1e-5
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            last.add_(direction, alpha=sign * h)
            values.append(sample(net, grid, noise, fresh).sin().sum())
    assert float((values[0] - values[1]) / (2 * h)) == pytest.approx(float((last.grad * direction).sum()), rel=1e-6)
    with pytest.raises(ValueError, match="each step needs fresh noise"):
        sample_with_plan(toys.both(net), grid, plan, noise)
