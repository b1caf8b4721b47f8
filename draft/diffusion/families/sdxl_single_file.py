"""Checkpoints of Stable Diffusion XL in one file: what the file does not say is known here, or beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import nn

from draft.diffusion.families.architectures import VAE
from draft.diffusion.families.sdxl_parts import NETWORKS, Parts, check_configs, complete
from draft.diffusion.families.single_file import read_json, tensor_shapes
from draft.diffusion.families.single_file_part import UNET, read_part
from draft.diffusion.families.vocabulary import clip_tokenizer
from draft.errors import DraftError

_PREFIXES = {
    "unet": (UNET,),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("conditioner.embedders.0.transformer.text_model.",),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
_FILES = dict.fromkeys(NETWORKS, "config.json") | {"scheduler": "scheduler_config.json"}
_PADDING = ("<|endoftext|>", "!")  # what each encoder's tokenizer fills prompts up with

# The published architecture, as diffusers names its numbers: Stability-AI/generative-models (sd_xl_base.yaml).
_TEXT_CONFIG = {"model_type": "clip_text_model", "vocab_size": 49408, "max_position_embeddings": 77}
PUBLISHED: Mapping[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "text_encoder": {
        **_TEXT_CONFIG,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
    "text_encoder_2": {
        **_TEXT_CONFIG,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
    "scheduler": {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
}
"""CLIP ViT-L/14, OpenCLIP ViT-bigG/14, and the networks of `stable-diffusion-xl-base-1.0`."""


def open_single_file(path: Path) -> Parts:
    """Open a checkpoint in the original layout, as A1111 and ComfyUI use it; only the vocabulary may need the hub.

    What is in the folder of the file's name next to it (`x/` next to `x.safetensors`), laid out as diffusers does it
    (`unet/config.json`, `scheduler/scheduler_config.json`, `tokenizer/vocab.json`, ...), wins over what is known here.
    Without a scheduler there, the tensors `v_pred` and `ztsnr` that such checkpoints carry mean a network that predicts
    v, and a schedule that ends without signal.

    Args:
        path: The `.safetensors` file.

    Returns:
        Its parts.

    Raises:
        DraftError: It is no such checkpoint, is incomplete, or the vocabulary cannot be found.
    """
    shapes = tensor_shapes(path)
    _check_complete(path, shapes)
    beside = path.with_suffix("")
    configs = {part: read_json(beside / part / file) or _published(part, shapes) for part, file in _FILES.items()}
    configs["scheduler"] = (
        PUBLISHED["scheduler"] | configs["scheduler"]
    )  # a file may say no more than what is predicted
    completed = complete(configs)
    check_configs(f"checkpoint {path}", completed)
    tokenizers = _tokenizers(path, beside)
    index = read_json(beside / "model_index.json") or {}
    zeros = index.get("force_zeros_for_empty_prompt", True)
    read = partial(_read, path, completed, tokenizers, shapes)
    return Parts(completed, tokenizers, bool(zeros), read, (path,))


def _tokenizers(path: Path, beside: Path) -> tuple[Any, Any]:
    """Both have one vocabulary; the second, where it has no folder of its own, differs by what it fills up with."""
    first = clip_tokenizer(path, beside / "tokenizer", padding=_PADDING[0])
    if (beside / "tokenizer_2").is_dir():
        return first, clip_tokenizer(path, beside / "tokenizer_2", padding=_PADDING[1])
    second = clip_tokenizer(path, beside / "tokenizer", padding=_PADDING[1])
    second.pad_token = _PADDING[1]  # a folder's own setting is the first's
    return first, second


def _published(part: str, shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    if part == "unet":
        return {**PUBLISHED["unet"], "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1]}
    if part == "scheduler" and "v_pred" in shapes:
        return {
            **PUBLISHED["scheduler"],
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": "ztsnr" in shapes,
        }
    return PUBLISHED[part]


def _check_complete(path: Path, shapes: Mapping[str, list[int]]) -> None:
    if edm := next((name for name in ("edm_mean", "edm_vpred.sigma_max") if name in shapes), ""):
        raise DraftError(
            f"checkpoint {path} is trained in the EDM formulation (it has {edm}), which Draft cannot train yet",
            hint="models that predict noise or v can be trained",
        )
    names = {"unet": "UNet", "vae": "autoencoder (VAE)", "text_encoder": "first text encoder"}
    lacks = [
        names.get(part, "second text encoder")
        for part, prefixes in _PREFIXES.items()
        if not any(name.startswith(prefixes) for name in shapes)
    ]
    if lacks or f"{UNET}input_blocks.0.0.weight" not in shapes:
        raise DraftError(
            f"checkpoint {path} has no {' and no '.join(lacks or ['complete UNet'])}",
            hint="take the full checkpoint, with everything baked in",
        )


def _read(
    path: Path,
    configs: Mapping[str, Mapping[str, Any]],
    tokenizers: tuple[Any, Any],
    shapes: Mapping[str, list[int]],
    part: str,
    dtype: torch.dtype,
) -> nn.Module:
    return read_part(
        path,
        part,
        dtype,
        pipeline=StableDiffusionXLPipeline,
        networks=NETWORKS,
        configs=configs,
        shapes=shapes,
        title=part,
        unlike=partial(_unlike, path),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        add_watermarker=False,
    )


def _unlike(path: Path, why: str) -> DraftError:
    return DraftError(
        f"checkpoint {path} is not like Stable Diffusion XL: {why}",
        hint=f"if it has other numbers, put its configuration, as diffusers writes it, into {path.with_suffix('')}",
    )
