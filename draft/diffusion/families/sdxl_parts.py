"""The parts of a Stable Diffusion XL model: what their configurations say, and whether they fit together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import nn
from transformers.models.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from draft.diffusion.families.pretrained import (
    check_weights,
    local_folder,
    read_component,
    read_config,
    read_index,
    read_tokenizer,
)
from draft.errors import DraftError

TEXT = ("text_encoder", "text_encoder_2")
"""The text encoders' components, in the order of their states in the text."""

NETWORKS: Mapping[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
"""The components with weights."""

_TOKENIZERS = ("tokenizer", "tokenizer_2")


@dataclass(frozen=True)
class Parts:
    """A model whose weights have not been read.

    Args:
        configs: The configurations of unet, vae, text_encoder, text_encoder_2 and scheduler, complete with defaults.
        tokenizers: Both.
        zeros: Whether an empty negative prompt stands for zeros instead of the empty text.
        read: Reads a component's weights in a precision, into the CPU's memory.
        text_files: Files and folders that decide a prompt's embedding.
    """

    configs: Mapping[str, Mapping[str, Any]]
    tokenizers: tuple[Any, Any]
    zeros: bool
    read: Callable[[str, torch.dtype], nn.Module]
    text_files: tuple[Path, ...]


def open_pretrained(model: str) -> Parts:
    """Open a folder in diffusers' format, or a hub id.

    Args:
        model: Folder or hub id, a `StableDiffusionXLPipeline`.

    Returns:
        Its parts.

    Raises:
        DraftError: Files are missing, damaged or unreachable, or the parts do not fit.
    """
    folder = local_folder(model, StableDiffusionXLPipeline)
    check_weights(model, folder, NETWORKS)
    configs = complete({part: read_config(folder, part) for part in (*NETWORKS, "scheduler")})
    check_configs(f"model {model!r}", configs)
    first, second = (read_tokenizer(model, folder, name) for name in _TOKENIZERS)
    zeros = bool(read_index(str(folder)).get("force_zeros_for_empty_prompt", True))
    text_files = tuple(folder / name for name in (*TEXT, *_TOKENIZERS))
    return Parts(configs, (first, second), zeros, partial(_read, model, folder), text_files)


def complete(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Configurations with the defaults of what the files leave out, as the networks' classes have them.

    Args:
        configs: As the files have them, by component.

    Returns:
        Those of all components, the scheduler's as it is.
    """
    completed: dict[str, dict[str, Any]] = {"scheduler": dict(configs["scheduler"])}
    for part, kind in NETWORKS.items():
        if part in TEXT:
            completed[part] = CLIPTextConfig.from_dict(dict(configs[part])).to_dict()
        else:
            parameters = inspect.signature(kind.__init__).parameters.values()
            defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
            completed[part] = defaults | dict(configs[part])
    return completed


def check_configs(what: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse parts that do not fit together, and models that share the pipeline's class but not its mathematics.

    Args:
        what: The model in words, for the error.
        configs: As in `Parts`.

    Raises:
        DraftError: So it is.
    """
    unet, vae, scheduler = configs["unet"], configs["vae"], configs["scheduler"]
    if unet["in_channels"] != vae["latent_channels"]:
        raise DraftError(
            f"{what} is an inpainting or editing model, which Draft cannot train (its UNet takes "
            f"{unet['in_channels']} channels, the autoencoder makes {vae['latent_channels']})"
        )
    if unet["time_cond_proj_dim"] is not None:
        raise DraftError(
            f"{what} is a distilled model that takes the guidance scale as an input (time_cond_proj_dim "
            f"{unet['time_cond_proj_dim']}), which Draft cannot train",
            hint="train the model it was distilled from; the adapter mostly works on both",
        )
    if str(scheduler.get("_class_name", "")).startswith("EDM"):
        raise DraftError(
            f"{what} is trained in the EDM formulation ({scheduler['_class_name']}), which Draft cannot train yet",
            hint="models that predict noise or v can be trained",
        )
    text = sum(configs[name]["hidden_size"] for name in TEXT)
    if unet["cross_attention_dim"] != text:
        raise DraftError(
            f"the UNet of {what} attends to text of width {unet['cross_attention_dim']}, its text encoders make {text}"
        )
    sizes, pooled = unet["addition_time_embed_dim"] or 0, configs[TEXT[1]]["projection_dim"]
    width = unet["projection_class_embeddings_input_dim"]
    if unet["addition_embed_type"] != "text_time" or width != 6 * sizes + pooled:
        raise DraftError(
            f"the UNet of {what} must take six numbers of size and crop and the pooled text, {6 * sizes} + {pooled} "
            f"wide (got addition_embed_type {unet['addition_embed_type']}, {width} wide)",
            hint="a refiner takes five and cannot be trained",
        )


def _read(model: str, folder: Path, part: str, dtype: torch.dtype) -> nn.Module:
    return read_component(model, folder, part, NETWORKS[part], dtype)
