"""Flow matching: its grids, the diffusion sampler in other coordinates, and a trained model in two dimensions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from draft.diffusion.families import load_text_to_image
from draft.diffusion.families.sd import read_schedule
from draft.diffusion.generate import generate_images
from draft.diffusion.linear import linear_form
from draft.diffusion.sampling import move, predict, sample
from draft.diffusion.schedule import FlowSchedule, make_grid, step_sensitivities
from draft.diffusion.settings import SamplerSettings
from draft.diffusion.surrogate import roll_out, sample_with_plan
from draft.errors import DraftError
from draft.methods.modules import draw_plan
from draft.methods.values import AlignProp, Draft, DraftK, DraftLV, DRTune, ReFL


def test_a_flow_grid_is_shifted_and_lands_on_the_clean_image(toys) -> None:
    grid = toys.toy_grid(25, "flow")
    assert (grid.alpha[0], grid.sigma[0]) == (0.0, 1.0) and grid.next_sigma[-1] == 0
    assert grid.sigma[-1] == pytest.approx(3 * 0.04 / (1 + 2 * 0.04))  # 0.111: linspace(1, 1/N, N) with shift 3
    assert grid.next_sigma[:-1] == grid.sigma[1:] and grid.times[0] == 1000
    assert toys.toy_grid(25, "flow", spacing="linspace").sigma[-1] == pytest.approx(0.0089, abs=5e-5)
    for option, text in (({"final": "first_alpha"}, "sampler.final"), ({"spacing": "leading"}, "sampler.spacing")):
        with pytest.raises(DraftError, match=f"{text} must be .* flow-matching model"):
            toys.toy_grid(5, "flow", **option)


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_the_grids_of_a_flow_are_those_of_diffusers(toys, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for spacing, given in (("linspace", None), ("trailing", np.linspace(1.0, 1 / steps, steps))):
        own = {"sigmas": given} if given is not None else {"num_inference_steps": steps}
        scheduler.set_timesteps(**own)
        grid = toys.toy_grid(steps, "flow", spacing=spacing)
        torch.testing.assert_close(torch.tensor([*grid.sigma, 0.0]), scheduler.sigmas.float(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(torch.tensor(grid.times), scheduler.timesteps.float(), rtol=1e-6, atol=1e-4)


def test_the_euler_step_of_a_flow_is_the_common_step(toys) -> None:
    grid, x, v = toys.toy_grid(7, "flow"), toys.noise(2, 5), toys.noise(2, 5, seed=1)
    for i in range(7):
        after = move(grid, *predict(grid, x, v, i), i)
        torch.testing.assert_close(after, x + (grid.next_sigma[i] - grid.sigma[i]) * v, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("frozen", ["epsilon", "velocity"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_the_straight_path_adds_up_to_the_rollout(toys, prediction: str, frozen: str) -> None:
    grid, net, x = toys.toy_grid(7, prediction), toys.Linear(3, 7, nonlinear=True), toys.noise(2, 3)
    if prediction == "flow" and frozen == "epsilon":
        grid = replace(grid, alpha=(1e-3, *grid.alpha[1:]), sigma=(0.999, *grid.sigma[1:]))
    form, rollout = linear_form(grid, frozen), roll_out(net, grid, x)  # type: ignore[arg-type]
    for start, stop in ((0, 7), (2, 5), (3, 4)):
        carry, weights = form.weights(start, stop)
        path = carry * rollout.states[start]
        for i, weight in zip(range(start, stop), weights, strict=True):
            path = path + weight * form.slope(rollout.states[i], rollout.outs[i], i)
        torch.testing.assert_close(path, rollout.states[stop], rtol=1e-9, atol=1e-11)


def test_every_diffusion_model_is_a_flow_model_in_other_coordinates(toys) -> None:
    """With z = x / (alpha + sigma) at s = sigma / (alpha + sigma), u = e - x0 is the velocity."""
    grid, net, x = toys.toy_grid(6), toys.Linear(3, 6, nonlinear=True), toys.noise(2, 3)
    scale = [a + s for a, s in zip(grid.alpha, grid.sigma, strict=True)]
    z = x / scale[0]
    for i in range(6):
        x0, e = predict(grid, x, net(x, i), i)
        x = move(grid, x0, e, i)
        s, landing = grid.sigma[i] / scale[i], grid.next_alpha[i] + grid.next_sigma[i]
        z = z + (grid.next_sigma[i] / landing - s) * (e - x0)
        torch.testing.assert_close(z, x / landing, rtol=1e-12, atol=1e-13)
        if i < 5:
            z = z * landing / scale[i + 1]  # diffusers' landing levels are one training time off here


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_step_sensitivities_are_the_derivatives(toys, prediction: str) -> None:
    for eta in (0.0, 1.0):
        grid, x = toys.toy_grid(6, prediction, eta=eta), toys.noise(1, 1)
        for i, sensitivity in enumerate(step_sensitivities(grid)):
            out = toys.noise(1, 1, seed=1).requires_grad_()
            (slope,) = torch.autograd.grad(move(grid, *predict(grid, x, out, i), i).sum(), out)
            assert abs(float(slope)) == pytest.approx(sensitivity, rel=1e-9)


def test_the_stochastic_step_keeps_the_marginal(toys) -> None:
    """With the true noise, std^2 + (what is kept of e)^2 = sigma'^2; in flow matching std^2 / h -> 2 s / (1 - s)."""
    for prediction in ("epsilon", "flow"):
        grid = toys.toy_grid(10, prediction, eta=1.0)
        for i in range(10):
            x0, e, z = (toys.noise(4000, seed=k) for k in range(3))
            moved = move(grid, x0, e, i, z) - grid.next_alpha[i] * x0
            assert float(moved.square().mean()) == pytest.approx(grid.next_sigma[i] ** 2, rel=0.15, abs=1e-12)
    fine = make_grid(FlowSchedule(), SamplerSettings(num_inference_steps=20000, eta=1.0))
    s = fine.sigma[10000]
    assert fine.std[10000] ** 2 / (s - fine.next_sigma[10000]) == pytest.approx(2 * s / (1 - s), rel=1e-3)


