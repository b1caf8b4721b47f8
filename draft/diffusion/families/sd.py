"""Stable Diffusion 1.x and 2.x: one text encoder, a UNet, an autoencoder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from draft.diffusion.families.single_file import load_single_file, settle_prediction
from draft.diffusion.saturation import clip
from draft.diffusion.schedule import FlowSchedule, Schedule
from draft.errors import DraftError, DraftWarning, ResourceError
from draft.types import Images, Latents

_EMBED_BATCH = 32


@dataclass
class StableDiffusion:
    """A Stable Diffusion model; see `draft.diffusion.families.TextToImage`."""

    unet: Any
    vae: Any
    tokenizer: Any
    text_encoder: nn.Module | None
    schedule: Schedule | FlowSchedule
    device: torch.device
    dtype: torch.dtype
    family: str = "sd"

    @property
    def default_resolution(self) -> int:
        """Side of the images the model was trained for, in pixels."""
        size: Any = self.unet.config.sample_size
        return int(size if isinstance(size, int) else size[0]) * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along the side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts with the text encoder's last layer, without gradient.

        Args:
            prompts: B prompts.

        Returns:
            (B, L, D) in the model's precision.

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
            return torch.cat(
                [
                    self.text_encoder(
                        ids.to(self.device), attention_mask=None if mask is None else mask[k : k + _EMBED_BATCH]
                    )[0]
                    for k, ids in _chunks(tokens.input_ids)
                ]
            )

    def drop_text_encoder(self) -> None:
        """Free the text encoder's memory."""
        self.text_encoder = None

    def denoise(self, latents: Latents, time: Tensor, embeddings: Tensor) -> Tensor:
        """Call the UNet in the model's precision.

        Args:
            latents: (N, C, h, w).
            time: Scalar.
            embeddings: (N, L, D).

        Returns:
            The output in the latents' precision, (N, C, h, w).
        """
        out = self.unet(
            latents.to(self.dtype), time, encoder_hidden_states=embeddings.to(self.dtype), return_dict=False
        )[0]
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

    def latent_shape(self, resolution: int | None) -> tuple[int, ...]:
        """Shape (C, h, w) of the latents of a square image.

        Args:
            resolution: Side in pixels; None: the model's own.

        Returns:
            (C, h, w).

        Raises:
            DraftError: The side is no multiple of what one latent covers.
        """
        side = resolution or self.default_resolution
        if side % self.pixels_per_latent:
            raise DraftError(f"resolution must be a multiple of {self.pixels_per_latent} for this model (got {side})")
        channels: Any = self.unet.config.in_channels
        return int(channels), side // self.pixels_per_latent, side // self.pixels_per_latent


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
    with _undisturbed():
        if path.is_file() or path.suffix in (".safetensors", ".ckpt", ".bin", ".pt"):
            pipeline, settled = load_single_file(path)
        else:
            pipeline = _from_pretrained(model)
    unet, vae, text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    if unet.config.in_channels != vae.config.latent_channels:
        raise DraftError(
            f"model {model!r} is an inpainting or depth model, which Draft cannot train (its UNet takes "
            f"{unet.config.in_channels} channels, the autoencoder makes {vae.config.latent_channels})"
        )
    for module in (unet, vae, text_encoder):
        nn.Module.to(module.requires_grad_(False).eval(), device, dtype)  # diffusers' own `to` warns of the cast
    schedule = read_schedule(pipeline.scheduler.config)
    loaded = StableDiffusion(unet, vae, pipeline.tokenizer, text_encoder, schedule, device, dtype)
    if not settled and isinstance(schedule, Schedule):
        loaded.schedule = settle_prediction(loaded, schedule)
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


def _from_pretrained(model: str) -> Any:
    if Path(model).is_dir() and not (Path(model) / "model_index.json").is_file():
        raise DraftError(f"folder {model} holds no diffusers model (no model_index.json)")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    hint = (
        "HF_HUB_OFFLINE is set: download it first, or give a folder"
        if offline
        else "give a folder, a .safetensors file, a named model (`draft models`), or a hub id that can be reached"
    )
    try:
        config: Any = DiffusionPipeline.load_config(model)
        family = config.get("_class_name", "unknown")
    except (OSError, ValueError) as error:
        raise _not_loaded(f"cannot load model {model!r}: {_first_line(error)}", model, hint=hint) from error
    if family != "StableDiffusionPipeline":
        raise DraftError(
            f"model {model!r} is a {family}, a family Draft cannot train yet",
            hint="Stable Diffusion 1.x and 2.x (StableDiffusionPipeline) can",
        )
    try:
        return StableDiffusionPipeline.from_pretrained(
            model,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        what = f"cannot load the weights of model {model!r}: {_first_line(error)}"
        raise _not_loaded(what, model, hint="Draft reads .safetensors weights only; " + hint) from error


def _not_loaded(what: str, model: str, *, hint: str) -> DraftError:
    if Path(model).exists():
        return DraftError(what, hint=hint)
    return ResourceError(what, needs="the model's files on this machine, or a way to the hub that has them", hint=hint)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Load without progress bars, and put back what loading changes: some releases of diffusers leave gradients off."""
    gradients = torch.is_grad_enabled()
    bars = [(library, library.is_progress_bar_enabled()) for library in (diffusers_logging, transformers_logging)]
    for library, _ in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        for library, enabled in bars:
            if enabled:
                library.enable_progress_bar()


def _chunks(ids: Tensor) -> list[tuple[int, Tensor]]:
    return [(start, ids[start : start + _EMBED_BATCH]) for start in range(0, len(ids), _EMBED_BATCH)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
