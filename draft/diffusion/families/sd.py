"""Stable Diffusion 1.x and 2.x: one text encoder, a UNet, an autoencoder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import family_named
from draft.diffusion.families.architectures import TEXT_WIDTH
from draft.diffusion.families.components import Components, can_recompute
from draft.diffusion.families.pretrained import (
    check_weights,
    encoding,
    local_folder,
    read_component,
    read_config,
    read_index,
    read_tokenizer,
)
from draft.diffusion.families.problems import latent_sides
from draft.diffusion.families.single_file import NETWORKS, open_single_file, settle_prediction
from draft.diffusion.saturation import clip
from draft.diffusion.schedule import FlowSchedule, Schedule
from draft.errors import DraftError, DraftWarning
from draft.family import Family
from draft.types import Images, Latents, Size


@dataclass
class StableDiffusion:
    """A Stable Diffusion model; see `draft.diffusion.families.TextToImage`."""

    components: Components
    configs: Mapping[str, dict[str, Any]]
    tokenizer: Any
    noise: Schedule | FlowSchedule
    device: torch.device
    dtype: torch.dtype
    family: Family
    text_files: Sequence[Path]

    @property
    def network(self) -> nn.Module:
        """The UNet."""
        return self.components["unet"]

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """The text encoder; nothing once it is dropped."""
        if self.components.dropped("text_encoder"):
            return {}
        return {"text_encoder": self.components["text_encoder"]}

    @property
    def default_size(self) -> Size:
        """The size of the images the model was trained for."""
        sample = self.configs["unet"].get("sample_size") or 64
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return Size(int(height) * self.pixels_per_latent, int(width) * self.pixels_per_latent)

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along the side of one latent."""
        return 2 ** (len(self.configs["vae"].get("block_out_channels", (64,))) - 1)

    def encode(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """Embed prompts with the text encoder's last layer, without gradient, one by one.

        Args:
            prompts: B prompts.
            size: Without effect: the UNet is not told it.

        Returns:
            text (B, L, D) in the model's precision.

        Raises:
            RuntimeError: The text encoder was dropped.
        """
        encoder = self.components["text_encoder"]
        texts = [str(prompt) for prompt in prompts]
        limit = int(self.tokenizer.model_max_length)
        for text in texts:
            length = len(self.tokenizer(text, truncation=False, verbose=False).input_ids)
            if length > limit:
                warnings.warn(
                    f"prompt cut to {limit} tokens (got {length}): {text[:60]!r}...", DraftWarning, stacklevel=2
                )
        tokens = self.tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        ids = tokens.input_ids.to(self.device)
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        # Together, a prompt's numbers could depend in their last bits on how many others there are.
        with torch.no_grad(), encoding(self.dtype):
            states = [
                encoder(ids[k : k + 1], attention_mask=None if mask is None else mask[k : k + 1])[0]
                for k in range(len(texts))
            ]
        return Conditioning({"text": torch.cat(states)})

    def unconditional(self, negative_prompt: str, size: Size) -> Conditioning:
        """The negative prompt's embedding, text (1, L, D)."""
        return self.encode([negative_prompt], size)

    def drop_encoders(self) -> None:
        """Free the text encoder's memory."""
        self.components.drop(["text_encoder"])

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
        out = self.network(latents.to(self.dtype), time, encoder_hidden_states=text, return_dict=False)[0]
        return out.to(latents.dtype)

    def decode(self, latents: Latents, *, straight_through: bool = False) -> Images:
        """Decode latents to images, with gradient.

        Args:
            latents: (B, C, h, w), scaled to unit variance as the UNet sees them.
            straight_through: Whether the gradient passes where values are clipped; see `draft.diffusion.saturation`.

        Returns:
            sRGB clipped to [0, 1], (B, 3, H, W), in the latents' precision.
        """
        vae = self.components["vae"]
        scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        images = vae.decode(scaled.to(self.dtype), return_dict=False)[0].to(latents.dtype)
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
        channels = int(self.configs["unet"].get("in_channels", 4))
        return channels, height, width

    def schedule(self, size: Size, steps: int) -> Schedule | FlowSchedule:
        """The noise schedule, which is the same for every size and number of steps."""
        return self.noise

    def checkpoint_blocks(self, on: bool) -> bool:
        """Recompute the UNet's and the decoder's blocks in backward instead of keeping their activations."""
        self.components.recompute(["unet", "vae"], on)
        return can_recompute(self.network)


def load_stable_diffusion(model: str, *, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
    """Open a `StableDiffusionPipeline` folder, hub id or single-file checkpoint; no safety checker, no pickle.

    Args:
        model: Folder, `.safetensors` file or hub id.
        device: Where to.
        dtype: Precision of the weights, in which they are read.

    Returns:
        The model; its networks are read when they are needed.

    Raises:
        DraftError: Weights are missing or unreachable, a pickle was given, or it is no model that can be trained.
    """
    if Path(model).is_file():
        single = open_single_file(Path(model))
        configs, tokenizer, read = single.configs, single.tokenizer, single.read
        text_files = [Path(model)]
    else:
        folder = local_folder(model, StableDiffusionPipeline, without=("safety_checker", "feature_extractor"))
        check_weights(model, folder, NETWORKS)
        configs = {name: read_config(folder, name) for name in ("unet", "vae", "scheduler")}
        name = read_index(str(folder))["tokenizer"][1]
        tokenizer = read_tokenizer(model, folder, "tokenizer", name if hasattr(transformers, name) else "CLIPTokenizer")
        read, single = partial(_read, model, folder), None
        text_files = [folder / "text_encoder", folder / "tokenizer"]
    channels, latents = configs["unet"].get("in_channels", 4), configs["vae"].get("latent_channels", 4)
    if channels != latents:
        raise DraftError(
            f"model {model!r} is an inpainting or depth model, which Draft cannot train (its UNet takes "
            f"{channels} channels, the autoencoder makes {latents})"
        )
    schedule = read_schedule(configs["scheduler"])
    components = Components(read, device, dtype)
    loaded = StableDiffusion(components, configs, tokenizer, schedule, device, dtype, family_named("sd"), text_files)
    if single is not None and not single.settled and isinstance(schedule, Schedule):
        _settle(loaded, schedule)
    return loaded


def read_schedule(config: Mapping[str, Any]) -> Schedule | FlowSchedule:
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
    ddim: Any = DDIMScheduler.from_config(dict(config))
    return Schedule(tuple(ddim.alphas_cumprod.tolist()), prediction, int(config.get("steps_offset", 0)))


def _read(model: str, folder: Path, component: str, dtype: torch.dtype) -> nn.Module:
    return read_component(model, folder, component, NETWORKS[component], dtype)


def _settle(model: StableDiffusion, schedule: Schedule) -> None:
    """Let the network show what it predicts; those of Stable Diffusion 2 that predict v were trained for 768 pixels.

    The networks are read again when they are needed, so that the text encoder and the UNet are never there together.
    """
    blank = model.encode([""], model.default_size)
    model.components.forget()
    model.noise = settle_prediction(model, schedule, blank)
    model.components.forget()
    unet = model.configs["unet"]
    if model.noise.prediction == "v_prediction" and unet["cross_attention_dim"] == TEXT_WIDTH["2"]:
        unet["sample_size"] = 96
