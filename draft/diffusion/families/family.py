"""What a loaded model of any family offers, and what loads one; a family's file implements both. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from draft.family import Family
from draft.types import Images, Latents, Size

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from draft.diffusion.conditioning import Conditioning
    from draft.diffusion.schedule import FlowSchedule, Schedule


class TextToImage(Protocol):
    """A loaded text-to-image model: frozen, in evaluation mode.

    Text encoders are loaded when something is first encoded and freed by `drop_encoders`; the denoiser is loaded when
    `network` is first asked for. Whoever encodes first and then drops the encoders needs room for the larger of the
    two, not for their sum.

    Attributes:
        family: The row it belongs to.
        device: Where it is.
        dtype: Precision of the frozen weights; latents and images are float32 in any case (float64 in a float64 model).
    """

    family: Family
    device: torch.device
    dtype: torch.dtype

    @property
    def network(self) -> nn.Module:
        """The denoiser; adapters go on it."""
        ...

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """Component name to text encoder, in the order of `family.encoders`; empty once they are dropped."""
        ...

    @property
    def text_files(self) -> Sequence[Path]:
        """Files and folders that decide a prompt's embedding: the text encoders' weights and the tokenizers."""
        ...

    @property
    def default_size(self) -> Size:
        """The size of the images it was trained for."""
        ...

    def encode(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """Embed B prompts for images of a size; warns of prompts that are too long and cut.

        A prompt's embedding has the same bits whatever is embedded with it.
        """
        ...

    def unconditional(self, negative_prompt: str, size: Size) -> Conditioning:
        """What the other branch of guidance is conditioned on, of length 1."""
        ...

    def drop_encoders(self) -> None:
        """Free the text encoders' memory; `encode` is an error from then on."""
        ...

    def denoise(self, latents: Latents, time: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output at a scalar time, in the latents' shape and precision; packing happens inside."""
        ...

    def decode(self, latents: Latents, *, straight_through: bool = False) -> Images:
        """Images in [0, 1] with gradient, clipped there as `draft.diffusion.saturation.clip` does it."""
        ...

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Shape (C, h, w) or (C, f, h, w) of one image's latents; an error where the size does not fit the model."""
        ...

    def schedule(self, size: Size, steps: int) -> Schedule | FlowSchedule:
        """The noise schedule for images of a size drawn in a number of steps."""
        ...

    def checkpoint_blocks(self, on: bool) -> bool:
        """Recompute the network's and the decoder's blocks in backward instead of keeping their activations.

        The gradient is the same. Returns whether the network can; where it cannot, whole calls are recomputed instead.
        """
        ...


class Load(Protocol):
    """The function that a family's `load` names."""

    def __call__(self, model: str, *, device: torch.device, dtype: torch.dtype) -> TextToImage:
        """Open a folder, a single-file checkpoint or a hub id of the family; weights are read when they are needed.

        Args:
            model: Folder, `.safetensors` file or hub id.
            device: Where to.
            dtype: Precision of the weights, in which they are read.

        Returns:
            The model.

        Raises:
            DraftError: A component is missing, of a wrong type or unreachable, or a pickle was given.
        """
        ...
