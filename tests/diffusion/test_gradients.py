"""The LoRA gradient of every method against central differences and closed forms, in double precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import TextToImage
from draft.diffusion.guidance import guide
from draft.diffusion.lora import add_lora, lora_parameters
from draft.diffusion.plan import Plan
from draft.diffusion.sampling import move, predict, renoise, step
from draft.diffusion.schedule import make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.diffusion.surrogate import Denoisers, checkpointed, sample_with_plan
from draft.methods.modules import draw_plan
from draft.methods.values import AlignProp, Draft, DraftK, DraftLV, DRTune, Method, ReFL

STEPS, BATCH, GUIDANCE = 6, 2, 3.0
METHODS: list[Method] = [Draft(), DraftK(k=1), DraftK(k=2), DraftK(k=5), DraftLV(copies=2)]
DRAWN: list[Method] = [
    ReFL(window=4),
    AlignProp(),
    AlignProp(truncation="fixed", k=3),
    AlignProp(truncation="gaussian", mean=0.5, std=0.3),
    AlignProp(truncation="per_step"),
    DRTune(k=2, stop=0.5, frozen="epsilon"),
    DRTune(k=3, stop=0.5, frozen="velocity"),
]


def make_plan(method: Method, steps: int) -> Plan:
    return draw_plan(method, steps, torch.Generator().manual_seed(122))


class Problem:
    """A rollout, the VAE and a smooth reward as one function of the LoRA weights."""

    def __init__(self, model: TextToImage, method: Method, *, checkpointing: bool = False, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model, self.checkpointing = model, checkpointing
        add_lora(model.network, LoraSettings(rank=2), seed=1)
        self.parameters = lora_parameters(model.network)
        with torch.no_grad():
            for parameter in self.parameters[1::2]:  # B: at B = 0 the gradient of A vanishes
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        self.grid = make_grid(model.noise, SamplerSettings(num_inference_steps=STEPS))
        self.plan = make_plan(method, STEPS)
        self.noise = torch.randn(BATCH, 4, 8, 8, generator=generator, dtype=torch.float64)
        self.copy_noise = torch.randn(BATCH * self.plan.copies, 4, 8, 8, generator=generator, dtype=torch.float64)
        texts = model.encode(["a cat", "two dogs"], model.default_size)
        self.output = guide(model.denoise, self.grid, texts, model.encode([""], model.default_size), GUIDANCE)
        self.pattern = torch.randn(3, 16, 16, generator=generator, dtype=torch.float64)

    def reward(self, latents: Tensor) -> Tensor:
        images = self.model.decode(latents)
        return (images * self.pattern).sum(dim=(1, 2, 3)) + images.square().mean(dim=(1, 2, 3)).sin()

    def latents(self) -> Tensor:
        recorded = checkpointed(self.output) if self.checkpointing else self.output
        networks = Denoisers(no_grad=self.output, with_grad=recorded)
        return sample_with_plan(networks, self.grid, self.plan, self.noise, copy_noise=self.copy_noise)

    def gradient(self) -> list[Tensor]:
        return list(torch.autograd.grad(self.reward(self.latents()).mean(), self.parameters))

    def held(self, toys: Any) -> Callable[[], Tensor]:
        """J as a function of the weights, with what the plan stops held at its present value."""
        latents = toys.held(self.plan, self.grid, self.output, self.noise, self.copy_noise)
        return lambda: self.reward(latents()).mean()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("which", ["A", "B"])
def test_the_gradient_agrees_with_central_differences(load, toys, method: Method, which: str, prediction: str) -> None:
    problem = Problem(load(prediction), method)
    chosen = problem.parameters[0 if which == "A" else 1 :: 2]
    gradient = problem.gradient()[0 if which == "A" else 1 :: 2]
    value = problem.held(toys)
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in chosen]
        exact = float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
        assert toys.slope_of(value, chosen, direction) == pytest.approx(exact, rel=1e-6)
        assert abs(exact) > 1e-6


@pytest.mark.parametrize("method", DRAWN, ids=str)
def test_the_gradient_of_a_drawn_plan_agrees_with_central_differences_of_what_it_does_not_stop(
    load, toys, method: Method
) -> None:
    problem = Problem(load("v_prediction" if method in DRAWN[::2] else "epsilon"), method)
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in problem.parameters]
    exact = float(sum((g * d).sum() for g, d in zip(problem.gradient(), direction, strict=True)))
    assert toys.slope_of(problem.held(toys), problem.parameters, direction) == pytest.approx(exact, rel=1e-6)
    assert abs(exact) > 1e-6


def test_the_drawn_plans_of_these_tests_stop_early_and_leave_steps_out() -> None:
    plans = [make_plan(method, STEPS) for method in DRAWN]
    assert [plan.stop for plan in plans] == [2, None, None, None, None, 4, 4]
    assert all(1 < plan.recorded_steps < STEPS for plan in plans[1:])
    assert plans[4].recorded != tuple(sorted(plans[4].recorded)), "a recorded step lies before one that is not"


def test_the_plan_of_each_method_is_its_picture() -> None:
    assert make_plan(Draft(), 3) == Plan((True, True, True), (False, False, False), 0)
    assert make_plan(DraftK(k=2), 3) == Plan((False, True, True), (False, True, False), 0)
    assert make_plan(DraftLV(copies=2), 3) == Plan((False, False, True), (False, False, True), 2)
    with pytest.raises(ValueError, match="a plan of 3 steps cannot record 4"):
        make_plan(DraftK(k=4), 3)


def _equal(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_k_equal_to_t_is_full_backpropagation(load) -> None:
    _equal(Problem(load(), DraftK(k=STEPS)).gradient(), Problem(load(), Draft()).gradient())


def test_lv_without_copies_is_draft_1(load) -> None:
    _equal(Problem(load(), DraftLV(copies=0)).gradient(), Problem(load(), DraftK(k=1)).gradient(), 0)


@pytest.mark.parametrize("method", [*METHODS, *DRAWN], ids=str)
def test_checkpointing_changes_nothing(load, method: Method) -> None:
    _equal(Problem(load(), method).gradient(), Problem(load(), method, checkpointing=True).gradient())


def test_only_the_lora_gets_a_gradient_and_nothing_flows_through_the_renoised_copies(load) -> None:
    problem = Problem(load(), DraftLV(copies=1))
    problem.noise.requires_grad_()
    problem.reward(problem.latents()).mean().backward()
    assert problem.noise.grad is None
    assert {id(p) for p in problem.model.network.parameters() if p.grad is not None} == {
        id(p) for p in problem.parameters
    }


def test_one_linear_step_with_a_linear_reward_has_the_closed_form(toys) -> None:
    grid, net = toys.toy_grid(5), toys.Linear(3, 5)
    x = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    sample_with_plan(toys.both(net), grid, make_plan(DraftK(k=1), 5), x).matmul(w).sum().backward()
    with torch.no_grad():
        for i in range(4):
            x, _ = step(net, grid, x, i)
    rho = grid.sigma[-1] / grid.alpha[-1]
    torch.testing.assert_close(net.weights[4].grad, -rho * torch.outer(w, x[0]), rtol=1e-12, atol=1e-14)
    assert all(net.weights[i].grad is None for i in range(4))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_full_backpropagation_through_linear_steps_has_the_closed_form(toys, prediction: str) -> None:
    grid, net = toys.toy_grid(4, prediction, final="first_alpha"), toys.Linear(3, 4)
    noise = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    sample_with_plan(toys.both(net), grid, make_plan(Draft(), 4), noise).matmul(w).sum().backward()
    # x' = p x + q W x: F_i's Jacobian is p I + q W_i, dF_i/dW_i is q, and lam runs backwards from w.
    states, factors = [noise[0]], []
    for i in range(4):
        a, s, a2, s2 = grid.alpha[i], grid.sigma[i], grid.next_alpha[i], grid.next_sigma[i]
        p, q = (a2 / a, s2 - a2 * s / a) if prediction == "epsilon" else (a2 * a + s2 * s, s2 * a - a2 * s)
        factors.append((p, q))
        states.append(p * states[-1] + q * net.weights[i].detach() @ states[-1])
    lam = w
    for i in reversed(range(4)):
        p, q = factors[i]
        torch.testing.assert_close(net.weights[i].grad, q * torch.outer(lam, states[i]), rtol=1e-10, atol=1e-13)
        lam = p * lam + q * net.weights[i].detach().T @ lam


@pytest.mark.parametrize("k", [1, 3, 6])
def test_draft_k_is_the_last_k_terms_of_the_adjoint_sum(toys, k: int) -> None:
    grid, noise = toys.toy_grid(6), torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    full, truncated = toys.Linear(3, 6, nonlinear=True), toys.Linear(3, 6, nonlinear=True)
    sample_with_plan(toys.both(full), grid, make_plan(Draft(), 6), noise).sin().sum().backward()
    sample_with_plan(toys.both(truncated), grid, make_plan(DraftK(k=k), 6), noise).sin().sum().backward()
    for i in range(6):
        got, expected = truncated.weights[i].grad, full.weights[i].grad
        if i < 6 - k:
            assert got is None
        else:
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_the_mean_lv_gradient_of_a_linear_net_tends_to_its_closed_form(toys) -> None:
    grid, net, copies = toys.toy_grid(3), toys.Linear(3, 3), 20000
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, dtype=torch.float64, generator=generator)
    copy_noise = torch.randn(copies, 3, dtype=torch.float64, generator=generator)
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    plan = make_plan(DraftLV(copies=copies), 3)
    latents = sample_with_plan(toys.both(net), grid, plan, noise, copy_noise=copy_noise)
    latents[1:].matmul(w).mean().backward()
    y, (a, s) = latents[0].detach(), (grid.alpha[-1], grid.sigma[-1])
    torch.testing.assert_close(
        net.weights[2].grad, -s / a * torch.outer(w, a * y), rtol=0.0, atol=4 * s * s / a / copies**0.5 * 3
    )


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 4, 3, 6, 6), (2, 4, 10), (2, 4)])
@pytest.mark.parametrize("method", [*METHODS, *DRAWN], ids=str)
def test_latents_of_any_rank_pass_sampler_and_plans(toys, shape: tuple[int, ...], method: Method) -> None:
    grid = toys.toy_grid(5)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    conditioning = Conditioning({"text": torch.randn(2, 3, 5, dtype=torch.float64)})

    def net(x: Tensor, time: Tensor, c: Conditioning) -> Tensor:
        assert x.shape[0] == len(c)
        return (x * scale + c.tensors["text"].mean(dim=(1, 2)).reshape(-1, *[1] * (x.dim() - 1))).tanh()

    output = guide(net, grid, conditioning, conditioning[:1], 2.0)
    plan = make_plan(method, 5)
    copy_noise = torch.randn(plan.copies * 2, *shape[1:], dtype=torch.float64)
    latents = sample_with_plan(
        toys.both(output), grid, plan, torch.randn(shape, dtype=torch.float64), copy_noise=copy_noise
    )
    assert latents.shape == ((1 + plan.copies) * 2, *shape[1:])
    latents.sum().backward()
    assert scale.grad is not None and scale.grad != 0


def test_guidance_is_the_formula_and_copies_keep_their_prompts(toys) -> None:
    grid, conditioning = toys.toy_grid(5), Conditioning({"text": torch.tensor([[[1.0]], [[2.0]]])})
    blank = Conditioning({"text": torch.tensor([[[0.5]]])})
    calls = []

    def net(x: Tensor, time: Tensor, c: Conditioning) -> Tensor:
        calls.append(x.shape[0])
        return c.tensors["text"].reshape(-1, 1) * torch.ones_like(x)

    guided = guide(net, grid, conditioning, blank, 3.0)
    torch.testing.assert_close(guided(torch.zeros(4, 1), 0), torch.tensor([[2.0], [5.0], [2.0], [5.0]]))
    plain = guide(net, grid, conditioning, blank, 1.0)
    torch.testing.assert_close(plain(torch.zeros(4, 1), 0), torch.tensor([[1.0], [2.0], [1.0], [2.0]]))
    assert calls == [8, 4]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_prediction_and_renoising_are_inverse(toys, prediction: str) -> None:
    grid = toys.toy_grid(5, prediction)
    x0, e = torch.randn(2, 7, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    x = renoise(grid, x0, e, 2)
    out = e if prediction == "epsilon" else grid.alpha[2] * e - grid.sigma[2] * x0
    found = predict(grid, x, out, 2)
    torch.testing.assert_close(found[0], x0)
    torch.testing.assert_close(found[1], e)
    exact = replace(grid, next_alpha=grid.alpha, next_sigma=grid.sigma)
    torch.testing.assert_close(move(exact, *found, 2), x)
