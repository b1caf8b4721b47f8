"""A tiny StableDiffusionXLPipeline with random weights in the published architecture: 16 px from 8x8x4 latents."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WORDS = 16
WIDTHS = (12, 20)
"""Of the two text encoders, unlike each other: a single file's are told apart by them."""

TIMES = 8
"""Width of the embedding of each number of size and crop."""


def save_tiny_xl(
    folder: Path,
    *,
    zeros: bool = True,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
) -> Path:
    """Write the pipeline with its shipped Euler scheduler; the dictionaries override entries of configurations."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = [chr(c) for c in range(33, 127)]
    tokens = alphabet + [f"{c}</w>" for c in alphabet] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizers = [
        CLIPTokenizer(*files, model_max_length=WORDS, pad_token=pad) for pad in ("<|endoftext|>", "!")
    ]  # "!" is the second's in the published model
    unet_config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 4),
        "use_linear_projection": True,
        "cross_attention_dim": sum(WIDTHS),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIMES,
        "projection_class_embeddings_input_dim": 6 * TIMES + WIDTHS[1],
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
        "scaling_factor": 0.13025,
    } | (vae or {})
    scheduler_config: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "interpolation_type": "linear",
    } | (scheduler or {})
    towers = [
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=WORDS,
            hidden_act=activation,
            projection_dim=width,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
        )
        for width, activation in zip(WIDTHS, ("quick_gelu", "gelu"), strict=True)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoders = CLIPTextModel(towers[0]), CLIPTextModelWithProjection(towers[1])
        networks = UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config)
        for encoder in encoders:  # as initialised, all prompts are nearly alike
            for parameter in encoder.parameters():
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    StableDiffusionXLPipeline(
        vae=networks[1],
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=networks[0],
        scheduler=EulerDiscreteScheduler(**scheduler_config),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


if __name__ == "__main__":
    print(save_tiny_xl(Path(sys.argv[1])))
