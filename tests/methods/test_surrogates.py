"""leap_align and flow_bp: gradients of cached rollouts against central differences, closed forms and each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.diffusion.guidance import guide
from draft.diffusion.linear import linear_form
from draft.diffusion.lora import add_lora, lora_parameters
from draft.diffusion.sampling import sample
from draft.diffusion.schedule import FlowSchedule
from draft.diffusion.settings import LoraSettings
from draft.diffusion.straight_through import scaled, st
from draft.diffusion.surrogate import Denoisers, Rollout, Surrogate, checkpointed, roll_out, sample_with_plan
from draft.methods import flow_bp_bridge, flow_bp_lagrange, flow_bp_sparse, leap_align
from draft.methods.flow_bp_bridge import bridge
from draft.methods.flow_bp_lagrange import integral_weights, lagrange, supports
from draft.methods.flow_bp_sparse import rescaling, sparse
from draft.methods.leap_align import first_step, two_leaps
from draft.methods.modules import draw_plan, mathematics
from draft.methods.values import DirectAlign, DRTune, FlowBPBridge, FlowBPLagrange, FlowBPSparse, LeapAlign

STEPS = 8
LEAPS: list[Any] = [
    LeapAlign(leap_cap=0),
    FlowBPSparse(k=3),
    FlowBPBridge(k=4, rescale=0.5, bias=1),
    FlowBPLagrange(mode="all", order=3, rescale=0.5, anchor=0.7, leap_cap=0, j_tail=1.0),
]
METHODS: list[Any] = [*LEAPS, DirectAlign(branches="both")]
FORMS = [("epsilon", "epsilon"), ("epsilon", "velocity"), ("v_prediction", "epsilon"), ("flow", "velocity")]
kinds = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
forms = pytest.mark.parametrize(("prediction", "frozen"), FORMS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient_of(method: Any, *rollout: Any) -> Surrogate:
    """One gradient of a method, as its module draws it."""
    return mathematics(method).surrogate(method, *rollout)


def gradient(net: Any, value: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, net.parameters(), strict=True)]


def equal(left: Any, right: Any, tolerance: float = 1e-12) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture
def path(toys: Any) -> Any:
    """A toy net with weights per step, its grid, straight path and cached rollout."""

    def path(prediction: str = "epsilon", frozen: Any = "auto", *, steps: int = STEPS) -> Any:
        grid, net = toys.toy_grid(steps, prediction), toys.Linear(4, steps, nonlinear=True)
        return net, toys.both(net), linear_form(grid, frozen), roll_out(net, grid, toys.noise(3, 4))

    return path


def with_frozen(method: Any, frozen: str) -> Any:
    return method if isinstance(method, DirectAlign) else replace(method, frozen=frozen)


def test_a_value_from_one_tensor_and_a_gradient_from_another(toys: Any) -> None:
    hat, true = (1e6 * toys.noise(1000)).requires_grad_(), toys.noise(1000, seed=1)
    joined = st(hat, true)
    assert torch.equal(joined, true)
    assert torch.equal(torch.autograd.grad(joined.sum(), hat)[0], torch.ones(1000, dtype=torch.float64))
    for factor in (0.0, 0.3, 1.0):
        damped = scaled(hat, factor)
        assert torch.equal(damped, hat)
        if factor:
            assert torch.equal(torch.autograd.grad(damped.sum(), hat)[0], torch.full_like(hat, factor))
    assert not scaled(hat, 0.0).requires_grad


@forms
@pytest.mark.parametrize("method", LEAPS, ids=lambda method: method.kind)
@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 4, 3, 6, 6), (2, 4, 10)])
def test_the_value_is_the_rollouts_bit_for_bit_in_latents_of_any_rank(
    toys: Any, method: Any, prediction: str, frozen: str, shape: tuple[int, ...]
) -> None:
    grid = toys.toy_grid(STEPS, prediction)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    rollout = roll_out(net := lambda x, i: (x * scale + 0.1 * i).tanh(), grid, toys.noise(*shape))
    for seed in range(5):
        made = gradient_of(with_frozen(method, frozen), toys.both(net), grid, rollout, generator(seed))
        assert torch.equal(made.latents, sample(net, grid, toys.noise(*shape)))
        (slope,) = torch.autograd.grad(made.latents.sin().sum(), scale)
        assert slope.isfinite() and slope != 0
        weights = made.groups[0].weights
        assert len(made.groups) == 1 and (weights is None or (weights.shape == (2,) and not weights.requires_grad))


class Tape:
    """Replays a surrogate at other weights with everything it stops held at its first value."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[Tensor] = []
        self.place, self.recording = 0, True
        for module in (leap_align, flow_bp_sparse, flow_bp_bridge, flow_bp_lagrange):
            monkeypatch.setattr(module, "scaled", self.scaled)
            monkeypatch.setattr(module, "st", self.st, raising=False)

    def first(self, x: Tensor) -> Tensor:
        if self.recording:
            self.kept.append(x.clone())
        self.place += 1
        return self.kept[self.place - 1]

    def st(self, hat: Tensor, true: Tensor) -> Tensor:
        return true + (hat - self.first(hat))

    def scaled(self, x: Tensor, factor: float) -> Tensor:
        kept = self.first(x)
        return kept + factor * (x - kept)


