"""Stable Diffusion 1.x and 2.x: one text encoder, a UNet, an autoencoder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import families
from draft.diffusion.families.pretrained import reading_weights, undisturbed
from draft.diffusion.families.single_file import load_single_file, settle_prediction
from draft.diffusion.saturation import clip
from draft.diffusion.schedule import FlowSchedule, Schedule
from draft.errors import DraftError, DraftWarning
from draft.family import Family
from draft.types import Images, Latents, Size

_EMBED_BATCH = 32


@dataclass
class StableDiffusion:
    """A Stable Diffusion model; see `draft.diffusion.families.TextToImage`."""

    unet: Any
    vae: Any
    tokenizer: Any
    text_encoder: nn.Module | None
    noise: Schedule | FlowSchedule
    device: torch.device
    dtype: torch.dtype
    family: Family

    @property
    def network(self) -> nn.Module:
        """The UNet."""
        network: nn.Module = self.unet
        return network

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """The text encoder; nothing once it is dropped."""
        return {} if self.text_encoder is None else {"text_encoder": self.text_encoder}

    @property
    def default_size(self) -> Size:
        """The size of the images the model was trained for."""
        sample: Any = self.unet.config.sample_size
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return Size(int(height) * self.pixels_per_latent, int(width) * self.pixels_per_latent)

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along the side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """Embed prompts with the text encoder's last layer, without gradient.

        Args:
            prompts: B prompts.
            size: Without effect: the UNet is not told it.

        Returns:
            text (B, L, D) in the model's precision.

        Raises:
            RuntimeError: The text encoder was dropped.
        """
        if self.text_encoder is None:
            raise RuntimeError("the text encoder was dropped")
        texts = [str(prompt) for prompt in prompts]
        limit = int(self.tokenizer.model_max_length)
        for text in texts:
            length = len(self.tokenizer(text, truncation=False, verbose=False).input_ids)
            if length > limit:
                warnings.warn(
                    f"prompt cut to {limit} tokens (got {length}): {text[:60]!r}...", DraftWarning, stacklevel=2
                )
        tokens = self.tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        with torch.no_grad():
            text = torch.cat(
                [
                    self.text_encoder(
                        ids.to(self.device), attention_mask=None if mask is None else mask[k : k + _EMBED_BATCH]
                    )[0]
                    for k, ids in _chunks(tokens.input_ids)
                ]
            )
        return Conditioning({"text": text})

    def unconditional(self, negative_prompt: str, size: Size) -> Conditioning:
        """The negative prompt's embedding, text (1, L, D)."""
        return self.encode([negative_prompt], size)

    def drop_encoders(self) -> None:
        """Free the text encoder's memory."""
        self.text_encoder = None

    def denoise(self, latents: Latents, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Call the UNet in the model's precision.

        Args:
            latents: (N, C, h, w).
            time: Scalar.
            conditioning: text (N, L, D).

        Returns:
            The output in the latents' precision, (N, C, h, w).
        """
        text = conditioning.tensors["text"].to(self.dtype)
        out = self.unet(latents.to(self.dtype), time, encoder_hidden_states=text, return_dict=False)[0]
        return out.to(latents.dtype)

    def decode(self, latents: Latents, *, straight_through: bool = False) -> Images:
        """Decode latents to images, with gradient.

        Args:
            latents: (B, C, h, w), scaled to unit variance as the UNet sees them.
            straight_through: Whether the gradient passes where values are clipped; see `draft.diffusion.saturation`.

        Returns:
            sRGB clipped to [0, 1], (B, 3, H, W), in the latents' precision.
        """
        config: Any = self.vae.config
        scaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        images = self.vae.decode(scaled.to(self.dtype), return_dict=False)[0].to(latents.dtype)
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
        multiple = self.pixels_per_latent
        if size.height % multiple or size.width % multiple or size.frames != 1:
            got = size.height if size == Size(size.height, size.height) else size
            raise DraftError(f"resolution must be a multiple of {multiple} for this model (got {got})")
        return int(self.unet.config.in_channels), size.height // multiple, size.width // multiple

    def schedule(self, size: Size, steps: int) -> Schedule | FlowSchedule:
        """The noise schedule, which is the same for every size and number of steps."""
        return self.noise

    def checkpoint_blocks(self, on: bool) -> None:
        """Recompute the UNet's and the decoder's blocks in backward instead of keeping their activations."""
        raise NotImplementedError


def load_stable_diffusion(model: str, *, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
    """Load a `StableDiffusionPipeline` folder, hub id or single-file checkpoint; no safety checker, no pickle.

    Args:
        model: Folder, `.safetensors` file or hub id.
        device: Where to.
        dtype: Precision of the weights.

    Returns:
        The model, frozen and in evaluation mode.

    Raises:
        DraftError: Weights are missing or unreachable, a pickle was given, or the pipeline is of another family.
    """
    path = Path(model)
    settled = True
    if path.is_file():
        with undisturbed():
            pipeline, settled = load_single_file(path)
    else:
        with reading_weights(model):
            pipeline = StableDiffusionPipeline.from_pretrained(
                model, safety_checker=None, feature_extractor=None, requires_safety_checker=False, use_safetensors=True
            )
    unet, vae, text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    if unet.config.in_channels != vae.config.latent_channels:
        raise DraftError(
            f"model {model!r} is an inpainting or depth model, which Draft cannot train (its UNet takes "
            f"{unet.config.in_channels} channels, the autoencoder makes {vae.config.latent_channels})"
        )
    for module in (unet, vae, text_encoder):
        nn.Module.to(module.requires_grad_(False).eval(), device, dtype)  # diffusers' own `to` warns of the cast
    schedule = read_schedule(pipeline.scheduler.config)
    loaded = StableDiffusion(unet, vae, pipeline.tokenizer, text_encoder, schedule, device, dtype, families()["sd"])
    if not settled and isinstance(schedule, Schedule):
        loaded.noise = settle_prediction(loaded, schedule)
    return loaded


def read_schedule(config: Any) -> Schedule | FlowSchedule:
    """The noise schedule of a diffusers scheduler's configuration.

    Args:
        config: The configuration of any scheduler of a DDPM-trained model, or of a flow-matching one.

    Returns:
        The schedule.

    Raises:
        DraftError: The network predicts something else than epsilon or v, or its flow's shift depends on the
            resolution.
    """
    if str(config.get("_class_name", "")).startswith("FlowMatch"):
        if config.get("use_dynamic_shifting"):
            raise DraftError("the model's noise levels depend on the resolution (use_dynamic_shifting): not supported")
        return FlowSchedule(float(config.get("shift", 1.0)), int(config.get("num_train_timesteps", 1000)))
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise DraftError(f"the model's prediction_type must be epsilon or v_prediction (got {prediction})")
    ddim: Any = DDIMScheduler.from_config(config)
    return Schedule(tuple(ddim.alphas_cumprod.tolist()), prediction, int(config.get("steps_offset", 0)))


def _chunks(ids: Tensor) -> list[tuple[int, Tensor]]:
    return [(start, ids[start : start + _EMBED_BATCH]) for start in range(0, len(ids), _EMBED_BATCH)]
