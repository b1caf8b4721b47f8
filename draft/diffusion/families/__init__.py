"""Text-to-image models by family; each family's file alone knows its library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from draft.diffusion.schedule import FlowSchedule, Schedule
from draft.types import Images, Latents


class TextToImage(Protocol):
    """What Draft needs of a text-to-image model, whatever its family.

    Attributes:
        unet: The network that denoises; adapters go on it.
        vae: The decoder of latents.
        family: The family's short name, e.g. `sd`.
        device: Where the model is.
        dtype: Precision of the frozen weights; latents and images are float32 in any case (float64 in a float64 model).
        schedule: Its noise schedule.
    """

    unet: nn.Module
    vae: nn.Module
    family: str
    device: torch.device
    dtype: torch.dtype
    schedule: Schedule | FlowSchedule

    @property
    def default_resolution(self) -> int:
        """Side of the images it was trained for, in pixels."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embed B prompts, (B, L, D); warns of prompts that are too long and cut."""
        ...

    def drop_text_encoder(self) -> None:
        """Free the text encoder's memory; `encode` is an error from then on."""
        ...

    def denoise(self, latents: Latents, time: Tensor, embeddings: Tensor) -> Tensor:
        """The network's output at a scalar time, in the latents' precision."""
        ...

    def decode(self, latents: Latents, *, straight_through: bool = False) -> Images:
        """Images in [0, 1] with gradient, clipped there as `draft.diffusion.saturation.clip` does it."""
        ...

    def latent_shape(self, resolution: int | None) -> tuple[int, ...]:
        """Shape (C, h, w) of the latents of a square image."""
        ...


def load_text_to_image(model: str, *, device: torch.device, dtype: torch.dtype) -> TextToImage:
    """Load a text-to-image model, frozen and in evaluation mode.

    Args:
        model: A folder in diffusers' format, a `.safetensors` checkpoint, or an id on the Hugging Face hub.
        device: Where to.
        dtype: Precision of the weights.

    Returns:
        The model.

    Raises:
        DraftError: Weights are missing or unreachable, a pickle was given, or the family is not supported.
    """
    from draft.diffusion.families.sd import load_stable_diffusion  # diffusers takes seconds to import

    return load_stable_diffusion(model, device=device, dtype=dtype)


def denoiser_parameters(model: str) -> int | None:
    """Count the parameters of a model's denoiser before its weights are read; None: not known.

    Args:
        model: A folder in diffusers' format, a `.safetensors` checkpoint, or an id on the Hugging Face hub.

    Returns:
        Their number, or None.
    """
    from draft.diffusion.families.size import count_parameters  # diffusers takes seconds to import

    return count_parameters(model)
