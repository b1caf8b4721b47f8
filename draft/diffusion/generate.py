"""Images from prompts and seeds: the same image for the same seed, whatever it is batched with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from draft.diffusion.grid import make_grid
from draft.diffusion.guidance import guide
from draft.diffusion.models import TextToImage
from draft.diffusion.sampling import sample
from draft.diffusion.settings import SamplerSettings
from draft.errors import DraftError
from draft.types import Images


def generate_images(
    model: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampler: SamplerSettings,
    *,
    resolution: int | None = None,
    batch_size: int = 8,
) -> Iterator[Images]:
    """Sample one image per prompt and seed.

    Args:
        model: The text-to-image model, with whichever adapter is switched on.
        prompts: N prompts.
        seeds: N seeds; image k's noise is drawn on the CPU from a generator with seed k alone.
        sampler: How to sample.
        resolution: Side of the images in pixels; None: the model's own.
        batch_size: Images sampled at once.

    Yields:
        Batches in order, float32 on the CPU, (b, 3, H, W), sRGB in [0, 1].

    Raises:
        DraftError: There are not as many seeds as prompts.
    """
    if len(prompts) != len(seeds):
        raise DraftError(f"there must be one seed per prompt, {len(prompts)} (got {len(seeds)})")
    texts = [str(prompt) for prompt in prompts]
    shape = model.latent_shape(resolution)
    with torch.no_grad():
        unconditional = model.encode([sampler.negative_prompt])
    for start in range(0, len(texts), batch_size):
        chosen = slice(start, start + batch_size)
        with torch.no_grad():
            embeddings = model.encode(texts[chosen])
            noise = seeded_draws(seeds[chosen], shape, 1 + sampler.num_inference_steps * (sampler.eta > 0))
            yield sample_images(model, embeddings, unconditional, noise[0], sampler, fresh=list(noise[1:]))


def sample_images(
    model: TextToImage,
    embeddings: Tensor,
    unconditional: Tensor,
    noise: Tensor,
    sampler: SamplerSettings,
    *,
    fresh: Sequence[Tensor] = (),
) -> Images:
    """Sample one batch from embeddings and noise, without gradient.

    Args:
        model: The text-to-image model; its text encoder is not needed.
        embeddings: Prompt embeddings, (B, L, D).
        unconditional: The unconditional prompt's, (1, L, D).
        noise: Standard normal, (B, C, h, w).
        sampler: How to sample.
        fresh: Standard normal noise of each step like `noise`, where `sampler.eta` is more than 0.

    Returns:
        Float32 on the CPU, (B, 3, H, W), sRGB in [0, 1].
    """
    grid = make_grid(model.schedule, sampler)
    output = guide(model.denoise, grid, embeddings, unconditional, sampler.guidance_scale)
    device = model.device
    with torch.no_grad():
        latents = sample(output, grid, noise.to(device), [z.to(device) for z in fresh] or None)
        return model.decode(latents).float().cpu()


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, one generator per sample.

    Args:
        seeds: B seeds.
        shape: Shape of one sample, (C, ...).

    Returns:
        Float32 on the CPU, (B, C, ...).
    """
    return seeded_draws(seeds, shape, 1)[0]


def seeded_draws(seeds: Sequence[int], shape: Sequence[int], count: int) -> Tensor:
    """Several standard normal tensors per sample; the first ones do not depend on how many follow.

    Args:
        seeds: B seeds, a generator for each.
        shape: Shape of one sample, (C, ...).
        count: Tensors per sample.

    Returns:
        Float32 on the CPU, (count, B, C, ...).
    """
    samples = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed(seed)
        samples.append(torch.stack([torch.randn(tuple(shape), generator=generator) for _ in range(count)]))
    return torch.stack(samples, dim=1)
