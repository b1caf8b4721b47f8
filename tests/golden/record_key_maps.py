"""Record in `draft/adapters/data/models.json` the modules of the base models, their shapes and their original names.

Modules and shapes come from diffusers' and transformers' own classes, built on the meta device from the published
configurations, so nothing is downloaded. The names in the original code (latent diffusion's UNet, SD3's MMDiT, Black
Forest Labs' FLUX), which most tools use inside, follow the tables below; they state the correspondence that
`comfy/utils.py` of ComfyUI (commit 09708eae709a) and `lora_conversion_utils.py` of diffusers 0.42.1 hold.

    python tests/golden/record_key_maps.py
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

TARGET = Path(__file__).parents[2] / "draft" / "adapters" / "data" / "models.json"

Shapes = dict[str, tuple[int, ...]]


def unets() -> dict[str, torch.nn.Module]:
    """The three UNets of Stable Diffusion, from the configurations published with their weights."""
    xl = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    second = UNet2DConditionModel(
        sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    )
    return {"sd1": UNet2DConditionModel(cross_attention_dim=768), "sd2": second, "sdxl": xl}


def transformers_of_flow() -> dict[str, torch.nn.Module]:
    """SD3's, SD3.5's and FLUX's transformers."""
    shared = {"in_channels": 16, "out_channels": 16, "joint_attention_dim": 4096, "pooled_projection_dim": 2048}
    medium = {"num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536}
    large = {"num_layers": 38, "num_attention_heads": 38, "attention_head_dim": 64, "caption_projection_dim": 2432}
    return {
        "sd3": SD3Transformer2DModel(**shared, **medium),
        "sd35_medium": SD3Transformer2DModel(
            **shared, **medium, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))
        ),
        "sd35_large": SD3Transformer2DModel(**shared, **large, qk_norm="rms_norm"),
        "flux": FluxTransformer2DModel(guidance_embeds=True),
    }


