"""Identities of the methods that are true of any network: closed forms, and the numbers of their step weights."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from draft.diffusion.control.steering import steer
from draft.diffusion.control.values import Guided
from draft.diffusion.families import load_text_to_image
from draft.diffusion.generate import make_output
from draft.diffusion.linear import linear_form
from draft.diffusion.lora import add_lora, load_base_adapters, load_lora, lora_factors, lora_parameters
from draft.diffusion.sampling import move, predict, renoise, sample
from draft.diffusion.schedule import FlowSchedule, make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.diffusion.surrogate import roll_out, sample_with_plan
from draft.methods.adjoint_matching import lean_adjoint, matching_loss, pull_back, step_mean
from draft.methods.direct_align import recover
from draft.methods.modules import draw_plan
from draft.methods.values import AlignProp, DraftK

PREDICTIONS = ["epsilon", "v_prediction", "flow"]


def close(left: Any, right: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


# --- the weights of the steps where something is held fixed ---

SHOWN = (0, 5, 12, 25, 40, 49)


def test_with_e_held_fixed_the_early_steps_weigh_most_and_with_v_the_late_ones(toys) -> None:
    _, rho = linear_form(toys.toy_grid(50), "epsilon").weights(0, 50)
    assert [-rho[i] for i in SHOWN] == pytest.approx([1.65, 0.82, 0.35, 0.10, 0.05, 0.13], abs=0.006)
    _, s = linear_form(toys.toy_grid(25, "flow"), "velocity").weights(0, 25)
    assert [-s[i] for i in (0, 12, 24)] == pytest.approx([0.014, 0.030, 0.111], abs=6e-4)
    assert sum(s) == pytest.approx(-1, rel=1e-12)


def test_with_u_held_fixed_an_epsilon_network_s_output_weighs_its_difference_of_s_times_one_plus_rho(toys) -> None:
    grid = toys.toy_grid(50)
    form = linear_form(grid, "velocity")
    levels = [s / (a + s) for a, s in zip(grid.alpha, grid.sigma, strict=True)] + [0.0]
    _, weights = form.weights(0, 50)
    found = []
    for i, weight in enumerate(weights):
        out = toys.noise(1).requires_grad_()
        (slope,) = torch.autograd.grad(weight * form.slope(toys.noise(1, seed=1), out, i), out)
        found.append(-float(slope))
        assert found[i] == pytest.approx((levels[i] - levels[i + 1]) * (1 + grid.sigma[i] / grid.alpha[i]), rel=1e-9)
    assert [found[i] for i in SHOWN] == pytest.approx([0.12, 0.10, 0.07, 0.04, 0.03, 0.13], abs=0.006)


# --- the stochastic step ---


def test_a_stochastic_step_of_a_diffusion_model_is_the_ancestral_one(toys) -> None:
    """The posterior N(x_{i+1} | x_i, x0) of DDPM (arXiv 2006.11239, equations 6 and 7)."""
    grid, x0, e = toys.toy_grid(50, eta=1.0), toys.noise(3), toys.noise(3, seed=1)
    for i in (0, 7, 30, 48):
        before, after = grid.alpha[i] ** 2, grid.next_alpha[i] ** 2
        a = before / after
        x = renoise(grid, x0, e, i)
        mean = math.sqrt(after) * (1 - a) / (1 - before) * x0 + math.sqrt(a) * (1 - after) / (1 - before) * x
        close(move(grid, x0, e, i), mean)
        assert grid.std[i] ** 2 == pytest.approx((1 - after) / (1 - before) * (1 - a), rel=1e-9)


def test_a_fine_stochastic_step_of_a_flow_has_the_drift_of_the_memoryless_sde_and_of_flow_grpo(toys) -> None:
    x, v, errors = toys.noise(5), toys.noise(5, seed=1), []
    for steps in (2000, 4000):
        grid = make_grid(FlowSchedule(), SamplerSettings(num_inference_steps=steps, eta=1.0))
        i = steps // 4
        s, h = grid.sigma[i], grid.sigma[i] - grid.next_sigma[i]
        drift = (move(grid, *predict(grid, x, v, i), i) - x) / h
        memoryless = -2 * v - x / (1 - s)
        errors.append(float((drift - memoryless).norm() / memoryless.norm()))
        std = math.sqrt(2) * math.sqrt(s / (1 - s))  # Flow-GRPO's, with its noise level at sqrt(2)
        assert grid.std[i] / math.sqrt(h) == pytest.approx(std, rel=6 / steps)
        close(-(x * std**2 / (2 * s) + v * (1 + std**2 * (1 - s) / (2 * s))), memoryless)
    assert errors[0] < 5e-3 and errors[1] == pytest.approx(errors[0] / 2, rel=0.01)


# --- AlignProp, Direct-Align, Adjoint Matching ---


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_alignprop_with_one_fixed_step_has_the_gradient_of_draft_1(toys, prediction: str) -> None:
    grid, found = toys.toy_grid(6, prediction), []
    for method in (AlignProp(truncation="fixed", k=1), DraftK(k=1)):
        net = toys.Linear(3, 6, nonlinear=True)
        plan = draw_plan(method, 6, torch.Generator().manual_seed(0))
        sample_with_plan(toys.both(net), grid, plan, toys.noise(2, 3)).sin().sum().backward()
        assert [weight.grad is not None for weight in net.weights] == [False] * 5 + [True]
        found.append(net.weights[5].grad)
    assert torch.equal(*found) and bool(found[0].any())


@pytest.mark.parametrize("recovery", ["move", "delta"])
@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
@pytest.mark.parametrize(("a", "b"), [(3, 5), (5, 3), (2, 9), (9, 2), (6, 6)])
def test_an_error_of_a_velocity_counts_by_the_levels_in_both_recoveries(
    toys, prediction: str, recovery: str, a: int, b: int
) -> None:
    grid, y, z, error = toys.toy_grid(10, prediction), *(toys.noise(2, 5, seed=k) for k in (1, 2, 3))
    alpha, sigma = grid.alpha, grid.sigma

    def output(x: Tensor, i: int) -> Tensor:
        return error + (z - y if prediction == "flow" else alpha[i] * z - sigma[i] * y)

    found = recover(toys.both(output), grid, y, z, a, b, recovery=recovery) - y
    # In both, an error of the velocity is alpha_a times that of the noise.
    weights = {"delta": sigma[a] - sigma[b], "move": alpha[a] * (sigma[a] / alpha[a] - sigma[b] / alpha[b])}
    close(found, -weights[recovery] * error)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_adjoint_of_a_step_is_the_adjoint_after_it_and_that_of_what_the_step_adds(toys, prediction: str) -> None:
    grid, base = toys.toy_grid(6, prediction, eta=1.0), toys.Linear(3, 6, nonlinear=True)
    x, a = toys.noise(2, 3), toys.noise(2, 3, seed=1)
    for i in range(6):
        leaf = x.clone().requires_grad_()
        (added,) = torch.autograd.grad(step_mean(base, grid, leaf, i) - leaf, leaf, a)
        close(pull_back(base, grid, x, a, i)[1], a + added)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_at_the_base_model_adjoint_matching_has_twice_the_gradient_of_full_backpropagation(
    toys, prediction: str
) -> None:
    """With m = m_base the loss's slope is 2 a_{i+1} dm; the step that adds no noise is the one that it leaves out."""
    grid, net, lam = toys.toy_grid(6, prediction, eta=1.0), toys.Linear(3, 6, nonlinear=True), 3.0
    noise, fresh = toys.noise(2, 3), list(toys.noise(6, 2, 3, seed=1))
    (-lam * sample(net, grid, noise, fresh).sin().sum()).backward()
    states = roll_out(net, grid, noise, fresh).states
    for target in lean_adjoint(net, grid, states, -lam * states[-1].cos()):
        if std := grid.std[target.step]:
            mean = step_mean(net, grid, states[target.step], target.step)
            weight = net.weights[target.step]
            (found,) = torch.autograd.grad(matching_loss(mean, target, std).sum(), weight)
            close(found, 2 * weight.grad)


