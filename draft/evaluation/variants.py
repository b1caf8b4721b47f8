"""The variants of a model: loaded once, it becomes the base or any of its adapters, and draws pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from draft.adapters.files.formats import denoiser_factors, read_adapter
from draft.diffusion.control.schedules import AdapterSchedule, Constant
from draft.diffusion.device import choose_device
from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.generate import generate_images
from draft.diffusion.lora import load_lora, use_lora, use_loras
from draft.diffusion.memory import check_fits
from draft.errors import ConfigError, StageError
from draft.evaluation.settings import DrawSettings
from draft.progress import Progress
from draft.report.pictures import save_pictures, to_picture
from draft.types import Images, Prompts, size_of

BASE = "base"
"""The label of the model without any adapter."""


@dataclass(frozen=True)
class PromptSeeds:
    """What is drawn: every prompt with each of its seeds, the same for all variants.

    Args:
        prompts: One per image, repeated for every seed of a prompt.
        seeds: One per image.
        groups: The number of each image's prompt in the prompt list.
    """

    prompts: Prompts
    seeds: tuple[int, ...]
    groups: tuple[int, ...]


def seed_prompts(prompts: Prompts, *, images_per_prompt: int, seed: int) -> PromptSeeds:
    """Give every prompt its seeds: image i, counted prompt by prompt, has seed `seed + i`.

    Args:
        prompts: The prompts, at least one.
        images_per_prompt: Seeds per prompt.
        seed: The first image's seed.

    Returns:
        Prompts, seeds and groups, one per image.

    Raises:
        ConfigError: There are no prompts.
    """
    if not prompts:
        raise ConfigError("no prompts to draw (got 0)")
    groups = tuple(index for index in range(len(prompts)) for _ in range(images_per_prompt))
    return PromptSeeds(prompts.take(groups), tuple(seed + i for i in range(len(groups))), groups)


def load_model_with_adapters(
    model: str, adapters: Mapping[str, tuple[Path, float]], settings: DrawSettings, progress: Progress
) -> TextToImage:
    """Load a model once, and all adapters onto it, none of them active.

    Args:
        model: Folder, hub id or single file.
        adapters: Adapter file and weight by label.
        settings: Device and precision.
        progress: Reports parts of an adapter that cannot be applied.

    Returns:
        The model; `switch` activates a variant.

    Raises:
        DraftError: A label that is taken, or a model or adapter that cannot be loaded.
    """
    if BASE in adapters:
        raise ConfigError(f"{BASE!r} is the label of the model without adapters", hint="give the adapter another label")
    loaded = {label: read_adapter(path) for label, (path, _) in adapters.items()}
    dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32
    check_fits(model, settings.device)
    loaded_model = load_text_to_image(model, device=choose_device(settings.device), dtype=dtype)
    for index, (label, adapter) in enumerate(loaded.items()):
        if adapter.family != loaded_model.family.name:
            raise StageError(
                f"the adapter is for another family of models, {adapter.family}; "
                f"this model is {loaded_model.family.name}",
                where=label,
            )
        factors = denoiser_factors(adapter)
        load_lora(loaded_model.network, factors, name=_slot(index))
        if others := len(adapter.modules) - len(factors):
            progress.say(f"adapter {label!r}: its {others} text-encoder modules are not applied, only the UNet's are")
    use_lora(loaded_model.network, None)
    return loaded_model


def switch(model: TextToImage, label: str, adapters: Mapping[str, tuple[Path, float]]) -> None:
    """Turn the model into one variant.

    Args:
        model: As loaded by `load_model_with_adapters`.
        label: `base` or an adapter's label.
        adapters: The same mapping as then.
    """
    if label == BASE:
        use_lora(model.network, None)
    else:
        use_lora(model.network, _slot(list(adapters).index(label)), adapters[label][1])


def blend(model: TextToImage, scales: Mapping[str, float], labels: Sequence[str]) -> None:
    """Turn the model into a sum of adapters, each at its scale; at 0 an adapter is off.

    Args:
        model: As loaded by `load_model_with_adapters`.
        scales: Adapter's label to its scale, whatever weight it was loaded with.
        labels: The labels of all adapters, in the order in which they were loaded.
    """
    use_loras(model.network, {_slot(labels.index(label)): scale for label, scale in scales.items()})


def draw(
    model: TextToImage, seeded: PromptSeeds, settings: DrawSettings, schedule: AdapterSchedule | None = None
) -> Iterator[tuple[Prompts, Images]]:
    """Draw all images with the model as it is, batch by batch.

    Args:
        model: The model, switched to a variant.
        seeded: What to draw.
        settings: Sampler, resolution, batch size.
        schedule: In which steps the variant's adapter takes part; None: in all.

    Yields:
        The prompts of a batch and its images, CPU float32 (B, 3, H, W) in [0, 1].
    """
    start = 0
    batches = generate_images(
        model,
        list(seeded.prompts),
        seeded.seeds,
        settings.sampler,
        schedule=schedule or Constant(),
        size=size_of(settings.resolution, model.default_size),
        batch_size=settings.batch_size,
    )
    for images in batches:
        yield seeded.prompts[start : start + len(images)], images
        start += len(images)


def keep_pictures(
    batches: Iterable[tuple[Prompts, Images]], folder: Path, files: list[Path], progress: Progress
) -> Iterator[tuple[Prompts, Images]]:
    """Save the pictures of batches and pass them on.

    Args:
        batches: Prompts and images, in order.
        folder: Receives the pictures.
        files: Gets their files.
        progress: Counts the images.

    Yields:
        The batches.
    """
    for prompts, images in batches:
        files += save_pictures([to_picture(image) for image in images], folder, start=len(files))
        yield prompts, images
        progress.advance(len(images))


def _slot(index: int) -> str:
    # peft keeps adapters in a ModuleDict, whose keys may hold no dots; labels may.
    return f"variant_{index}"
