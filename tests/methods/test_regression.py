"""Adjoint Matching and VGG-Flow in training: they learn, their gradient is the stated one, they go on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.diffusion.sampling import predict
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.diffusion.surrogate import roll_out
from draft.errors import DraftError
from draft.methods import adjoint_matching, vgg_flow
from draft.methods.rules import make_rule
from draft.methods.values import AdjointMatching, VGGFlow
from draft.methods.values.problems import method_problems
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.scoring.objective import HingeLoss
from draft.training.run import Run, prepare
from draft.training.settings import CheckpointSettings, TrainSettings
from draft.training.train import train
from draft.types import Prompts

PROMPTS = Prompts(["a cat", "a dog", "two birds"])
MATCHING = AdjointMatching(early=1, late=1, reward_multiplier=30.0)
VGG = VGGFlow(beta=3.0, share=0.5)
SETTINGS = TrainSettings(
    sampler=SamplerSettings(num_inference_steps=4, guidance_scale=2.0),
    lora=LoraSettings(rank=2),
    learning_rate=1e-2,
    weight_decay=0.0,
    max_steps=6,
    batch_size=2,
    checkpoint=CheckpointSettings(every=2),
    device="cpu",
)


class Bright(Reward):
    """How bright an image is."""

    name = "bright"

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


def _settings(method: AdjointMatching | VGGFlow, **options: Any) -> TrainSettings:
    sampler = replace(SETTINGS.sampler, eta=1.0 if isinstance(method, AdjointMatching) else 0.0)
    return replace(SETTINGS, method=method, **{"sampler": sampler, **options})


def _train(settings: TrainSettings, model: Path, folder: Path, progress: Any = None) -> list[dict[str, float]]:
    train(
        settings, model=str(model), prompts=PROMPTS, terms=[Term("bright", Bright())], seed=0, folder=folder,
        progress=progress or Silent(),
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _run(settings: TrainSettings, model: Path) -> Run:
    """A run whose adapter is not the base model: B = 0 would leave A without gradient."""
    run = prepare(settings, str(model), PROMPTS, [Term("bright", Bright())], 0, Silent())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return run


@pytest.mark.parametrize(
    ("method", "figure"),
    [
        (replace(MATCHING, reward_multiplier=1e5), "unmatched"),  # the tiny model's brightness has a gradient of 3e-4
        (replace(VGG, beta=1e5, schedule="linear"), "loss"),
    ],
    ids=["adjoint_matching", "vgg_flow"],
)
def test_the_reward_rises_and_the_regression_gets_closer(tiny_model: Path, tmp_path: Path, method, figure: str) -> None:
    sampler = replace(_settings(method).sampler, guidance_scale=1.0)
    settings = _settings(method, max_steps=30, learning_rate=2e-2, batch_size=4, sampler=sampler)
    rows = _train(settings, tiny_model, tmp_path)

    def means(key: str) -> tuple[float, float]:
        return sum(row[key] for row in rows[:5]) / 5, sum(row[key] for row in rows[-5:]) / 5

    first, last = means("bright")
    assert last > first + 0.003
    first, last = means(figure)
    assert last < 0.95 * first


def test_adjoint_matching_starts_unmatched(tiny_model: Path, tmp_path: Path) -> None:
    rows = _train(_settings(MATCHING, max_steps=1), tiny_model, tmp_path)
    assert rows[0]["unmatched"] == pytest.approx(1.0, rel=1e-5)  # the terms of the base model itself
    assert 0 <= rows[0]["dropped"] < 1 and rows[0]["adjoint_growth"] > 0


def test_vgg_flow_with_beta_0_stays_the_base_model(tiny_model: Path, tmp_path: Path) -> None:
    rows = _train(_settings(replace(VGG, beta=0.0), max_steps=2), tiny_model, tmp_path)
    assert rows[0]["loss"] < 1e-12 and rows[0]["shift"] == 0


def test_the_gradient_of_adjoint_matching_is_that_of_its_loss_at_once(tiny_model: Path) -> None:
    method = replace(MATCHING, early=2, outliers="keep", prompt_dropout=0.0)
    settings = _settings(method, max_grad_norm=0.0, gradient_accumulation_steps=2)
    made, again = _run(settings, tiny_model), _run(settings, tiny_model)
    make_rule(method, made).update(made, 0)
    parts = []
    for _ in range(2):
        batch, grid = again.next_batch(), again.grid
        states = roll_out(again.output(batch), grid, batch.noise, batch.fresh).states
        gradient = again.scorer.reward_gradient(states[-1], batch.prompts).gradient
        assert gradient is not None
        base, tuned = (again.output(batch, adapted=adapted, guided=False, recorded=True) for adapted in (False, True))
        chosen = adjoint_matching.draw_steps(method, grid, again.random.method)
        for target in adjoint_matching.lean_adjoint(base, grid, states, -30 * gradient):
            if target.step in chosen:
                mean = adjoint_matching.step_mean(tuned, grid, states[target.step], target.step)
                parts.append(adjoint_matching.matching_loss(mean, target, grid.std[target.step]))
    assert len(parts) == 6
    _same(made, torch.autograd.grad(torch.cat(parts).mean(), again.parameters))


def test_the_gradient_of_vgg_flow_is_that_of_its_loss_at_once(tiny_model: Path) -> None:
    settings = _settings(VGG, max_grad_norm=0.0)
    made, again = _run(settings, tiny_model), _run(settings, tiny_model)
    make_rule(VGG, made).update(made, 0)
    batch, grid = again.next_batch(), again.grid
    rollout = roll_out(again.output(batch), grid, batch.noise)
    parts = []
    for i in vgg_flow.draw_steps(VGG, grid.steps, again.random.method):
        clean, _ = predict(grid, rollout.states[i], rollout.outs[i], i)
        gradient = again.scorer.reward_gradient(clean, batch.prompts).gradient
        assert gradient is not None
        q, _ = vgg_flow.capped(gradient, VGG.cap)
        with torch.no_grad():
            wanted = vgg_flow.target(VGG, grid, again.output(batch, adapted=False)(rollout.states[i], i), q, i)
        out = again.output(batch, gradient="detached", recorded=True)(rollout.states[i], i)
        parts.append(vgg_flow.velocity_loss(out, wanted))
    assert len(parts) > 1
    _same(made, torch.autograd.grad(torch.cat(parts).mean(), again.parameters))


def _same(run: Run, expected: tuple[Tensor, ...]) -> None:
    for parameter, gradient in zip(run.parameters, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    assert any(float(gradient.abs().max()) > 0 for gradient in expected)


class Stop(Silent):
    """A reporter that interrupts the training after 3 updates."""

    def __init__(self) -> None:
        self.left = 3

    def advance(self, count: int = 1, values: Any = None) -> None:
        self.left -= count
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", [replace(MATCHING, prompt_dropout=0.5), VGG], ids=["adjoint_matching", "vgg_flow"])
def test_an_interrupted_training_ends_with_the_same_bytes(tiny_model: Path, tmp_path: Path, method) -> None:
    settings = _settings(method, max_steps=4)
    whole = _train(settings, tiny_model, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(settings, tiny_model, tmp_path / "cut", Stop())
    cut = _train(settings, tiny_model, tmp_path / "cut")
    adapters = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "cut")]
    assert adapters[0] == adapters[1]
    assert [row | {"seconds": 0} for row in cut] == [row | {"seconds": 0} for row in whole]


def test_what_the_rules_remember_comes_back(tiny_model: Path) -> None:
    for method, key in ((MATCHING, "threshold"), (VGG, "cap")):
        run = _run(_settings(method), tiny_model)
        rule = make_rule(method, run)
        before = rule.state()[key]
        rule.update(run, 0)
        assert rule.state()[key] != before and rule.state()[key] > 0
        other = make_rule(method, run)
        other.restore(rule.state())
        assert other.state() == rule.state()


def test_the_next_cap_is_the_quantile_of_this_updates_norms_unless_it_stays(tiny_model: Path, tmp_path: Path) -> None:
    rows = _train(_settings(VGG, max_steps=3), tiny_model, tmp_path / "a")
    assert rows[0]["cap"] == 1 and 0 < rows[1]["cap"] != rows[2]["cap"]
    rows = _train(_settings(replace(VGG, cap=0.25, cap_quantile=None), max_steps=3), tiny_model, tmp_path / "b")
    assert [row["cap"] for row in rows] == [0.25] * 3


@pytest.mark.parametrize(("outliers", "options"), [("clamp", {"clamp": 1e-12}), ("keep", {})])
def test_outliers_are_clamped_or_kept(tiny_model: Path, tmp_path: Path, outliers: Any, options: dict) -> None:
    method = replace(MATCHING, outliers=outliers, **options)
    rows = _train(_settings(method, max_steps=1), tiny_model, tmp_path)
    if outliers == "clamp":  # every term is above, so none teaches
        assert rows[0]["dropped"] == 1 and rows[0]["grad_norm"] == 0
        assert rows[0]["loss"] == pytest.approx(1e-12 * 30**2)
    else:
        assert rows[0]["dropped"] == 0 and rows[0]["grad_norm"] > 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            _settings(MATCHING, sampler=SamplerSettings(eta=0.5)),
            "sampler.eta must be 1 for adjoint_matching: "
            "its regression has the right solution under memoryless noise only (got 0.5)",
        ),
        (
            _settings(VGG, sampler=SamplerSettings(eta=1.0)),
            "sampler.eta must be 0 for vgg_flow: it follows the deterministic sampler's flow (got 1)",
        ),
        (
            _settings(VGG, loss=HingeLoss(margin=1.0)),
            "loss has no effect with vgg_flow, which does not backpropagate one reward per sample",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: TrainSettings, problem: str) -> None:
    assert [each.what for each in method_problems(settings)] == [problem]


@pytest.mark.parametrize(("method", "eta"), [(MATCHING, 0.5), (VGG, 1.0)], ids=["adjoint_matching", "vgg_flow"])
def test_a_training_with_the_wrong_noise_is_refused(tiny_model: Path, tmp_path: Path, method, eta: float) -> None:
    settings = _settings(method, sampler=replace(SETTINGS.sampler, eta=eta))
    with pytest.raises(DraftError, match=rf"sampler.eta must be [01] for {method.kind}: .+ \(got {eta:g}\)"):
        _train(settings, tiny_model, tmp_path)


def test_one_graph_is_held_at_a_time(tiny_model: Path) -> None:
    """Twice the steps, no more saved activations at the peak."""

    def peak(method: AdjointMatching | VGGFlow, build: Callable[..., TrainSettings] = _settings) -> int:
        run = _run(build(method), tiny_model)
        rule, held, most = make_rule(method, run), 0, 0

        class Saved:
            """A saved tensor, counted while autograd holds it."""

            def __init__(self, tensor: Tensor) -> None:
                nonlocal held, most
                self.tensor = tensor
                held += tensor.numel()
                most = max(most, held)

            def __del__(self) -> None:
                nonlocal held
                held -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            rule.update(run, 0)
        return most

    for few, many in ((replace(MATCHING, early=0), replace(MATCHING, early=2)), (VGGFlow(), VGGFlow(share=1.0))):
        assert peak(many) <= peak(few) * 1.01
