"""Losses, penalties, robustness and the gradient of guidance: each against its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import load_text_to_image
from draft.diffusion.guidance import guide
from draft.diffusion.lora import add_lora, lora_norm, lora_off, lora_parameters
from draft.diffusion.sampling import predict, step
from draft.diffusion.schedule import FlowSchedule, make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.diffusion.surrogate import Group, roll_out
from draft.methods.backpropagation import Backpropagation
from draft.methods.update import accumulate_and_step
from draft.methods.values import DraftK, DraftLV, Method
from draft.rewards.reward import Reward, Term
from draft.scoring.backward import Scorer, split_backward
from draft.scoring.objective import (
    ClippedLoss,
    DistanceLoss,
    HingeLoss,
    LinearLoss,
    Loss,
    PenaltySettings,
    RobustSettings,
)
from draft.scoring.rewards import LoadedReward
from draft.training.run import Run
from draft.training.settings import TrainSettings
from draft.training.state import Randomness
from draft.types import Prompts

CPU = torch.device("cpu")
LOSSES: list[Loss] = [LinearLoss(), HingeLoss(margin=0.4), DistanceLoss(target=0.4), ClippedLoss(low=0.2, high=0.5)]
STEPS = 4


class Wave(Reward):
    """A smooth score of pixels, negative or not; a prompt with `more` in it counts three times."""

    name = "wave"

    def load(self, device: torch.device) -> Any:
        def score(images: Tensor, prompts: Any) -> Tensor:
            factor = torch.tensor([3.0 if "more" in prompt else 1.0 for prompt in prompts]).to(images)
            return (3 * images).sin().mean(dim=(1, 2, 3)) * factor

        return score


def _terms(*weights: float) -> list[LoadedReward]:
    return [LoadedReward(Term(f"wave{k}", Wave(), weight), Wave().load(CPU), CPU) for k, weight in enumerate(weights)]


def _decode(latents: Tensor) -> Tensor:
    return latents.sigmoid().repeat(1, 3, 1, 1)


def _latents(count: int) -> Tensor:
    return torch.linspace(-3, 2, count * 16, dtype=torch.float64).reshape(count, 1, 4, 4).requires_grad_()


@pytest.fixture
def make_run(tiny_model: Path) -> Callable[..., Run]:
    def make(method: Method, **settings: Any) -> Run:
        """A run in double precision, B not zero."""
        chosen = TrainSettings(
            method=method,
            sampler=settings.pop("sampler", SamplerSettings(num_inference_steps=STEPS, guidance_scale=2.0)),
            lora=LoraSettings(rank=2),
            batch_size=2,
            max_grad_norm=0,
            **settings,
        )
        model = load_text_to_image(str(tiny_model), device=CPU, dtype=torch.float64)
        prompts = Prompts(["a cat", "a dog"])
        conditioning, unconditional = model.encode(prompts, model.default_size), model.encode([""], model.default_size)
        add_lora(model.network, chosen.lora, seed=0)
        parameters = lora_parameters(model.network)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in parameters[1::2]:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        grid = make_grid(model.schedule(model.default_size, chosen.sampler.num_inference_steps), chosen.sampler)
        scorer = Scorer(model.decode, _terms(1.0), 0, chosen.robust)
        random = Randomness(5, 2)
        random.noise = lambda *shape: torch.randn(shape, generator=random._noise, dtype=torch.float64)  # type: ignore[method-assign]
        return Run(
            settings=chosen,
            model=model,
            prompts=prompts,
            scorer=scorer,
            grid=grid,
            conditioning=conditioning,
            unconditional=unconditional,
            parameters=parameters,
            optimizer=optimizer,
            random=random,
            no_grad_denoiser=model.denoise,
        )

    return make


def _gradient(run: Run) -> list[Tensor]:
    """The gradient of one batch, at the weights as they are."""
    run.optimizer.zero_grad(set_to_none=True)
    draws = run.random.state()
    Backpropagation(run.settings.method, run).accumulate(run, 1.0)  # type: ignore[arg-type]
    run.random.restore(draws)
    return [parameter.grad.clone() for parameter in run.parameters if parameter.grad is not None]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_the_slope_of_a_loss_is_its_derivative(loss: Loss) -> None:
    rewards = torch.tensor([-0.3, 0.1, 0.35, 0.45, 0.9], dtype=torch.float64, requires_grad=True)
    loss.value(rewards).sum().backward()
    torch.testing.assert_close(loss.slope(rewards.detach()), rewards.grad)
    assert HingeLoss(margin=2).value(torch.tensor([1.5, 2.5])).tolist() == [0.5, 0.0]
    assert ClippedLoss(low=0, high=1).value(torch.tensor([-1.0, 3.0])).tolist() == [0.0, -1.0]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("micro", [0, 1])
def test_any_loss_weight_and_view_splits_into_micro_batches(loss: Loss, micro: int) -> None:
    prompts = Prompts(["1", "2", "3"])
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    groups = (Group(weights=weights), Group(views=(("more ", 1.2), ("", -0.7))))
    latents, terms = _latents(6), _terms(0.7, -0.2)
    split_backward(latents, Scorer(_decode, terms, micro), prompts, loss=loss, groups=groups, scale=0.5)
    plain = _latents(6)
    images = _decode(plain)
    wave = (3 * images).sin().mean(dim=(1, 2, 3))
    rewards = 0.5 * torch.cat([wave[:3], 1.2 * 3 * wave[3:] - 0.7 * wave[3:]])
    (0.5 * (torch.cat([weights, torch.ones(3)]) * loss.value(rewards)).mean()).backward()
    torch.testing.assert_close(latents.grad, plain.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", ["rms", "total"])
def test_a_robust_image_is_scored_a_step_against_its_reward(norm: Any) -> None:
    """Delta = -rho grad / |grad| per image, a constant; then the loss's gradient at the moved image."""
    rho, prompts = 0.05, Prompts(["1", "2"])
    latents, plain = _latents(2), _latents(2)
    robust = RobustSettings(image_radius=rho, image_norm=norm)
    figures = split_backward(latents, Scorer(_decode, _terms(2.0), 1, robust), prompts, loss=LinearLoss())
    images = _decode(plain)
    leaf = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(2 * (3 * leaf).sin().mean(dim=(1, 2, 3)).sum(), leaf)
    size = slope.flatten(1).norm(dim=1) / (slope[0].numel() ** 0.5 if norm == "rms" else 1)
    moved = images - rho * slope / size.reshape(-1, 1, 1, 1)
    rewards = [2 * (3 * each).sin().mean(dim=(1, 2, 3)) for each in (images, moved)]
    (-rewards[1].mean()).backward()
    torch.testing.assert_close(latents.grad, plain.grad, rtol=1e-6, atol=1e-10)
    assert figures.evaluations == 4  # both passes score both images
    torch.testing.assert_close(figures.drop, (rewards[0] - rewards[1]).mean().detach(), check_dtype=False)
    assert figures.drop > 1e-4


