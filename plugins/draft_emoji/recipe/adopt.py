"""The shipped folders as a start: what shipped is trained further, without the checkpoints that made it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTextModel

from draft_emoji.recipe.blip import TIED
from draft_emoji.recipe.checkpoint import save_tensors
from draft_emoji.recipe.export import PARTS


def adopt(weights: Path, out: Path) -> None:
    """Write the shipped weights where the other commands look for them, in float32.

    Every command but `text` and `vae` can follow and goes on from the shipped weights, with a fresh optimizer; the
    denoiser from its running average.

    Args:
        weights: The package's folder of weights.
        out: The recipe's folder.

    Raises:
        SystemExit: `out` already holds a denoiser, which would be overwritten.
    """
    if (out / "unet").exists():
        raise SystemExit(f"adopt: {out / 'unet'} exists; give another --out, or train on with `unet`")
    folder = weights / "text_to_image"
    AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).save_pretrained(out / "vae")
    CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).save_pretrained(out / "text_encoder")
    shutil.copytree(folder / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    clip = CLIPModel.from_pretrained(weights / "clip", dtype=torch.float32)
    clip.save_pretrained(out / "clip_model")
    save_tensors(out / "clip" / "clip.safetensors", clip.state_dict())
    for part, shipped in PARTS.items():
        if (weights / shipped).exists():
            halves = load_file(weights / shipped / "model.safetensors")
            tensors = {key: value.float() if value.is_floating_point() else value for key, value in halves.items()}
            shutil.copytree(weights / shipped, out / f"{part}_model", dirs_exist_ok=True)
            save_tensors(out / f"{part}_model" / "model.safetensors", tensors)
            tied = {key: tensors[source] for key, source in TIED.items() if source in tensors}
            save_tensors(out / part / f"{part}.safetensors", tensors | tied)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    for name in ("unet", "smooth"):
        save_tensors(out / "unet" / f"{name}.safetensors", dict(unet.state_dict()))
    print(f"adopted {weights} into {out}")