def assert_differences_agree(
    toys: Any, monkeypatch: pytest.MonkeyPatch, value: Callable[[], Tensor], parameters: list[Any]
) -> None:
    """That a surrogate's gradient is the slope of what it does not stop."""
    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    direction = [toys.noise(*p.shape, seed=7 + n) for n, p in enumerate(parameters)]
    slope = float(sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None))
    tape = Tape(monkeypatch)

    def again() -> Tensor:
        tape.place = 0
        found = value()
        tape.recording = False
        return found

    with torch.no_grad():
        again()
    assert toys.slope_of(again, parameters, direction) == pytest.approx(slope, rel=1e-5, abs=1e-10)
    assert abs(slope) > 1e-6


@kinds
@pytest.mark.parametrize(("prediction", "frozen"), [("epsilon", "epsilon"), ("v_prediction", "velocity")])
def test_the_lora_gradient_agrees_with_central_differences_of_the_surrogate(
    load: Any, toys: Any, monkeypatch: pytest.MonkeyPatch, method: Any, frozen: str, prediction: str
) -> None:
    method, model = with_frozen(method, frozen), load(prediction)
    add_lora(model.network, LoraSettings(rank=2), seed=1)
    parameters = lora_parameters(model.network)
    with torch.no_grad():
        for seed, parameter in enumerate(parameters[1::2]):  # B: at B = 0 the gradient of A vanishes
            parameter.copy_(0.3 * toys.noise(*parameter.shape, seed=seed))
    sampler_grid = toys.toy_grid(STEPS, prediction)
    grid = mathematics(method).call_grid(method, model.noise, sampler_grid)
    texts, nothing = model.encode(["a cat", "two dogs"], model.default_size), model.encode([""], model.default_size)
    rollout = roll_out(guide(model.denoise, sampler_grid, texts, nothing, 3.0), sampler_grid, toys.noise(2, 4, 8, 8))
    networks = toys.both(guide(model.denoise, grid, texts, nothing, 3.0))
    pattern = toys.noise(3, 16, 16)

    def value() -> Tensor:
        made = gradient_of(method, networks, grid, rollout, generator())
        images = model.decode(made.latents)
        return ((images * pattern).sum(dim=(1, 2, 3)) + images.square().mean(dim=(1, 2, 3)).sin()).mean()

    assert_differences_agree(toys, monkeypatch, value, parameters)


@kinds
def test_on_a_flow_the_gradient_agrees_with_central_differences_of_the_surrogate_too(
    path: Any, toys: Any, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    method, (net, _, form, rollout) = with_frozen(method, "velocity"), path("flow", "velocity")
    grid = mathematics(method).call_grid(
        method, FlowSchedule(shift=3.0), form.grid
    )  # with levels of its own for direct_align
    networks = toys.both(lambda x, i: net(x, i % STEPS))

    def value() -> Tensor:
        return gradient_of(method, networks, grid, rollout, generator()).latents.sin().sum()

    assert_differences_agree(toys, monkeypatch, value, list(net.parameters()))


@kinds
@forms
def test_checkpointing_changes_nothing(toys: Any, method: Any, prediction: str, frozen: str) -> None:
    grid = toys.toy_grid(STEPS, prediction)
    net = toys.Linear(4, STEPS, nonlinear=True)
    rollout = roll_out(net, grid, toys.noise(2, 4))
    found = []
    for recorded in (net, checkpointed(net)):
        networks = Denoisers(no_grad=net, with_grad=recorded)
        made = gradient_of(with_frozen(method, frozen), networks, grid, rollout, generator(2))
        found.append(gradient(net, made.latents.sin().sum()))
    equal(*found, tolerance=0)


@forms
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("k", "j"), [(1, 4), (0, STEPS - 1), (3, 4)])
def test_leap_align_has_the_papers_gradient(
    path: Any, prediction: str, frozen: str, alpha: float, k: int, j: int
) -> None:
    net, networks, form, rollout = path(prediction, frozen)
    x_k, x_j, x_t = rollout.states[k], rollout.states[j].clone().requires_grad_(), rollout.states[-1]
    made = two_leaps(networks, form, rollout, k, j, alpha=alpha, tau=0.1)
    q = x_t.cos()
    slope_k, slope_j = form.slope(x_k, net(x_k, k), k), form.slope(x_j, net(x_j, j), j)
    (back,) = torch.autograd.grad((slope_j * q).sum(), x_j, retain_graph=True)  # J^T q
    # Equation 10, with tau = s or rho and x = c y: dy_T = -tau_j du_j - (tau_k - tau_j) du_k + alpha tau_j ... J du_k.
    c, tau = form.scale, form.tau
    terms = -tau[j] * (q * slope_j).sum() - (tau[k] - tau[j]) * (q * slope_k).sum()
    nested = alpha * tau[j] * c[j] * (tau[k] - tau[j]) * (back.detach() * slope_k).sum()
    equal(gradient(net, made.latents.sin().sum()), gradient(net, terms + nested), 1e-11)


