"""The sampler against diffusers' own pipeline, and the facts about its grids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from draft.diffusion.generate import generate_images, sample_images, seeded_noise
from draft.diffusion.lora import add_lora
from draft.diffusion.schedule import Schedule, last_step_sensitivity, make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import DraftError

SD = Schedule(
    tuple((1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).tolist()),
    steps_offset=1,
)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("final", ["one", "first_alpha"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [4, 7, 10])
def test_images_equal_those_of_diffusers_pipeline(
    load, tiny_folders: dict[str, Path], prediction: str, final: str, spacing: str, steps: int
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(str(tiny_folders[prediction]), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing=spacing, set_alpha_to_one=final == "one"
    )
    if (spacing, final, steps) == ("trailing", "one", 7):
        # Here diffusers would land on time 0 in spite of set_alpha_to_one; we land on the clean image.
        pipeline.scheduler.alphas_cumprod[0] = 1.0
    noise = seeded_noise([1, 2], (4, 8, 8))
    arguments = {"num_inference_steps": steps, "guidance_scale": 5.0, "negative_prompt": ["bad"] * 2}
    with torch.no_grad():
        theirs = pipeline(["a cat", "two dogs"], latents=noise, output_type="pt", **arguments).images
    model = load(prediction, torch.float32)
    settings = SamplerSettings(
        num_inference_steps=steps,
        guidance_scale=5.0,
        negative_prompt="bad",
        spacing=spacing,
        final=final,  # type: ignore[arg-type]
    )
    size = model.default_size
    texts, bad = model.encode(["a cat", "two dogs"], size), model.unconditional("bad", size)
    ours = sample_images(model, texts, bad, noise, settings, size)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-4)


def test_a_grid_that_diffusers_ends_early_ends_where_the_setting_says() -> None:
    # 1000 // 15 = 66 = t_15: diffusers lands on time 0 even with set_alpha_to_one, ours on the clean image.
    assert make_grid(SD, SamplerSettings(num_inference_steps=15)).next_sigma[-1] == 0
    assert make_grid(SD, SamplerSettings(num_inference_steps=15, final="first_alpha")).next_sigma[-1] > 0.02


@pytest.mark.parametrize(
    ("spacing", "final", "steps", "time", "sensitivity"),
    [
        ("trailing", "one", 50, 19, 0.134),
        ("trailing", "first_alpha", 50, 19, 0.105),
        ("trailing", "one", 20, 49, 0.223),
        ("leading", "one", 50, 1, 0.041),
        ("leading", "first_alpha", 50, 1, 0.012),
        ("linspace", "one", 50, 0, 0.029),
        ("linspace", "first_alpha", 50, 0, 0.0),
    ],
)
def test_the_last_steps_sensitivity_is_the_known_figure(
    spacing: str, final: str, steps: int, time: int, sensitivity: float
) -> None:
    grid = make_grid(SD, SamplerSettings(num_inference_steps=steps, spacing=spacing, final=final))  # type: ignore[arg-type]
    assert grid.times[-1] == time
    assert last_step_sensitivity(grid) == pytest.approx(sensitivity, abs=6e-4)


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(DraftError, match=r"num_inference_steps must be at most 1000.*\(got 1001\)"):
        make_grid(SD, SamplerSettings(num_inference_steps=1001))
    with pytest.raises(DraftError, match="beyond the last, 999"):
        make_grid(SD, SamplerSettings(num_inference_steps=1000, spacing="leading"))
    with pytest.raises(DraftError, match="alpha = 0"):
        make_grid(Schedule((0.9, 0.5, 0.0)), SamplerSettings(num_inference_steps=3))


def test_an_images_noise_depends_on_its_seed_alone(load) -> None:
    model = load(dtype=torch.float32)
    settings = SamplerSettings(num_inference_steps=2)
    prompts, seeds = ["a", "b", "c"], [3, 4, 5]
    together = torch.cat(list(generate_images(model, prompts, seeds, settings, batch_size=3)))
    alone = torch.cat(list(generate_images(model, prompts, seeds, settings, batch_size=1)))
    assert together.shape == (3, 3, 16, 16) and together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=0.0, atol=1e-5)
    with pytest.raises(DraftError, match=r"one seed per prompt, 3 \(got 1\)"):
        list(generate_images(model, prompts, [1], settings))


def test_a_fresh_lora_leaves_the_images_as_they_are(load) -> None:
    model, settings = load(dtype=torch.float32), SamplerSettings(num_inference_steps=2)
    before = next(generate_images(model, ["a"], [0], settings))
    add_lora(model.network, LoraSettings(rank=2), seed=0)
    assert torch.equal(next(generate_images(model, ["a"], [0], settings)), before)


def test_bfloat16_gives_nearly_the_same_image_and_a_float32_lora(load) -> None:
    settings = SamplerSettings(num_inference_steps=2)
    exact = next(generate_images(load(dtype=torch.float32), ["a"], [0], settings))
    model = load(dtype=torch.bfloat16)
    add_lora(model.network, LoraSettings(rank=2), seed=0)
    coarse = next(generate_images(model, ["a"], [0], settings))
    assert coarse.dtype == torch.float32
    assert (coarse - exact).abs().mean() < 0.02
    assert {p.dtype for p in model.network.parameters() if p.requires_grad} == {torch.float32}
