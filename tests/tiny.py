"""Tiny models with random weights, one of each family, 16 px images from 8x8x4 latents, and adapters for them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WORDS = 16


def save_tiny_model(
    folder: Path, *, prediction: str = "epsilon", unet: dict[str, Any] | None = None, vae: dict[str, Any] | None = None
) -> Path:
    """Write a StableDiffusionPipeline; `unet` and `vae` override entries of the networks' configurations."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = [chr(c) for c in range(33, 127)]
    tokens = alphabet + [f"{c}</w>" for c in alphabet] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=WORDS)
    unet_config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
    } | (unet or {})
    vae_config: dict[str, Any] = {
        "latent_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 16,
        "scaling_factor": 0.4,
    } | (vae or {})
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=int(unet_config["cross_attention_dim"]),
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=WORDS,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
        )
    )
    draw_weights(text_encoder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        networks = UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    StableDiffusionPipeline(
        vae=networks[1],
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=networks[0],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def draw_weights(encoder: torch.nn.Module) -> None:
    """Give a CLIP text encoder random matrices that no version of a library has a part in."""
    import torch

    generator = torch.Generator().manual_seed(0)
    # Version 5 of transformers calls `text_model.embeddings` what is `embeddings`; nothing else differs.
    for _, tensor in sorted((name.removeprefix("text_model."), p) for name, p in encoder.named_parameters()):
        if tensor.ndim > 1:
            tensor.data.copy_(0.02 * torch.randn(tensor.shape, generator=generator))


def save_tiny_xl(folder: Path) -> Path:
    """Write a StableDiffusionXLPipeline."""
    file = Path(__file__).with_name("tiny_xl.py")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.save_tiny_xl(folder)


FAMILIES: Mapping[str, Callable[[Path], Path]] = {"sd": save_tiny_model, "sdxl": save_tiny_xl}
"""A model family to what writes a tiny model of it; a new family is one entry more."""


def save_outline(folder: Path) -> Path:
    """Write what a check reads of a Stable Diffusion model: its index and folders without weights."""
    from draft.diffusion.families import family_named

    family = family_named("sd")
    index: dict[str, Any] = {"_class_name": family.pipeline}
    for component, kind in family.components.items():
        (folder / component).mkdir(parents=True)
        index[component] = ["library", kind]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def save_tiny_adapter(model: Path, path: Path) -> Path:
    """Write an adapter with random weights for the attention of a model's denoiser; it changes what is drawn."""
    import torch

    from draft.adapters.files.formats import Adapter, Factors, write_adapter
    from draft.diffusion.families import load_text_to_image

    loaded = load_text_to_image(str(model), device=torch.device("cpu"), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    modules = {
        f"{loaded.family.part}.{name}": Factors(
            torch.randn(4, module.in_features, generator=generator),
            torch.randn(module.out_features, 4, generator=generator),
        )
        for name, module in loaded.network.named_modules()
        if name.endswith(("to_q", "to_v", "to_out.0"))
    }
    write_adapter(Adapter(modules, loaded.family.name), path)
    return path


if __name__ == "__main__":
    print(save_tiny_model(Path(sys.argv[1])))