@forms
def test_a_leaps_sample_weighs_less_the_further_its_leaps_miss(path: Any, prediction: str, frozen: str) -> None:
    _, networks, form, rollout = path(prediction, frozen)
    k, j = 2, 5
    weights = two_leaps(networks, form, rollout, k, j, alpha=0.3, tau=0.1).groups[0].weights
    with torch.no_grad():
        y_k, u_k = rollout.states[k] / form.scale[k], form.slope(rollout.states[k], rollout.outs[k], k)
        landing = form.scale[j] * (y_k + (form.tau[j] - form.tau[k]) * u_k)
        y_j, u_j = rollout.states[j] / form.scale[j], form.slope(rollout.states[j], rollout.outs[j], j)
        d_j = (landing - rollout.states[j]).abs().mean(1).clamp(min=0.1)
        d_0 = (y_j - form.tau[j] * u_j - rollout.states[-1]).abs().mean(1).clamp(min=0.1)
    torch.testing.assert_close(weights, 1 / (d_j + d_0))
    assert weights is not None and weights.max() <= 5
    heavy = two_leaps(networks, form, rollout, k, j, alpha=0.3, tau=1e3).groups[0].weights
    torch.testing.assert_close(heavy, torch.full((3,), 1 / 2e3, dtype=torch.float64))


def test_the_slope_e_held_fixed_forbids_leaps_from_the_noisiest_levels(path: Any) -> None:
    _, _, form, _ = path("epsilon", "epsilon", steps=20)
    first = first_step(form, 3.0)
    assert form.tau[first] <= 3 < form.tau[first - 1] and form.tau[0] > 14
    assert first_step(form, 0.0) == 0 and first_step(path("epsilon", "velocity")[2], 3.0) == 0
    assert first_step(path("flow")[2], 3.0) == 0 and first_step(form, 1e-9) == 20
    with pytest.raises(
        Exception, match=r"method.leap_cap must leave at least 2 of 20 steps \(got 0.01, which leaves 0\)"
    ):
        leap_align.call_grid(LeapAlign(leap_cap=0.01), None, form.grid)  # type: ignore[arg-type]
    assert leap_align.call_grid(LeapAlign(leap_cap=0.01, frozen="velocity"), None, form.grid) is form.grid  # type: ignore[arg-type]


@forms
def test_sparse_is_the_weighted_sum_of_its_slopes(path: Any, prediction: str, frozen: str) -> None:
    net, networks, form, rollout = path(prediction, frozen)
    made = sparse(networks, form, rollout, [1, 4, 6], factor=1.7)
    q, tau = rollout.states[-1].cos(), (*form.tau, 0.0)
    slopes = {i: form.slope(rollout.states[i], net(rollout.states[i], i), i) for i in (1, 4, 6)}
    expected = sum(1.7 * (tau[i + 1] - tau[i]) * (q * slope).sum() for i, slope in slopes.items())
    assert isinstance(expected, Tensor)
    found = gradient(net, made.latents.sin().sum())
    equal(found, gradient(net, expected))
    assert [bool(g.any()) for g in found] == [i in (1, 4, 6) for i in range(STEPS)]


