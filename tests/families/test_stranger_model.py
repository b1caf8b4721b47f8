"""What a family from outside computes: gradients, guidance without a second branch, its noise levels, its packing."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.guidance import guide
from draft.diffusion.lora import add_lora, lora_parameters
from draft.diffusion.sampling import Output, step
from draft.diffusion.schedule import Grid, make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.diffusion.surrogate import Denoisers, sample_with_plan
from draft.methods.modules import draw_plan
from draft.methods.values import DraftK, DraftLV, Method
from draft.types import Size

STEPS, BATCH = 4, 2


@pytest.fixture(scope="module")
def toys(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(Path(__file__).parents[1] / "diffusion" / "toys.py")


@pytest.fixture
def load(pocket: Path) -> Callable[..., TextToImage]:
    def load(dtype: torch.dtype = torch.float64) -> TextToImage:
        return load_text_to_image(str(pocket), device=torch.device("cpu"), dtype=dtype)

    return load


def grid_of(model: TextToImage, size: Size | None = None, steps: int = STEPS) -> Grid:
    return make_grid(model.schedule(size or model.default_size, steps), SamplerSettings(num_inference_steps=steps))


def output_of(model: TextToImage, grid: Grid, scale: float) -> Output:
    texts = model.encode(["a cat", "two dogs"], model.default_size)
    return guide(model.denoise, grid, texts, model.unconditional("", model.default_size), scale, rule="embedded")


def noise_of(model: TextToImage, batch: int = BATCH, size: Size | None = None, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *model.latent_shape(size or model.default_size), generator=generator, dtype=model.dtype)


@pytest.mark.parametrize("method", [DraftK(k=1), DraftK(k=2), DraftLV(copies=2)], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_agrees_with_central_differences(
    load: Callable[..., TextToImage], toys: Any, method: Method, recompute: bool
) -> None:
    model = load()
    assert model.checkpoint_blocks(recompute)
    add_lora(model.network, LoraSettings(rank=2, targets=model.family.targets), seed=1)
    parameters = lora_parameters(model.network)
    assert len(parameters) == 2 * 13, "seven modules of each block, and the last has no query of the text"
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters[1::2]:  # B: at B = 0 the gradient of A vanishes
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    grid = grid_of(model)
    output, plan = output_of(model, grid, 3.5), draw_plan(method, STEPS, torch.Generator().manual_seed(0))
    noise, copy_noise = noise_of(model), noise_of(model, BATCH * plan.copies, seed=1)
    pattern = torch.randn(3, 32, 32, generator=generator, dtype=torch.float64)

    def reward(latents: Tensor) -> Tensor:
        images = model.decode(latents * 0.2)
        assert images.min() > 0 and images.max() < 1, "differences would cross the corners of clipping"
        return (images * pattern).sum(dim=(1, 2, 3)).mean()

    networks = Denoisers(no_grad=output, with_grad=output)
    value = reward(sample_with_plan(networks, grid, plan, noise, copy_noise=copy_noise))
    gradient = torch.autograd.grad(value, parameters)
    assert all(g.abs().max() > 0 for g in gradient), "every module reaches the image"
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    exact = float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
    held = toys.held(plan, grid, output, noise, copy_noise)
    assert abs(exact) > 1e-3
    assert toys.slope_of(lambda: reward(held()), parameters, direction) == pytest.approx(exact, rel=1e-6)


def test_guidance_changes_the_image_without_a_second_branch(load: Callable[..., TextToImage]) -> None:
    model, batches = load(torch.float32), []
    grid = grid_of(model)
    model.network.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    drawn = []
    for scale in (1.0, 3.5):
        output, x = output_of(model, grid, scale), noise_of(model)
        with torch.no_grad():
            for i in range(STEPS):
                x = step(output, grid, x, i)[0]
            drawn.append(model.decode(x))
    assert batches == [BATCH] * (2 * STEPS)
    assert (drawn[0] - drawn[1]).abs().mean() > 0.01


def test_the_noise_levels_depend_on_the_size_and_on_the_number_of_steps(load: Callable[..., TextToImage]) -> None:
    model = load()
    small, large = Size(32, 32), Size(64, 96)
    shifts = {(size, steps): model.schedule(size, steps).shift for size in (small, large) for steps in (4, 28)}  # type: ignore[union-attr]
    assert len(set(shifts.values())) == 4
    # FLUX.2's numbers at 16 and at 96 tokens, by the formula at 10 and at 200 steps.
    for (size, steps), shift in shifts.items():
        tokens = size.height * size.width // 64
        at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
        assert math.log(shift) == pytest.approx(at_10 + (at_200 - at_10) * (steps - 10) / 190)
    assert grid_of(model, large, 28).sigma[-1] > 1 / 28


def test_tokens_are_squares_of_latents_row_by_row(stranger: ModuleType) -> None:
    module = importlib.import_module("draft_pocket_flow.model")
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = module._packed(x)
    assert tokens.shape == (2, 6, 12)
    assert tokens[0, 1].tolist() == x[0, :, 0:2, 2:4].flatten().tolist(), "the second token of the first row"
    assert torch.equal(module._unpacked(tokens, 2, 3), x)


def test_an_image_depends_on_where_its_tokens_are(load: Callable[..., TextToImage]) -> None:
    model = load()
    size = Size(32, 48)
    grid, x = grid_of(model, size), noise_of(model, size=size)
    output = output_of(model, grid, 3.5)
    with torch.no_grad():
        moved = output(x.roll(2, dims=-1), 0).roll(-2, dims=-1)
        assert (moved - output(x, 0)).abs().max() > 1e-3
        assert (output(x.flip(0), 0).flip(0) - output(x, 0)).abs().max() > 1e-3, "the prompts differ"


def test_a_prompts_bits_do_not_depend_on_others_and_a_long_one_is_cut_with_a_warning(
    load: Callable[..., TextToImage],
) -> None:
    model = load(torch.float32)
    alone, among = (model.encode(prompts, model.default_size) for prompts in (["a fox"], ["a cat", "a fox"]))
    assert all(torch.equal(alone.tensors[name], among[1:].tensors[name]) for name in ("text", "pooled"))
    with pytest.warns(UserWarning, match=r"prompt cut to 16 words \(got 20\)"):
        model.encode(["so " * 20], model.default_size)
    model.drop_encoders()
    assert not model.encoders
    with pytest.raises(RuntimeError, match="dropped"):
        model.encode(["a fox"], model.default_size)


def test_weights_are_read_when_they_are_needed_in_their_precision(load: Callable[..., TextToImage]) -> None:
    model: Any = load(torch.bfloat16)
    assert model._networks == {}
    model.encode(["a cat"], model.default_size)
    assert set(model._networks) == {"text_encoder"}
    model.drop_encoders()
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.network.parameters())
    assert set(model._networks) == {"transformer"}
