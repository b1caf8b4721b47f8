"""The variants of a model: loaded once, it becomes the base or any of its adapters, and draws pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from draft.adapters.files.formats import Adapter, part_factors, read_adapter
from draft.diffusion.control.schedules import AdapterSchedule, Constant
from draft.diffusion.device import choose_device
from draft.diffusion.embedding import Embedded, embed
from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.families.problems import require_family_settings
from draft.diffusion.generate import sample_seeds
from draft.diffusion.lora import load_lora, use_lora, use_loras
from draft.diffusion.memory import require_memory
from draft.errors import ConfigError, StageError
from draft.evaluation.settings import DrawSettings
from draft.progress import Progress
from draft.report.pictures import save_pictures, to_picture
from draft.types import Images, Prompts, Size, size_of

BASE = "base"
"""The label of the model without any adapter."""

T = TypeVar("T")
_CLIP = "text_model."


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


@dataclass(frozen=True)
class Variants:
    """A model that becomes its variants one after another, and what each of them draws from.

    Args:
        model: The model; its text encoders are gone.
        size: The images' size.
        blends: For each variant, the adapters on the denoiser by their key there, with their scales.
        embedded: For each variant, its texts' conditioning; adapters may change text encoders too.
    """

    model: TextToImage
    size: Size
    blends: Sequence[Mapping[str, float]]
    embedded: Sequence[Embedded]

    def switch(self, number: int) -> Embedded:
        """Turn the model into a variant.

        Args:
            number: The variant's, from 0.

        Returns:
            What it draws from.
        """
        use_loras(self.model.network, self.blends[number])
        return self.embedded[number]


def load_variants(
    model: str,
    adapters: Mapping[str, Path],
    blends: Sequence[Mapping[str, float]],
    texts: Sequence[str],
    settings: DrawSettings,
    progress: Progress,
) -> Variants:
    """Load a model once and all adapters onto it, and embed what its variants will draw.

    Text encoders are read first, with the adapters' parts for them, and freed before the denoiser is read. Variants
    whose adapters leave the text encoders alone share one embedding.

    Args:
        model: Folder, hub id or single file.
        adapters: Adapter file by label.
        blends: For each variant, the scales of the adapters that are on, by label; at 0 one is off. Empty: the base.
        texts: All that will be drawn.
        settings: Sampler, resolution, device and precision.
        progress: Reports parts of an adapter that the model does not have.

    Returns:
        The variants.

    Raises:
        DraftError: A label that is taken, or a model or adapter that cannot be loaded.
    """
    if BASE in adapters:
        raise ConfigError(f"{BASE!r} is the label of the model without adapters", hint="give the adapter another label")
    read = {label: read_adapter(path) for label, path in adapters.items()}
    dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32
    require_memory(model, settings.device, dtype)
    loaded = load_text_to_image(model, device=choose_device(settings.device), dtype=dtype)
    require_family_settings(loaded.family, settings.sampler)
    for label, adapter in read.items():
        _check_family(label, adapter, loaded)
        _report_rest(label, adapter, loaded, progress)
    keys = {label: f"variant_{index}" for index, label in enumerate(read)}  # labels may hold dots, peft's keys not
    size = size_of(settings.resolution, loaded.default_size)
    on_text = {label for label, adapter in read.items() if _put(loaded.encoders, adapter, keys[label])}
    by_text: dict[frozenset[tuple[str, float]], Embedded] = {}
    embedded = []
    for blend in blends:
        scales = {keys[label]: scale for label, scale in blend.items() if label in on_text and scale}
        same = frozenset(scales.items())
        if same not in by_text:
            for encoder in loaded.encoders.values():
                use_loras(encoder, scales, missing=True)
            by_text[same] = embed(loaded, texts, size, negative_prompt=settings.sampler.negative_prompt)
        embedded.append(by_text[same])
    loaded.drop_encoders()
    on_denoiser = {
        label for label, adapter in read.items() if _put({loaded.family.part: loaded.network}, adapter, keys[label])
    }
    chosen = [{keys[label]: scale for label, scale in blend.items() if label in on_denoiser} for blend in blends]
    return Variants(loaded, size, chosen, embedded)


def _check_family(label: str, adapter: Adapter, model: TextToImage) -> None:
    if adapter.family != model.family.name:
        raise StageError(
            f"the adapter is for another family of models, {adapter.family}; this model is {model.family.name}",
            where=label,
        )


def _report_rest(label: str, adapter: Adapter, model: TextToImage, progress: Progress) -> None:
    parts = {model.family.part, *model.family.encoders}
    unapplied = sorted({name.partition(".")[0] for name in adapter.modules} - parts)
    if unapplied:
        count = sum(name.partition(".")[0] in unapplied for name in adapter.modules)
        progress.say(
            f"adapter {label!r}: its {count} modules of {', '.join(unapplied)} are not applied: the model has none"
        )


def _put(networks: Mapping[str, nn.Module], adapter: Adapter, key: str) -> bool:
    """Load an adapter's parts onto the networks by component, none of them active; whether it has any."""
    parts = {name: factors for name in networks if (factors := part_factors(adapter, name))}
    for name, factors in parts.items():
        load_lora(networks[name], _own_paths(networks[name], factors), name=key)
        use_lora(networks[name], None)
    return bool(parts)


def _own_paths(network: nn.Module, factors: Mapping[str, T]) -> dict[str, T]:
    """Factors by the network's own paths: transformers 4 has `text_model.` before those of CLIP, transformers 5 not."""
    modules = {name for name, _ in network.named_modules()}
    renamed = {}
    for path, value in factors.items():
        other = path.removeprefix(_CLIP) if path.startswith(_CLIP) else f"{_CLIP}{path}"
        renamed[other if path not in modules and other in modules else path] = value
    return renamed


def draw(
    variants: Variants,
    number: int,
    seeded: PromptSeeds,
    settings: DrawSettings,
    schedule: AdapterSchedule | None = None,
) -> Iterator[tuple[Prompts, Images]]:
    """Draw all images of a variant, batch by batch.

    Args:
        variants: The variants.
        number: Which one.
        seeded: What to draw.
        settings: Sampler, batch size.
        schedule: In which steps the variant's adapter takes part; None: in all.

    Yields:
        The prompts of a batch and its images, CPU float32 (B, 3, H, W) in [0, 1].
    """
    model, embedded = variants.model, variants.switch(number)
    for start in range(0, len(seeded.seeds), settings.batch_size):
        chosen = slice(start, start + settings.batch_size)
        prompts = seeded.prompts[chosen]
        conditioning = embedded.take(list(prompts), model.device)
        yield (
            prompts,
            sample_seeds(
                model,
                conditioning,
                embedded.unconditional,
                seeded.seeds[chosen],
                settings.sampler,
                variants.size,
                schedule=schedule or Constant(),
            ),
        )


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
