"""ReFL, AlignProp and DRTune in training: each update against that of its loss written out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.adapters.files.formats import denoiser_factors, read_adapter
from draft.diffusion.families import load_text_to_image
from draft.diffusion.generate import generate_images
from draft.diffusion.lora import load_lora
from draft.methods.modules import draw_plan
from draft.methods.rules import make_rule
from draft.methods.values import AlignProp, DRTune, ReFL
from draft.scoring.objective import PenaltySettings, RobustSettings
from draft.training.run import Run
from draft.training.settings import CheckpointSettings

DRAWN: list[Any] = [ReFL(window=3), AlignProp(), DRTune(k=2, stop=0.67)]


@pytest.mark.parametrize("method", [ReFL(window=2), *DRAWN[1:]], ids=lambda method: method.kind)
def test_the_reward_rises_and_against_its_weight_it_falls(
    toy_runs, tiny_model: Path, tmp_path: Path, method: Any
) -> None:
    settings = replace(
        toy_runs.SETTINGS, method=method, learning_rate=0.05, weight_decay=0.0, gradient_accumulation_steps=1,
        max_steps=8,
        checkpoint=CheckpointSettings(every=0),
    )  # fmt: skip
    base = load_text_to_image(str(tiny_model), device=toy_runs.CPU, dtype=torch.float32)

    def brightness(weight: float) -> float:
        model, folder = copy.deepcopy(base), tmp_path / str(weight)
        if weight:
            toy_runs.trained(settings, tiny_model, folder, weight=weight)
            load_lora(model.network, denoiser_factors(read_adapter(folder / "adapter.safetensors")), name="trained")
        return float(torch.cat(list(generate_images(model, ["a cat"] * 8, range(8), settings.sampler))).square().mean())

    brighter, plain, darker = (brightness(weight) for weight in (1.0, 0.0, -1.0))
    assert brighter > plain + 0.002 > darker + 0.004, (brighter, plain, darker)


def _by_hand(run: Run) -> Tensor:
    """The loss of a batch under ReFL, AlignProp or DRTune with everything around it, written out."""
    settings, grid = run.settings, run.grid
    method = settings.method
    batch = run.next_batch()
    plan = draw_plan(method, grid.steps, run.random.method)  # type: ignore[arg-type]
    policy, detached_input = settings.cfg_gradient, isinstance(method, DRTune)
    blank, base, far = run.unconditional.expand(len(batch.conditioning)), run.output(batch, adapted=False), []
    x = clean = batch.noise
    for i in range(grid.steps):
        recorded, time = plan.recorded[i], torch.tensor(grid.times[i])
        if plan.cut[i]:
            x = x.detach()
        seen = x.detach() if detached_input or not recorded else x
        with torch.set_grad_enabled(recorded):
            c, u = (run.model.denoise(seen, time, text) for text in (batch.conditioning, blank))
            if policy == "detached":
                u = u.detach()
            e = c if recorded and policy == "off" else u + settings.sampler.guidance_scale * (c - u)
        if recorded:
            far.append((e - base(seen, i).detach()).square().mean())
        clean = (x - grid.sigma[i] * e) / grid.alpha[i]
        if i == plan.stop:
            break
        x = grid.next_alpha[i] * clean + grid.next_sigma[i] * e
    images = run.model.decode(clean)
    if radius := settings.robust.image_radius:
        slope = 2 * images.detach() / images[0].numel()
        images = images - radius * slope / slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    loss = -images.square().mean(dim=(1, 2, 3)).mean() + settings.penalty.epsilon * torch.stack(far).mean()
    pairs = zip(run.parameters[::2], run.parameters[1::2], strict=True)
    return loss + settings.penalty.lora_norm * sum((b @ a).square().sum() for a, b in pairs)


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro_batches": {"micro_batch_size": 1, "gradient_checkpointing": True},
    "epsilon": {"penalty": PenaltySettings(epsilon=3.0)},
    "lora_norm": {"penalty": PenaltySettings(lora_norm=0.01)},
    "image_radius": {"robust": RobustSettings(image_radius=0.05)},
    "detached": {"cfg_gradient": "detached"},
    "off": {"cfg_gradient": "off"},
}


@pytest.mark.parametrize(
    ("method", "seed", "recorded", "stop"),
    [
        (DRAWN[0], 15, (False, True, False), 1),
        (DRAWN[1], 15, (False, True, True), None),
        (DRAWN[2], 15, (True, True, False), 1),
        (DRAWN[2], 6, (True, True, False), 2),
    ],
    ids=["refl", "alignprop", "drtune", "drtune_later"],
)
def test_a_gradient_through_drawn_steps_is_that_of_the_loss_written_out(
    make_run, method: Any, seed: int, recorded: tuple[bool, ...], stop: int | None
) -> None:
    run = make_run(method, seed=seed, learning_rate=1e-30, gradient_accumulation_steps=1)
    draws, plain = run.random.state(), []
    plan = draw_plan(method, 3, run.random.method)
    run.random.restore(draws)
    assert (plan.recorded, plan.stop) == (recorded, stop)
    for name, change in CHANGES.items():
        settings = replace(run.settings, **{"micro_batch_size": 0} | change)
        scorer = replace(run.scorer, micro_batch_size=settings.micro_batch_size, robust=settings.robust)
        changed = replace(run, settings=settings, scorer=scorer)
        expected = torch.autograd.grad(_by_hand(changed), run.parameters)
        run.random.restore(draws)
        make_rule(method, changed).update(changed, 0)
        run.random.restore(draws)
        for parameter, slope in zip(run.parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, slope, rtol=1e-7, atol=1e-7 * float(slope.abs().max()))
        plain = plain or list(expected)
        far = torch.stack([(a - b).norm() / b.norm() for a, b in zip(expected, plain, strict=True)])
        assert bool((far > 1e-3).all()) != (name in ("plain", "micro_batches")), name


@pytest.mark.parametrize("method", DRAWN, ids=lambda method: method.kind)
def test_the_gradient_at_the_worst_weights_nearby_is_applied_where_they_stood(toy_runs, make_run, method: Any) -> None:
    radius, once = 0.5, {"gradient_accumulation_steps": 1}
    made, again = make_run(method, robust=RobustSettings(weight_radius=radius), **once), make_run(method, **once)
    stood = [parameter.detach().clone() for parameter in again.parameters]
    make_rule(method, made).update(made, 0)
    draws = again.random.state()
    first = torch.autograd.grad(_by_hand(again), again.parameters)
    length = torch.stack([slope.norm() for slope in first]).norm()
    with torch.no_grad():
        for parameter, slope in zip(again.parameters, first, strict=True):
            parameter.add_(radius * slope / length)
    again.random.restore(draws)
    second = torch.autograd.grad(_by_hand(again), again.parameters)
    assert all(float((a - b).norm() / b.norm()) > 1e-3 for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        for parameter, weight, slope in zip(again.parameters, stood, second, strict=True):
            parameter.copy_(weight)
            parameter.grad = slope
    again.optimizer.step()
    toy_runs.assert_same(made, again)
