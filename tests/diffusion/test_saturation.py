"""Clipped values: the same images either way, and a gradient that stops or passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from draft.diffusion.families.sd import StableDiffusion, load_stable_diffusion
from draft.diffusion.saturation import clip

VALUES = torch.tensor([-3.0, -1e-7, 0.0, 0.3, 1.0, 1.0000002, 5.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> StableDiffusion:
    """A tiny model whose decoder leaves [0, 1] about half of the time."""
    loaded = load_stable_diffusion(str(tiny_model), device=torch.device("cpu"), dtype=torch.float64)
    with torch.no_grad():
        loaded.components["vae"].decoder.conv_out.weight.mul_(6)
    return loaded


def test_the_values_are_the_same_bit_for_bit() -> None:
    assert torch.equal(clip(VALUES), clip(VALUES, straight_through=True))
    assert torch.equal(clip(VALUES), VALUES.clamp(0, 1))


def test_the_gradient_of_clipped_values_is_zero_or_passes() -> None:
    slope = torch.arange(1.0, 8.0, dtype=torch.float64)
    for straight_through, wanted in ((False, slope * torch.tensor([0, 0, 1, 1, 1, 0, 0])), (True, slope)):
        values = VALUES.clone().requires_grad_()
        clip(values, straight_through=straight_through).backward(slope)
        assert torch.equal(values.grad, wanted)


def test_a_decoder_passes_straight_through_what_its_network_would_have_got_without_the_clip(
    model: StableDiffusion,
) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=generator).requires_grad_()
    images = model.decode(latents, straight_through=True)
    stopped = model.decode(latents)
    assert torch.equal(images, stopped)
    assert 0.2 < ((images <= 0) | (images >= 1)).double().mean() < 0.8
    slope = torch.randn(images.shape, dtype=torch.float64, generator=generator)
    vae = model.components["vae"]
    bare = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5
    inside = (bare > 0) & (bare < 1)
    for decoded, wanted in ((images, slope), (stopped, slope * inside)):
        (found,) = torch.autograd.grad(decoded, latents, slope, retain_graph=True)
        (truth,) = torch.autograd.grad(bare, latents, wanted, retain_graph=True)
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-14)
