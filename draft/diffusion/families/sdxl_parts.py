"""The parts of a Stable Diffusion XL model: their configurations at once, their weights when they are needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from packaging.version import Version
from torch import nn
from transformers.models.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from draft.diffusion.families.pretrained import reading_weights
from draft.errors import DraftError

TEXT = ("text_encoder", "text_encoder_2")
"""The text encoders' components, in the order of their states in the text."""

CLASSES: Mapping[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
"""The components with weights."""

_TOKENIZERS = ("tokenizer", "tokenizer_2")
_VARIANTS = (None, "fp16")


@dataclass(frozen=True)
class Parts:
    """A model whose weights have not been read.

    Args:
        configs: The configurations of unet, vae, text_encoder, text_encoder_2 and scheduler, complete with defaults.
        tokenizers: Both.
        zeros: Whether an empty negative prompt stands for zeros instead of the empty text.
        read: Reads a component's weights in a precision, into the CPU's memory.
    """

    configs: Mapping[str, Mapping[str, Any]]
    tokenizers: tuple[Any, Any]
    zeros: bool
    read: Callable[[str, torch.dtype], nn.Module]


def pretrained_parts(model: str) -> Parts:
    """Open a folder in diffusers' format, or a hub id.

    Args:
        model: Folder or hub id, a `StableDiffusionXLPipeline`.

    Returns:
        Its parts.

    Raises:
        DraftError: A component is missing, of a wrong type, damaged or unreachable.
    """
    with reading_weights(model):
        index: Any = DiffusionPipeline.load_config(model)
    check_components(model, index)
    with reading_weights(model):
        configs: dict[str, Any] = {part: UNet2DConditionModel.load_config(model, subfolder=part) for part in CLASSES}
        configs["scheduler"] = DDIMScheduler.load_config(model, subfolder="scheduler")
        tokenizers = tuple(CLIPTokenizer.from_pretrained(model, subfolder=name) for name in _TOKENIZERS)
    completed = complete(configs)
    check_configs(f"model {model!r}", completed)

    def read(part: str, dtype: torch.dtype) -> nn.Module:
        with reading_weights(model):
            return _pretrained(model, part, dtype)

    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    return Parts(completed, (tokenizers[0], tokenizers[1]), zeros, read)


def check_components(model: str, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline that lacks a component, or has one of another class.

    Args:
        model: Folder or hub id.
        index: Its `model_index.json`.

    Raises:
        DraftError: So it is; the first component is named.
    """
    wanted = {part: kind.__name__ for part, kind in CLASSES.items()} | dict.fromkeys(_TOKENIZERS, "CLIPTokenizer")
    for part, kind in {**wanted, "scheduler": ""}.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None
        if found is None or (Path(model).is_dir() and not (Path(model) / part).is_dir()):
            raise DraftError(
                f"model {model!r} has no {part}",
                hint=f"a StableDiffusionXLPipeline has {', '.join(wanted)} and scheduler; take the complete model",
            )
        if kind and found.removesuffix("Fast") != kind:
            raise DraftError(
                f"the {part} of model {model!r} must be {_a(kind)} (got {_a(found)})",
                hint="as in Stable Diffusion XL; Draft cannot train what puts other networks in their places",
            )


def complete(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Configurations with the defaults of what the files leave out, as the networks' classes have them."""
    found: dict[str, dict[str, Any]] = {"scheduler": dict(configs["scheduler"])}
    for part, kind in CLASSES.items():
        if part in TEXT:
            found[part] = CLIPTextConfig.from_dict(dict(configs[part])).to_dict()
        else:
            parameters = inspect.signature(kind.__init__).parameters.values()
            defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
            found[part] = defaults | dict(configs[part])
    return found


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
    taken = unet["projection_class_embeddings_input_dim"]
    if unet["addition_embed_type"] != "text_time" or taken != 6 * sizes + pooled:
        raise DraftError(
            f"the UNet of {what} must take six numbers of size and crop and the pooled text, {6 * sizes} + {pooled} "
            f"wide (got addition_embed_type {unet['addition_embed_type']}, {taken} wide)",
            hint="a refiner takes five and cannot be trained",
        )


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def precision(dtype: torch.dtype, library: str) -> dict[str, torch.dtype]:
    """The option that makes a library read weights in a precision; it was renamed."""
    renamed = {"diffusers": (diffusers.__version__, "0.42"), "transformers": (transformers.__version__, "5")}
    installed, since = renamed[library]
    return {"dtype" if Version(installed) >= Version(since) else "torch_dtype": dtype}


def _pretrained(model: str, part: str, dtype: torch.dtype) -> nn.Module:
    """A component from its plain file, else from that in half precision, the only one in some folders."""
    options = precision(dtype, "transformers" if part in TEXT else "diffusers")
    refused: OSError | None = None
    for variant in _VARIANTS:
        try:
            found: nn.Module = CLASSES[part].from_pretrained(
                model, subfolder=part, variant=variant, use_safetensors=True, **options
            )
        except OSError as error:
            refused = refused or error
        else:
            return found
    raise refused or OSError(part)