@forms
def test_sparse_with_all_steps_is_drtune_without_a_stop(path: Any, prediction: str, frozen: str, toys: Any) -> None:
    net, networks, form, rollout = path(prediction, frozen)
    plan = draw_plan(DRTune(k=STEPS, stop=0.0, frozen=frozen), STEPS, generator())  # type: ignore[arg-type]
    whole = sample_with_plan(networks, form.grid, plan, toys.noise(3, 4))
    made = sparse(networks, form, rollout, range(STEPS))
    torch.testing.assert_close(whole, made.latents, rtol=1e-10, atol=1e-10)
    equal(gradient(net, made.latents.sin().sum()), gradient(net, whole.sin().sum()), 1e-9)


def test_rescaled_weights_add_up_to_those_of_all_steps_and_leave_the_value(path: Any) -> None:
    _, networks, form, rollout = path("flow")
    _, weights = form.weights(0, STEPS)
    factor = rescaling(weights, [2, 5], 1.0)
    assert factor * (weights[2] + weights[5]) == pytest.approx(sum(weights), rel=1e-12)
    assert rescaling(weights, [2, 5], 0.5) == pytest.approx(1 + 0.5 * (factor - 1)) and factor > 1
    assert rescaling(weights, [2, 5], 0.0) == rescaling(weights, range(STEPS), 1.0) == 1
    assert torch.equal(sparse(networks, form, rollout, [2, 5], factor=factor).latents, rollout.states[-1])


@forms
def test_a_bridge_without_alpha_is_sparse_on_both_sides(path: Any, prediction: str, frozen: str) -> None:
    net, networks, form, rollout = path(prediction, frozen)
    joined = bridge(networks, form, rollout, 4, [0, 2], [6], alpha=0.0, factor=1.3)
    apart = sparse(networks, form, rollout, [0, 2, 4, 6], factor=1.3)
    equal(gradient(net, joined.latents.sin().sum()), gradient(net, apart.latents.sin().sum()), 1e-11)


@forms
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_bridges_early_slopes_see_the_jacobian_at_j(path: Any, prediction: str, frozen: str, alpha: float) -> None:
    net, networks, form, rollout = path(prediction, frozen)
    j, before, after, factor = 4, [0, 2], [6], 1.3
    made = bridge(networks, form, rollout, j, before, after, alpha=alpha, factor=factor)
    q = rollout.states[-1].cos()
    states = [state.clone().requires_grad_() for state in rollout.states]
    slopes = {i: form.slope(states[i], net(states[i], i), i) for i in (*before, j, *after)}
    (back,) = torch.autograd.grad((slopes[j] * q).sum(), states[j], retain_graph=True)
    carry, late = form.weights(j, STEPS)
    _, early = form.weights(0, j)
    met = carry * q + alpha * factor * late[0] * back.detach()
    expected = sum(factor * early[i] * (met * slopes[i]).sum() for i in before)
    expected = torch.as_tensor(expected) + sum(factor * late[i - j] * (q * slopes[i]).sum() for i in (j, *after))
    equal(gradient(net, made.latents.sin().sum()), gradient(net, expected), 1e-11)


def test_a_bridge_through_every_step_before_j_with_the_whole_jacobian_is_exact_for_two_steps(toys: Any) -> None:
    # With T = 2 and j = 1 nothing is dropped: it is full backpropagation.
    for prediction in ("epsilon", "v_prediction", "flow"):
        grid, net = toys.toy_grid(2, prediction), toys.Linear(4, 2, nonlinear=True)
        form, noise = linear_form(grid), toys.noise(3, 4)
        made = bridge(toys.both(net), form, roll_out(net, grid, noise), 1, [0], [], alpha=1.0)
        full = gradient(net, sample(net, grid, noise).sin().sum())
        equal(gradient(net, made.latents.sin().sum()), full, 1e-10)


@pytest.mark.parametrize("nodes", [[0.9], [0.9, 0.5], [0.9, 0.62, 0.31], [14.6, 8.0, 3.0, 0.7]])
def test_interpolation_weights_integrate_polynomials_below_their_number(nodes: list[float]) -> None:
    stop = 0.1
    weights = integral_weights(nodes, nodes[0], stop)
    assert sum(weights) == pytest.approx(stop - nodes[0], rel=1e-12)
    for degree in range(len(nodes)):
        exact = (stop ** (degree + 1) - nodes[0] ** (degree + 1)) / (degree + 1)
        assert sum(w * t**degree for w, t in zip(weights, nodes, strict=True)) == pytest.approx(exact, rel=1e-10)


def test_supports_are_spread_evenly_from_the_start() -> None:
    assert supports(3, 10, 1) == [3]
    assert supports(3, 10, 3) == [3, 6, 9]
    assert supports(3, 5, 4) == [3, 4]
    assert supports(0, 8, 4) == [0, 2, 5, 7]


