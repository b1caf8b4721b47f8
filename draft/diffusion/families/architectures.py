"""The published numbers of Stable Diffusion 1.x and 2.x, which a checkpoint in one file does not carry."""

from __future__ import annotations

from typing import Any, Literal

Version = Literal["1", "2"]

# The published architectures, as diffusers names their numbers: CompVis/stable-diffusion (v1-inference.yaml) and
# Stability-AI/stablediffusion (v2-inference.yaml, v2-inference-v.yaml).
_UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
}
_UNETS: dict[Version, dict[str, Any]] = {
    "1": {**_UNET, "attention_head_dim": 8, "cross_attention_dim": 768},
    "2": {**_UNET, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
}
VAE = {
    "_class_name": "AutoencoderKL",
    "sample_size": 512,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
"""The autoencoder of Stable Diffusion 1 and 2."""
_TEXT = {"model_type": "clip_text_model", "vocab_size": 49408, "max_position_embeddings": 77}
_TEXTS: dict[Version, dict[str, Any]] = {
    # CLIP ViT-L/14; and OpenCLIP ViT-H/14 without its last layer, which Stable Diffusion 2 does not use.
    "1": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
    "2": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
}
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

PADDING: dict[Version, str] = {"1": "<|endoftext|>", "2": "!"}
"""What the tokenizer fills prompts up with."""

TEXT_WIDTH: dict[Version, int] = {version: numbers["hidden_size"] for version, numbers in _TEXTS.items()}
"""Width of the text that the UNet attends to."""


def configuration(version: Version, *, channels: int) -> dict[str, dict[str, Any]]:
    """The configuration of every part, as diffusers and transformers name its numbers.

    Args:
        version: `1` for Stable Diffusion 1.x, `2` for 2.x. Whether 2.x predicts noise or v is not among the numbers.
        channels: Input channels of the UNet, 4 but in models for inpainting and the like.

    Returns:
        Configurations by part: unet, vae, text_encoder, scheduler.
    """
    return {
        "unet": {**_UNETS[version], "in_channels": channels},
        "vae": VAE,
        "text_encoder": {**_TEXT, **_TEXTS[version]},
        "scheduler": _SCHEDULER,
    }