# --- guidance that makes a step several times ---


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_repeated_step_starts_again_from_its_own_level_of_the_same_sample(toys, prediction: str) -> None:
    """The network knows y: what it is called with at step i is then alpha_i y + sigma_i times standard normal noise."""
    grid, y, seen = toys.toy_grid(4, prediction), torch.tensor(2.0, dtype=torch.float64), []

    def knows(x: Tensor, i: int) -> Tensor:
        seen.append((i, x))
        e = (x - grid.alpha[i] * y) / grid.sigma[i]
        return {"epsilon": e, "v_prediction": grid.alpha[i] * e - grid.sigma[i] * y, "flow": e - y}[prediction]

    def nothing(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, 0], torch.zeros_like(x)

    again = list(toys.noise(8, 1, 40_000, seed=5))
    start = grid.alpha[0] * y + grid.sigma[0] * toys.noise(1, 40_000)
    final = steer(knows, grid, start, nothing, Guided(recurrence=3, jacobian=False), again=again)
    close(final, y.expand_as(final), 1e-9)
    once = [0] if prediction == "flow" else [0, 0, 0]  # where there is no signal nothing is steered
    assert [i for i, _ in seen] == [*once, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for i, x in seen:
        e = (x - grid.alpha[i] * y) / grid.sigma[i]
        assert float(e.mean()) == pytest.approx(0, abs=0.02) and float(e.var()) == pytest.approx(1, abs=0.04)
    for (i, x), (j, other) in pairwise(seen):
        if i == j:
            assert not torch.equal(x, other)


# --- nothing draws at random while a model is called ---


def test_a_loaded_model_with_adapters_has_no_dropout_and_two_calls_are_one(tiny_module, tmp_path) -> None:
    folder = tiny_module.save_tiny_model(tmp_path / "model", unet={"dropout": 0.5})
    model = load_text_to_image(str(folder), device=torch.device("cpu"), dtype=torch.float64)
    add_lora(model.network, LoraSettings(rank=2), seed=0)
    factors = lora_factors(model.network)
    load_lora(model.network, factors, name="other")
    modules = [m for part in (model.network, model.components["vae"], *model.encoders.values()) for m in part.modules()]
    dropouts = [m for m in modules if isinstance(m, nn.Dropout)]
    assert any(m.p == 0.5 for m in dropouts)
    # peft's own containers stay in training mode; they hold no layer that would act on it.
    acts = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
    assert not any(m.training for m in modules if isinstance(m, acts))
    adapted = load_text_to_image(str(folder), device=torch.device("cpu"), dtype=torch.float64)
    load_base_adapters(adapted.network, [(factors, 0.5)])
    add_lora(adapted.network, LoraSettings(rank=2), seed=0)
    assert not any(m.training for m in adapted.network.modules() if isinstance(m, acts))
    grid = make_grid(model.noise, SamplerSettings(num_inference_steps=2))
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for each in (model, adapted):
        texts = model.encode(["a cat"], model.default_size)
        output = make_output(
            each, grid, texts, model.encode([""], model.default_size), SamplerSettings(num_inference_steps=2)
        )
        assert lora_parameters(each.network)
        assert torch.equal(output(x, 0), output(x, 0))