def test_a_robust_gradient_penalises_the_norm_of_the_gradient() -> None:
    """grad r(x + Delta) = grad (r - rho |grad r|), exactly for a quadratic reward (ALGORITHMS.md, check 16)."""
    generator, rho = torch.Generator().manual_seed(0), 1e-2
    half = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix = half + half.T
    x = torch.randn(1, 12, generator=generator, dtype=torch.float64, requires_grad=True)

    class Quadratic(Reward):
        """x^T M x / 2."""

        name = "quadratic"

        def load(self, device: torch.device) -> Any:
            return lambda images, prompts: 0.5 * (images.flatten(1) @ matrix * images.flatten(1)).sum(1)

    term = LoadedReward(Term("quadratic", Quadratic()), Quadratic().load(CPU), CPU)
    scorer = Scorer(lambda z: z.reshape(-1, 3, 2, 2), [term], 0, RobustSettings(image_radius=rho, image_norm="total"))
    found = scorer.reward_gradient(x, Prompts(["1"])).gradient
    slope = x @ matrix
    (0.5 * (slope * x).sum() - rho * slope.norm()).backward()
    torch.testing.assert_close(found, x.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("others", "image_radius"),
    [({}, 0.0), ({"loss": DistanceLoss(target=1.0), "penalty": PenaltySettings(epsilon=2.0, lora_norm=1.0)}, 0.1)],
)
def test_a_robust_update_goes_against_the_reward_alone_and_applies_its_gradient_where_it_stood(
    make_run, others, image_radius: float
) -> None:
    radius, method = 0.05, DraftK(k=1)
    run = make_run(method, robust=RobustSettings(weight_radius=radius, image_radius=image_radius), **others)
    first = _gradient(make_run(method))
    plain = make_run(method, robust=RobustSettings(image_radius=image_radius), **others)
    norm = torch.stack([g.norm() for g in first]).norm()
    stood = [p.detach().clone() for p in plain.parameters]
    with torch.no_grad():
        for parameter, slope in zip(plain.parameters, first, strict=True):
            parameter.add_(slope * (radius / norm))
    second = _gradient(plain)
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True)) > 1e-4
    with torch.no_grad():
        for parameter, weight, slope in zip(plain.parameters, stood, second, strict=True):
            parameter.copy_(weight)
            parameter.grad = slope
    plain.optimizer.step()
    Backpropagation(method, run).update(run, 1)
    for a, b in zip(run.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_rollout_of_a_robust_update_is_the_same_in_both_passes(make_run) -> None:
    run = make_run(DraftLV(copies=1), robust=RobustSettings(weight_radius=1e-12))
    plain = make_run(DraftLV(copies=1))
    Backpropagation(run.settings.method, run).update(run, 1)
    Backpropagation(plain.settings.method, plain).update(plain, 1)
    for a, b in zip(run.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert torch.equal(run.random.method.get_state(), plain.random.method.get_state())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_epsilon_penalty_agrees_with_central_differences(make_run, checkpointing: bool) -> None:
    beta = 3.0
    run = make_run(DraftK(k=2), penalty=PenaltySettings(epsilon=beta), gradient_checkpointing=checkpointing)
    run.scorer.rewards[0] = replace(run.rewards[0], term=Term("wave0", Wave(), 0.0))
    gradient = _gradient(run)
    draws = run.random.state()
    batch = run.next_batch()
    run.random.restore(draws)
    tuned, base = run.output(batch), run.output(batch, adapted=False)
    rollout, steps = roll_out(tuned, run.grid, batch.noise), (STEPS - 2, STEPS - 1)
    with torch.no_grad():  # the base model's prediction is a constant, as in the published code
        kept = {i: predict(run.grid, rollout.states[i], base(rollout.states[i], i), i)[1] for i in steps}

    def penalty() -> float:
        x, found = rollout.states[STEPS - 2], []
        with torch.no_grad():
            for i in steps:
                found.append((predict(run.grid, x, tuned(x, i), i)[1] - kept[i]).square().mean())
                x, _ = step(tuned, run.grid, x, i)
        return beta * float(sum(found)) / 2

    generator, values = torch.Generator().manual_seed(2), []
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in run.parameters]
    exact = float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
    h = 1e-4
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, d in zip(run.parameters, direction, strict=True):
                parameter.add_(d, alpha=sign * h)
        values.append(penalty())
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(exact, rel=1e-5)


def test_the_penalties_vanish_at_the_base_model(make_run) -> None:
    plain = make_run(DraftK(k=1))
    kept = make_run(DraftK(k=1), penalty=PenaltySettings(epsilon=5.0))
    for run in (plain, kept):
        with torch.no_grad():
            for parameter in run.parameters[1::2]:
                parameter.zero_()
    for a, b in zip(_gradient(plain), _gradient(kept), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-15)
    assert float(lora_norm(kept.model.network).detach()) == 0


def test_the_lora_norm_is_that_of_the_products(make_run) -> None:
    run = make_run(DraftK(k=1), penalty=PenaltySettings(lora_norm=0.3))
    pairs = list(zip(run.parameters[::2], run.parameters[1::2], strict=True))
    plain = make_run(DraftK(k=1))
    expected = sum((b @ a).square().sum() for a, b in pairs)
    torch.testing.assert_close(lora_norm(run.model.network), expected)
    slopes = torch.autograd.grad(0.3 * expected, run.parameters)
    for with_penalty, without, slope in zip(_gradient(run), _gradient(plain), slopes, strict=True):
        torch.testing.assert_close(with_penalty, without + slope, rtol=1e-7, atol=1e-10)


def test_guidance_multiplies_what_both_branches_share_only_where_one_is_detached() -> None:
    """d out = g d o_c - (g - 1) d o_u: a change common to both has factor 1, and g where o_u is detached."""
    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    conditioning = Conditioning({"text": torch.ones(2, 1, 1, dtype=torch.float64)})
    grid = make_grid(FlowSchedule(), SamplerSettings(num_inference_steps=2))
    calls: list[int] = []

    def net(x: Tensor, time: Tensor, c: Conditioning) -> Tensor:
        calls.append(len(x))
        return theta * x

    slopes = {}
    for policy in ("both", "detached", "off"):
        for scale in (1.0, 3.0, 7.0):
            output = guide(net, grid, conditioning, conditioning[:1], scale, gradient=policy)  # type: ignore[arg-type]
            (slope,) = torch.autograd.grad(output(torch.ones(2, 1, dtype=torch.float64), 0).sum(), theta)
            slopes[policy, scale] = float(slope) / 2
    assert [slopes["both", g] for g in (1.0, 3.0, 7.0)] == [1, 1, 1]
    assert [slopes["detached", g] for g in (1.0, 3.0, 7.0)] == [1, 3, 7]
    assert [slopes["off", g] for g in (1.0, 3.0, 7.0)] == [1, 1, 1]
    calls.clear()
    guide(net, grid, conditioning, conditioning[:1], 3.0, gradient="off")(torch.ones(2, 1, dtype=torch.float64), 0)
    assert calls == [2]


@pytest.mark.parametrize("policy", ["detached", "off"])
def test_guidance_without_gradient_in_one_branch_is_another_gradient_of_the_same_or_another_value(
    make_run, policy: str
) -> None:
    run, both = make_run(DraftK(k=1), cfg_gradient=policy), make_run(DraftK(k=1))
    first, second = torch.cat([g.flatten() for g in _gradient(run)]), torch.cat([g.flatten() for g in _gradient(both)])
    cosine = float(torch.nn.functional.cosine_similarity(first, second, dim=0))
    assert cosine < 0.999


def test_the_base_model_is_one_context_away_and_comes_back(make_run) -> None:
    run = make_run(DraftK(k=1))
    batch = run.next_batch()
    adapted, base = run.output(batch)(batch.noise, 0), run.output(batch, adapted=False)(batch.noise, 0)
    assert float((adapted - base).abs().max()) > 1e-6
    with torch.no_grad():
        for parameter in run.parameters[1::2]:
            parameter.zero_()
    torch.testing.assert_close(run.output(batch)(batch.noise, 0), base, rtol=0, atol=0)
    with lora_off(run.model.network):
        assert not any(parameter.requires_grad for parameter in run.model.network.parameters())
    assert all(parameter.requires_grad for parameter in run.parameters)


def test_accumulated_batches_are_averaged(make_run) -> None:
    run, once = make_run(DraftK(k=1), gradient_accumulation_steps=2), make_run(DraftK(k=1))
    accumulate_and_step(run, Backpropagation(run.settings.method, run).accumulate, 1)
    first = Backpropagation(once.settings.method, once)
    once.optimizer.zero_grad(set_to_none=True)
    for _ in range(2):
        first.accumulate(once, 0.5)
    for a, b in zip(run.parameters, once.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.slow
def test_a_compiled_rollout_leaves_the_gradient_unchanged(make_run) -> None:
    plain, compiled = make_run(DraftLV(copies=1)), make_run(DraftLV(copies=1))
    calls: list[bool] = []
    prefix = torch.compile(compiled.model.denoise)

    def denoise(x: Tensor, t: Tensor, c: Conditioning) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return prefix(x, t, c)

    compiled = replace(compiled, no_grad_denoiser=denoise)
    for a, b in zip(_gradient(plain), _gradient(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)
    assert calls == [False] * (STEPS - 1)