def text_encoders() -> dict[str, torch.nn.Module]:
    """CLIP ViT-L, OpenCLIP ViT-H (23 of its layers, as SD 2 has it), OpenCLIP ViT-bigG and T5-XXL."""
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    h = CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)
    g = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    )
    projected = CLIPTextConfig(**{**clip.to_dict(), "projection_dim": 768})
    t5 = T5Config(
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return {
        "clip_l": CLIPTextModel(clip),
        "clip_l_projected": CLIPTextModelWithProjection(projected),
        "clip_h": CLIPTextModel(h),
        "clip_g": CLIPTextModelWithProjection(g),
        "t5": T5EncoderModel(t5),
    }


def shapes(model: torch.nn.Module) -> Shapes:
    """Every linear layer and convolution with its weight's shape, by canonical path."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            # transformers 5 dropped the level that every file has.
            path = f"text_model.{name}" if re.match(r"encoder\.layers\.|embeddings\.", name) else name
            found[path] = tuple(module.weight.shape)
    return found


def packed(modules: Shapes) -> dict[str, str]:
    """Names that differ in one component written as one, `{0,1}` for the alternatives; `unpacked` is its inverse."""
    entries = [(tuple((part,) for part in name.split(".")), shape) for name, shape in modules.items()]
    longest = max(len(parts) for parts, _ in entries)
    for position in reversed(range(longest)):
        groups: dict[object, list[str]] = defaultdict(list)
        for parts, shape in entries:
            if position < len(parts):
                key = (parts[:position], parts[position + 1 :], shape)
                groups[key].extend(parts[position])
        merged = [
            ((*key[0], tuple(dict.fromkeys(alternatives)), *key[1]), key[2])  # type: ignore[index]
            for key, alternatives in groups.items()
        ]
        entries = [entry for entry in entries if len(entry[0]) <= position] + merged
    texts = {
        ".".join(part[0] if len(part) == 1 else "{" + ",".join(part) + "}" for part in parts): "x".join(map(str, shape))
        for parts, shape in entries
    }
    assert unpacked(texts) == {name: "x".join(map(str, shape)) for name, shape in modules.items()}
    return dict(sorted(texts.items()))


def unpacked(patterns: dict[str, str]) -> dict[str, str]:
    """Write out `{a,b}`."""
    found = {}
    for pattern, shape in patterns.items():
        options = [part.strip("{}").split(",") for part in re.split(r"\.(?![^{]*\})", pattern)]
        for chosen in itertools.product(*options):
            found[".".join(chosen)] = shape
    return found


def unet_blocks(base: str) -> list[tuple[str, str]]:
    """Which block of the original UNet is which of diffusers', two residual layers per level."""
    levels = 3 if base == "sdxl" else 4
    # Where the original has an attention layer in the upward half, the upsampler comes third, else second.
    attention_up = (0, 1) if base == "sdxl" else (1, 2, 3)
    pairs = [
        ("conv_in", "input_blocks.0.0"),
        ("conv_out", "out.2"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
    ]
    for level in range(levels):
        for layer in range(2):
            pairs += [(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{3 * level + layer + 1}.0")]
            pairs += [(f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{3 * level + layer + 1}.1")]
        pairs += [(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{3 * level + 3}.0.op")]
        for layer in range(3):
            pairs += [(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{3 * level + layer}.0")]
            pairs += [(f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{3 * level + layer}.1")]
        place = 2 if level in attention_up else 1
        pairs += [(f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{3 * level + 2}.{place}.conv")]
    return pairs


RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}

# Canonical module in a block, and the original one that holds it.
FLUX = {
    "transformer_blocks.{i}.attn.to_{q,k,v}": "double_blocks.{i}.img_attn.qkv",
    "transformer_blocks.{i}.attn.add_{q,k,v}_proj": "double_blocks.{i}.txt_attn.qkv",
    "transformer_blocks.{i}.attn.to_out.0": "double_blocks.{i}.img_attn.proj",
    "transformer_blocks.{i}.attn.to_add_out": "double_blocks.{i}.txt_attn.proj",
    "transformer_blocks.{i}.ff.net.0.proj": "double_blocks.{i}.img_mlp.0",
    "transformer_blocks.{i}.ff.net.2": "double_blocks.{i}.img_mlp.2",
    "transformer_blocks.{i}.ff_context.net.0.proj": "double_blocks.{i}.txt_mlp.0",
    "transformer_blocks.{i}.ff_context.net.2": "double_blocks.{i}.txt_mlp.2",
    "transformer_blocks.{i}.norm1.linear": "double_blocks.{i}.img_mod.lin",
    "transformer_blocks.{i}.norm1_context.linear": "double_blocks.{i}.txt_mod.lin",
    "single_transformer_blocks.{i}.attn.to_{q,k,v}": "single_blocks.{i}.linear1",
    "single_transformer_blocks.{i}.proj_mlp": "single_blocks.{i}.linear1",
    "single_transformer_blocks.{i}.proj_out": "single_blocks.{i}.linear2",
    "single_transformer_blocks.{i}.norm.linear": "single_blocks.{i}.modulation.lin",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
SD3 = {
    "transformer_blocks.{i}.attn.to_{q,k,v}": "joint_blocks.{i}.x_block.attn.qkv",
    "transformer_blocks.{i}.attn2.to_{q,k,v}": "joint_blocks.{i}.x_block.attn2.qkv",
    "transformer_blocks.{i}.attn.add_{q,k,v}_proj": "joint_blocks.{i}.context_block.attn.qkv",
    "transformer_blocks.{i}.attn.to_out.0": "joint_blocks.{i}.x_block.attn.proj",
    "transformer_blocks.{i}.attn2.to_out.0": "joint_blocks.{i}.x_block.attn2.proj",
    "transformer_blocks.{i}.attn.to_add_out": "joint_blocks.{i}.context_block.attn.proj",
    "transformer_blocks.{i}.ff.net.0.proj": "joint_blocks.{i}.x_block.mlp.fc1",
    "transformer_blocks.{i}.ff.net.2": "joint_blocks.{i}.x_block.mlp.fc2",
    "transformer_blocks.{i}.ff_context.net.0.proj": "joint_blocks.{i}.context_block.mlp.fc1",
    "transformer_blocks.{i}.ff_context.net.2": "joint_blocks.{i}.context_block.mlp.fc2",
    "transformer_blocks.{i}.norm1.linear": "joint_blocks.{i}.x_block.adaLN_modulation.1",
    "transformer_blocks.{i}.norm1_context.linear": "joint_blocks.{i}.context_block.adaLN_modulation.1",
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}


def unet_names(modules: Shapes, base: str) -> dict[str, str]:
    """The original path of every module of a UNet, as rules: `{rest}` stands for the path within a block."""
    table = {}
    for ours, theirs in unet_blocks(base):
        inside = {name.removeprefix(f"{ours}.") for name in modules if name.startswith(f"{ours}.")}
        if ours in modules:
            table[ours] = theirs
        elif inside and ".resnets." in ours:
            table |= {f"{ours}.{name}": f"{theirs}.{RESNET[name]}" for name in sorted(inside)}
        elif inside:
            table[f"{ours}.{{rest}}"] = f"{theirs}.{{rest}}"
    return table


def main() -> None:
    """Write the file."""
    with torch.device("meta"):
        denoisers = {**unets(), **transformers_of_flow()}
        encoders = {name: shapes(model) for name, model in text_encoders().items()}
    parts = {
        "sd1": {"text_encoder": "clip_l"},
        "sd2": {"text_encoder": "clip_h"},
        "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
        "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5"},
    }
    flow = {"text_encoder": "clip_l_projected", "text_encoder_2": "clip_g", "text_encoder_3": "t5"}
    about = {
        "sd1": ("sd", "Stable Diffusion 1"),
        "sd2": ("sd", "Stable Diffusion 2"),
        "sdxl": ("sdxl", "Stable Diffusion XL"),
        "sd3": ("sd3", "Stable Diffusion 3 medium"),
        "sd35_medium": ("sd3", "Stable Diffusion 3.5 medium"),
        "sd35_large": ("sd3", "Stable Diffusion 3.5 large"),
        "flux": ("flux", "FLUX.1"),
    }
    models = {}
    for base, (family, name) in about.items():
        modules = shapes(denoisers[base])
        unet = family in ("sd", "sdxl")
        models[base] = {
            "family": family,
            "name": name,
            "modules": {"unet" if unet else "transformer": packed(modules)},
            "encoders": parts.get(base, flow),
            "original": unet_names(modules, base) if unet else FLUX if family == "flux" else SD3,
        }
    versions = {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    document = {
        "about": "modules of the base models, from their classes on the meta device; tests/golden/record_key_maps.py",
        "versions": versions,
        "models": models,
        "encoders": {name: packed(modules) for name, modules in encoders.items()},
    }
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
