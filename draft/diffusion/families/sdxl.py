"""Stable Diffusion XL: two text encoders, a UNet that also knows size and crop, an autoencoder (arXiv 2307.01952)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import family_named
from draft.diffusion.families.components import Components, can_recompute
from draft.diffusion.families.pretrained import encoding
from draft.diffusion.families.problems import latent_sides
from draft.diffusion.families.sd import read_schedule
from draft.diffusion.families.sdxl_parts import TEXT, Parts, open_pretrained
from draft.diffusion.families.sdxl_single_file import open_single_file
from draft.diffusion.saturation import clip
from draft.diffusion.schedule import FlowSchedule, Schedule
from draft.errors import DraftWarning
from draft.family import Family
from draft.types import Images, Latents, Size


@dataclass
class StableDiffusionXL:
    """A Stable Diffusion XL model; see `draft.diffusion.families.TextToImage`."""

    parts: Parts
    components: Components
    noise: Schedule | FlowSchedule
    device: torch.device
    dtype: torch.dtype
    family: Family

    @property
    def network(self) -> nn.Module:
        """The UNet."""
        return self.components["unet"]

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """Both text encoders; nothing once they are dropped."""
        return {name: self.components[name] for name in TEXT if not self.components.dropped(name)}

    @property
    def text_files(self) -> Sequence[Path]:
        """Files and folders that decide a prompt's embedding."""
        return self.parts.text_files

    @property
    def default_size(self) -> Size:
        """The size of the images the model was trained for."""
        sample = self.parts.configs["unet"].get("sample_size") or 128
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return Size(int(height) * self.pixels_per_latent, int(width) * self.pixels_per_latent)

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along the side of one latent."""
        return 2 ** (len(self.parts.configs["vae"]["block_out_channels"]) - 1)

    def encode(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """Embed prompts by both text encoders, without gradient, one by one, so that no prompt's bits depend on others.

        Args:
            prompts: B prompts.
            size: Of the images that the network is asked for.

        Returns:
            text (B, L, D1 + D2), both encoders' next-to-last states; pooled (B, P), the second's projection; both in
            the model's precision; time_ids (B, 6), float32.

        Raises:
            RuntimeError: The text encoders were dropped.
        """
        return Conditioning.cat(self._embed(str(prompt), size) for prompt in prompts)

    def unconditional(self, negative_prompt: str, size: Size) -> Conditioning:
        """What guidance leads away from, of length 1.

        Args:
            negative_prompt: Its text; where it is empty and the pipeline says so (`force_zeros_for_empty_prompt`), text
                and pooled are zero instead of the empty text's.
            size: Of the images that the network is asked for.

        Returns:
            As of `encode`.
        """
        if negative_prompt or not self.parts.zeros:
            return self.encode([negative_prompt], size)
        widths = [int(self.parts.configs[name]["hidden_size"]) for name in TEXT]
        length = int(self.parts.tokenizers[0].model_max_length)
        pooled = int(self.parts.configs[TEXT[1]]["projection_dim"])
        zeros = partial(torch.zeros, device=self.device, dtype=self.dtype)
        return self._sized(zeros(1, length, sum(widths)), zeros(1, pooled), size)

    def drop_encoders(self) -> None:
        """Free the text encoders' memory."""
        self.components.drop(TEXT)

    def denoise(self, latents: Latents, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Call the UNet in the model's precision.

        Args:
            latents: (N, C, h, w).
            time: Scalar.
            conditioning: As of `encode`, of length N.

        Returns:
            The output in the latents' precision, (N, C, h, w).
        """
        tensors = conditioning.tensors
        out = self.network(
            latents.to(self.dtype),
            time,
            encoder_hidden_states=tensors["text"].to(self.dtype),
            added_cond_kwargs={"text_embeds": tensors["pooled"].to(self.dtype), "time_ids": tensors["time_ids"]},
            return_dict=False,
        )[0]
        return out.to(latents.dtype)

    def decode(self, latents: Latents, *, straight_through: bool = False) -> Images:
        """Decode latents to images, with gradient.

        Args:
            latents: (B, C, h, w), scaled as the UNet sees them.
            straight_through: Whether the gradient passes where values are clipped; see `draft.diffusion.saturation`.

        Returns:
            sRGB clipped to [0, 1], (B, 3, H, W), in the latents' precision.
        """
        vae = self.components["vae"]
        config: Any = vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        scaled = latents / config.scaling_factor
        if mean is not None and std is not None:  # Playground's
            mean, std = (torch.tensor(values).to(latents)[:, None, None] for values in (mean, std))
            scaled = latents * std / config.scaling_factor + mean
        images = vae.decode(scaled.to(vae.dtype), return_dict=False)[0].to(latents.dtype)
        return clip(images / 2 + 0.5, straight_through=straight_through)

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Shape (C, h, w) of the latents of an image.

        Args:
            size: The image's.

        Returns:
            (C, h, w).

        Raises:
            DraftError: A side is no multiple of what one latent covers.
        """
        height, width = latent_sides(size, self.pixels_per_latent)
        return int(self.parts.configs["vae"]["latent_channels"]), height, width

    def schedule(self, size: Size, steps: int) -> Schedule | FlowSchedule:
        """The noise schedule, which is the same for every size and number of steps."""
        return self.noise

    def checkpoint_blocks(self, on: bool) -> bool:
        """Recompute the UNet's and the decoder's blocks in backward instead of keeping their activations."""
        self.components.recompute(["unet", "vae"], on)
        return can_recompute(self.network)

    def _embed(self, prompt: str, size: Size) -> Conditioning:
        states = []
        for tokenizer, name in zip(self.parts.tokenizers, TEXT, strict=True):
            tower = self.components[name]
            limit = int(tokenizer.model_max_length)
            length = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
            if length > limit and not states:
                what = f"prompt cut to {limit} tokens (got {length}): {prompt[:60]!r}..."
                warnings.warn(what, DraftWarning, stacklevel=4)
            tokens = tokenizer(prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
            with torch.no_grad(), encoding(self.dtype):
                out = tower(tokens.input_ids.to(self.device), output_hidden_states=True)
            states.append(out.hidden_states[-2])
        return self._sized(torch.cat(states, dim=-1), out.text_embeds, size)

    def _sized(self, text: Tensor, pooled: Tensor, size: Size) -> Conditioning:
        """With the micro-conditioning of an image that is neither enlarged nor cropped: original size, crop, size."""
        ids = torch.tensor([[size.height, size.width, 0, 0, size.height, size.width]], dtype=torch.float32)
        return Conditioning({"text": text, "pooled": pooled, "time_ids": ids.to(self.device)})


def load(model: str, *, device: torch.device, dtype: torch.dtype) -> StableDiffusionXL:
    """Open a `StableDiffusionXLPipeline` folder, hub id or single-file checkpoint; weights are read when needed.

    Args:
        model: Folder, `.safetensors` file or hub id.
        device: Where to.
        dtype: Precision of the weights, in which they are read; the autoencoder's is float32 where this is float16 and
            its configuration asks for more (`force_upcast`), since its activations overflow there.

    Returns:
        The model, frozen and in evaluation mode.

    Raises:
        DraftError: A component is missing, of a wrong type or unreachable, or a pickle was given.
    """
    parts = open_single_file(Path(model)) if Path(model).is_file() else open_pretrained(model)
    careful = dtype == torch.float16 and parts.configs["vae"]["force_upcast"]
    components = Components(parts.read, device, dtype, exceptions={"vae": torch.float32} if careful else {})
    noise = read_schedule(parts.configs["scheduler"])
    return StableDiffusionXL(parts, components, noise, device, dtype, family_named("sdxl"))