@forms
@pytest.mark.parametrize("mode", ["start", "all"])
def test_order_1_is_leap_align(path: Any, prediction: str, frozen: str, mode: Any) -> None:
    net, networks, form, rollout = path(prediction, frozen)
    one = lagrange(networks, form, rollout, 1, 4, order=1, mode=mode, alpha=0.3, tau=0.1, gamma=0.2, rescale=1.0)
    other = two_leaps(networks, form, rollout, 1, 4, alpha=0.3, tau=0.1)
    equal(gradient(net, one.latents.sin().sum()), gradient(net, other.latents.sin().sum()), 1e-11)
    assert one.groups[0].weights is not None and other.groups[0].weights is not None
    torch.testing.assert_close(one.groups[0].weights, other.groups[0].weights)


@pytest.mark.parametrize("frozen", ["epsilon", "velocity"])
def test_interpolated_leaps_land_exactly_where_the_slope_is_a_polynomial(toys: Any, frozen: Any) -> None:
    # The cached slopes are made to lie on a quadratic in tau; a leap with three supports then integrates it exactly,
    # and the leaps' misses, hence the weights, are those of an exact landing.
    grid = toys.toy_grid(10, "epsilon")
    form = linear_form(grid, frozen)
    a, b, c = toys.noise(3, 2, 4)

    def slope(tau: float) -> Tensor:
        return a + b * tau + c * tau**2

    def integral(tau: float) -> Tensor:
        return a * tau + b * tau**2 / 2 + c * tau**3 / 3

    taus, scales = (*form.tau, 0.0), (*form.scale, 1.0)
    states = [scale * (a + integral(tau)) for scale, tau in zip(scales, taus, strict=True)]
    outs = []
    for i in range(10):
        # The slope is e, or e - x0 with x = alpha x0 + sigma e.
        wanted = slope(taus[i])
        outs.append(
            wanted
            if form.frozen == "epsilon"
            else (grid.alpha[i] * wanted + states[i]) / (grid.alpha[i] + grid.sigma[i])
        )
        torch.testing.assert_close(form.slope(states[i], outs[i], i), wanted, rtol=1e-9, atol=1e-9)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    networks = toys.both(lambda x, i: outs[i] * scale)
    for mode in ("start", "midpoint", "all"):
        made = lagrange(
            networks, form, Rollout(tuple(states), tuple(outs)), 2, 6, order=3, mode=mode, alpha=0.1, tau=1e-6
        )
        torch.testing.assert_close(made.groups[0].weights, torch.full((2,), 5e5, dtype=torch.float64))


@forms
def test_gamma_scales_supports_that_are_not_the_start_and_only_active_ones_learn(
    path: Any, prediction: str, frozen: str
) -> None:
    net, networks, form, rollout = path(prediction, frozen)

    def found(mode: Any, gamma: float = 1.0, alpha: float = 0.0) -> list[Tensor]:
        made = lagrange(networks, form, rollout, 0, 4, order=3, mode=mode, alpha=alpha, tau=0.1, gamma=gamma)
        return gradient(net, made.latents.sin().sum())

    def steps(gradients: list[Tensor]) -> set[int]:
        return {i for i, each in enumerate(gradients) if each.any()}

    start, half, full = found("start"), found("midpoint", 0.5), found("midpoint")
    # [0, 4) has the supports 0, 2, 3 and [4, 8) has 4, 6, 7: Python rounds 1.5 to 2.
    assert steps(start) == {0, 4} and steps(full) == {0, 2, 4, 6} and steps(found("all")) == {0, 2, 3, 4, 6, 7}
    equal([s + 0.5 * (f - s) for s, f in zip(start, full, strict=True)], half, 1e-11)
    equal(found("midpoint", 0.0), start)


def test_the_number_of_recorded_calls_is_that_of_the_calls(toys: Any) -> None:
    grid, net = toys.toy_grid(20), toys.Linear(4, 20)
    rollout = roll_out(net, grid, toys.noise(2, 4))
    every = [*METHODS, FlowBPLagrange(mode="start"), FlowBPLagrange(mode="midpoint", order=4), DirectAlign()]
    for method in every:
        most = 0
        for seed in range(30):
            calls = []
            networks = Denoisers(no_grad=net, with_grad=lambda x, i, calls=calls: calls.append(i) or net(x, i))
            gradient_of(method, networks, grid, rollout, generator(seed))
            most = max(most, len(calls))
        assert most == mathematics(method).recorded_calls(method), method