class Velocity(nn.Module):
    """A small rectified flow in two dimensions: v(x, s)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))

    def forward(self, x: Tensor, s: float) -> Tensor:
        return self.net(torch.cat([x, torch.full_like(x[:, :1], s)], dim=1))


@pytest.fixture(scope="module")
def trained() -> Velocity:
    """Trained by flow matching (arXiv 2210.02747) on a ring of radius 1, in a few seconds."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Velocity().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for k in range(800):
        angle = 2 * math.pi * torch.rand(256, generator=generator, dtype=torch.float64)
        x0 = torch.stack([angle.cos(), angle.sin()], dim=1)
        e = torch.randn(256, 2, generator=generator, dtype=torch.float64)
        s = torch.rand(256, 1, generator=generator, dtype=torch.float64)
        v = model.net(torch.cat([(1 - s) * x0 + s * e, s], dim=1))
        loss = (v - (e - x0)).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - k / 800)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


def test_a_trained_flow_samples_its_data_and_learns_a_reward_under_each_method(trained: Velocity, toys) -> None:
    grid = make_grid(FlowSchedule(), SamplerSettings(num_inference_steps=12))
    noise = toys.noise(256, 2)
    plain = sample(lambda x, i: trained(x, grid.sigma[i]), grid, noise)
    assert float((plain.norm(dim=1) - 1).abs().mean()) < 0.3 < 0.5 < float((noise.norm(dim=1) - 1).abs().mean())
    for method in (Draft(), DraftK(k=2), DraftLV(copies=2)):
        shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # the adapter: a bias of the velocity
        optimizer = torch.optim.Adam([shift], lr=0.05)
        net = toys.both(lambda x, i, shift=shift: trained(x, grid.sigma[i]) + shift)
        plan = draw_plan(method, 12, torch.Generator())
        for k in range(30):
            copies = toys.noise(64 * plan.copies, 2, seed=100 + k) if plan.copies else None
            latents = sample_with_plan(net, grid, plan, toys.noise(64, 2, seed=k), copy_noise=copies)
            optimizer.zero_grad()
            (-latents[:, 0].mean()).backward()
            optimizer.step()
        with torch.no_grad():
            better = sample(net.no_grad, grid, noise)[:, 0].mean()
        assert float(better - plain[:, 0].mean()) > 0.3


@pytest.mark.parametrize(
    "method",
    [
        Draft(),
        DraftK(k=3),
        DraftLV(copies=1),
        ReFL(window=5),
        AlignProp(),
        DRTune(k=3, stop=0.6, frozen="velocity"),
    ],
    ids=str,
)
def test_the_gradient_through_a_trained_flow_agrees_with_central_differences(trained: Velocity, toys, method) -> None:
    grid = make_grid(FlowSchedule(shift=3.0), SamplerSettings(num_inference_steps=8))
    plan = draw_plan(method, 8, torch.Generator().manual_seed(1))
    weight, noise, copies = trained.net[2].weight, toys.noise(4, 2), toys.noise(4, 2, seed=1)
    assert plan.recorded_steps > (not isinstance(method, DraftLV | ReFL))

    def net(x: Tensor, i: int) -> Tensor:
        return trained(x, grid.sigma[i])

    weight.requires_grad_(True)
    try:
        latents = sample_with_plan(toys.both(net), grid, plan, noise, copy_noise=copies if plan.copies else None)
        (gradient,) = torch.autograd.grad(latents.sin().sum(1).mean(), weight)
    finally:
        weight.requires_grad_(False)
    held, direction = toys.held(plan, grid, net, noise, copies), toys.noise(*weight.shape, seed=3)
    slope = toys.slope_of(lambda: held().sin().sum(1).mean(), [weight], [direction])
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6)
    assert abs(slope) > 1e-6


def test_a_flow_pipeline_in_diffusers_format_is_loaded_and_sampled(tiny_folders, tmp_path) -> None:
    """A UNet that predicts a velocity, its scheduler FlowMatchEulerDiscreteScheduler."""
    import json
    import shutil

    folder = shutil.copytree(tiny_folders["epsilon"], tmp_path / "flow")
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    model = load_text_to_image(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    assert model.noise == FlowSchedule(shift=3.0)
    (images,) = generate_images(model, ["a cat"], [0], SamplerSettings(num_inference_steps=3, guidance_scale=2.0))
    assert images.shape == (1, 3, 16, 16) and bool(images.isfinite().all())
    with pytest.raises(DraftError, match="use_dynamic_shifting"):
        read_schedule(config | {"use_dynamic_shifting": True})
