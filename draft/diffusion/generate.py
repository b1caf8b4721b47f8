"""Images from prompts and seeds: the same image for the same seed, whatever it is batched with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.control.annealing import scheduled
from draft.diffusion.control.schedules import AdapterSchedule, Combined, Constant
from draft.diffusion.families import TextToImage
from draft.diffusion.guidance import Net, guide
from draft.diffusion.lora import lora_off
from draft.diffusion.sampling import Output, sample
from draft.diffusion.schedule import Grid, make_grid
from draft.diffusion.settings import SamplerSettings
from draft.errors import DraftError
from draft.types import Images, Size

_CONSTANT = Constant()


def generate_images(
    model: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampler: SamplerSettings,
    *,
    schedule: AdapterSchedule = _CONSTANT,
    size: Size | None = None,
    batch_size: int = 8,
) -> Iterator[Images]:
    """Sample one image per prompt and seed.

    Args:
        model: The text-to-image model, with whichever adapter is switched on.
        prompts: N prompts.
        seeds: N seeds; image k's noise is drawn on the CPU from a generator with seed k alone.
        sampler: How to sample.
        schedule: In which steps the adapter takes part.
        size: The images' size; None: the model's own.
        batch_size: Images sampled at once.

    Yields:
        Batches in order, float32 on the CPU, (b, 3, H, W), sRGB in [0, 1].

    Raises:
        DraftError: There are not as many seeds as prompts.
    """
    if len(prompts) != len(seeds):
        raise DraftError(f"there must be one seed per prompt, {len(prompts)} (got {len(seeds)})")
    texts = [str(prompt) for prompt in prompts]
    size = size or model.default_size
    unconditional = model.unconditional(sampler.negative_prompt, size)
    for start in range(0, len(texts), batch_size):
        chosen = slice(start, start + batch_size)
        conditioning = model.encode(texts[chosen], size)
        yield sample_seeds(model, conditioning, unconditional, seeds[chosen], sampler, size, schedule=schedule)


def sample_seeds(
    model: TextToImage,
    conditioning: Conditioning,
    unconditional: Conditioning,
    seeds: Sequence[int],
    sampler: SamplerSettings,
    size: Size,
    *,
    schedule: AdapterSchedule = _CONSTANT,
) -> Images:
    """Sample one batch from its conditioning and seeds, without gradient.

    Args:
        model: The text-to-image model; its text encoders are not needed.
        conditioning: The prompts', of length B.
        unconditional: The negative prompt's, of length 1.
        seeds: B seeds, all noise of an image from its own.
        sampler: How to sample.
        size: The images' size.
        schedule: In which steps the adapter takes part.

    Returns:
        Float32 on the CPU, (B, 3, H, W), sRGB in [0, 1].
    """
    noise = seeded_draws(seeds, model.latent_shape(size), 1 + sampler.num_inference_steps * (sampler.eta > 0))
    return sample_images(
        model, conditioning, unconditional, noise[0], sampler, size, fresh=list(noise[1:]), schedule=schedule
    )


def sample_images(
    model: TextToImage,
    conditioning: Conditioning,
    unconditional: Conditioning,
    noise: Tensor,
    sampler: SamplerSettings,
    size: Size,
    *,
    fresh: Sequence[Tensor] = (),
    schedule: AdapterSchedule = _CONSTANT,
) -> Images:
    """Sample one batch from its conditioning and noise, without gradient.

    Args:
        model: The text-to-image model; its text encoders are not needed.
        conditioning: The prompts', of length B.
        unconditional: The negative prompt's, of length 1.
        noise: Standard normal, (B, C, h, w).
        sampler: How to sample.
        size: The images' size.
        fresh: Standard normal noise of each step like `noise`, where `sampler.eta` is more than 0.
        schedule: In which steps the adapter takes part.

    Returns:
        Float32 on the CPU, (B, 3, H, W), sRGB in [0, 1].
    """
    grid = make_grid(model.schedule(size, sampler.num_inference_steps), sampler)
    output = make_output(model, grid, conditioning, unconditional, sampler, schedule)
    device = model.device
    with torch.no_grad():
        latents = sample(output, grid, noise.to(device), [z.to(device) for z in fresh] or None)
        return model.decode(latents).float().cpu()


def make_output(
    model: TextToImage,
    grid: Grid,
    conditioning: Conditioning,
    unconditional: Conditioning,
    sampler: SamplerSettings,
    schedule: AdapterSchedule = _CONSTANT,
    *,
    net: Net | None = None,
) -> Output:
    """The guided network of a model with whichever adapter is switched on, in the steps that its schedule says.

    Args:
        model: The text-to-image model.
        grid: The sampling grid.
        conditioning: The prompts', of length B.
        unconditional: The negative prompt's, of length 1.
        sampler: Its guidance scale holds but for the tuned steps of a `combined` schedule.
        schedule: In which steps the adapter takes part.
        net: What is called as the network; None: the model's own.

    Returns:
        The output as a function of (latents, step).
    """
    net = net or model.denoise
    scale = schedule.guidance_scale if isinstance(schedule, Combined) else sampler.guidance_scale
    rule, patch = model.family.guidance, model.family.patch
    tuned = guide(net, grid, conditioning, unconditional, scale, rule=rule, patch=patch)
    if isinstance(schedule, Constant):
        return tuned
    plain = guide(net, grid, conditioning, unconditional, sampler.guidance_scale, rule=rule, patch=patch)

    def base(x: Tensor, i: int) -> Tensor:
        with lora_off(model.network):
            return plain(x, i)

    return scheduled(schedule, grid.steps, tuned=tuned, base=base)


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
