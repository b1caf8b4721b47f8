"""Record in `draft/adapters/data/other_families.json` how LoRA files of families that Draft does not read are told.

Modules and shapes come from diffusers' own classes, built on the meta device from the published configurations (a
class's defaults where nothing is given), so nothing is downloaded. What a header calls a family is what the trainers
write: musubi-tuner (utils/sai_model_spec.py, commit 1852ad34; its network modules `networks.lora_wan`, ...), sd-scripts
and ai-toolkit (`ss_base_model_version`). `original` is what a family's own code calls layers that diffusers renames or
splits (Wan-Video/Wan2.1, Tencent/HunyuanVideo, black-forest-labs/flux2, Tongyi-MAI/Z-Image, NVlabs/Sana,
Alpha-VLLM/Lumina-Image-2.0), as diffusers 0.42.1 (loaders/lora_conversion_utils.py, single_file_utils.py) maps them.

    python tests/golden/record_other_families.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import torch

TARGET = Path(__file__).parents[2] / "draft" / "adapters" / "data" / "other_families.json"

STREAMS = {
    "double_blocks.#.img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "double_blocks.#.img_attn.proj": ("attn.to_out.#",),
    "double_blocks.#.txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "double_blocks.#.txt_attn.proj": ("attn.to_add_out",),
}
FLUX = {name: tuple(f"transformer_blocks.#.{end}" for end in ends) for name, ends in STREAMS.items()}
SINGLE = tuple(f"single_transformer_blocks.#.{end}" for end in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))

FAMILIES: list[dict[str, Any]] = [
    {
        "title": "FLUX.2",
        "header": [r"flux[ ._-]?2"],
        "sizes": {
            "dev": ("Flux2Transformer2DModel", {}),
            "klein 4B": (
                "Flux2Transformer2DModel",
                {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680},
            ),
            "klein 9B": (
                "Flux2Transformer2DModel",
                {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
            ),
        },
        "original": {
            **FLUX,
            "double_blocks.#.img_mlp.0": ("transformer_blocks.#.ff.linear_in",),
            "double_blocks.#.img_mlp.2": ("transformer_blocks.#.ff.linear_out",),
            "double_blocks.#.txt_mlp.0": ("transformer_blocks.#.ff_context.linear_in",),
            "double_blocks.#.txt_mlp.2": ("transformer_blocks.#.ff_context.linear_out",),
            "single_blocks.#.linear1": ("single_transformer_blocks.#.attn.to_qkv_mlp_proj",),
            "single_blocks.#.linear2": ("single_transformer_blocks.#.attn.to_out",),
        },
    },
    {
        "title": "FLUX.3",
        "header": [r"flux[ ._-]?3"],
        "sizes": {"klein": ("Flux3Transformer2DModel", {})},
        "names": [r"(content|txt)_mode_blocks_.*", r"single_blocks_#_(q_proj|k_proj|v_proj|attn_out|mlp_in|mlp_out)"],
    },
    {
        "title": "Chroma",
        "header": [r"\bchroma"],
        "sizes": {"Chroma1": ("ChromaTransformer2DModel", {})},
        "original": {
            **FLUX,
            "double_blocks.#.img_mlp.0": ("transformer_blocks.#.ff.net.0.proj",),
            "double_blocks.#.img_mlp.2": ("transformer_blocks.#.ff.net.2",),
            "single_blocks.#.linear1": SINGLE,
            "single_blocks.#.linear2": ("single_transformer_blocks.#.proj_out",),
        },
    },
    {
        "title": "Qwen-Image",
        "header": [r"qwen[ ._-]?image"],
        "sizes": {
            "2509, 2512": ("QwenImageTransformer2DModel", {}),
            "2.1": ("QwenImage21Transformer2DModel", {}),
        },
    },
    {
        "title": "Z-Image",
        "header": [r"\bz[ ._-]?image", r"lora_z_?image"],
        "sizes": {"Z-Image": ("ZImageTransformer2DModel", {})},
        "original": {
            "layers.#.attention.qkv": tuple(f"layers.#.attention.to_{letter}" for letter in "qkv"),
            "layers.#.attention.out": ("layers.#.attention.to_out.0",),
        },
    },
    {
        "title": "Krea 2",
        "header": [r"krea[ ._-]?2"],
        "sizes": {"Krea 2": ("Krea2Transformer2DModel", {})},
        "names": [r"blocks_#_attn_w[qkvo]"],
    },
    {
        "title": "Wan",
        "header": [r"\bwan[ ._-]?(2|video|21|22|t2v|i2v)?", r"lora_wan"],
        "sizes": {
            "14B": ("WanTransformer3DModel", {}),
            "1.3B": ("WanTransformer3DModel", {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}),
            "5B": (
                "WanTransformer3DModel",
                {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48},
            ),
        },
        "original": {
            **{f"blocks.#.self_attn.{letter}": (f"blocks.#.attn1.to_{letter}",) for letter in "qkv"},
            "blocks.#.self_attn.o": ("blocks.#.attn1.to_out.0",),
            **{f"blocks.#.cross_attn.{letter}": (f"blocks.#.attn2.to_{letter}",) for letter in "qkv"},
            "blocks.#.cross_attn.o": ("blocks.#.attn2.to_out.0",),
            "blocks.#.ffn.0": ("blocks.#.ffn.net.0.proj",),
            "blocks.#.ffn.2": ("blocks.#.ffn.net.2",),
        },
        "names": [r"blocks_#_cross_attn_[kv]_img", r"blocks_#_(self|cross)_attn_[qkvo]"],
    },
    {
        "title": "LTX-Video",
        "header": [r"\bltx", r"lora_ltx"],
        "sizes": {
            "LTX-Video": ("LTXVideoTransformer3DModel", {}),
            "LTX-2": ("LTX2VideoTransformer3DModel", {}),
        },
    },
    {
        "title": "HunyuanVideo",
        "header": [r"hunyuan[ ._-]?video", r"framepack", r"lora_hunyuan\b", r"\bhv_"],
        "sizes": {
            "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}),
            "1.5": ("HunyuanVideo15Transformer3DModel", {}),
        },
        "original": {
            **{name.replace("attn.", "attn_"): members for name, members in FLUX.items()},
            "double_blocks.#.img_mlp.fc1": ("transformer_blocks.#.ff.net.0.proj",),
            "double_blocks.#.img_mlp.fc2": ("transformer_blocks.#.ff.net.2",),
            "double_blocks.#.txt_mlp.fc1": ("transformer_blocks.#.ff_context.net.0.proj",),
            "double_blocks.#.txt_mlp.fc2": ("transformer_blocks.#.ff_context.net.2",),
            "double_blocks.#.img_mod.linear": ("transformer_blocks.#.norm1.linear",),
            "double_blocks.#.txt_mod.linear": ("transformer_blocks.#.norm1_context.linear",),
            "single_blocks.#.linear1": SINGLE,
            "single_blocks.#.linear2": ("single_transformer_blocks.#.proj_out",),
            "single_blocks.#.modulation.linear": ("single_transformer_blocks.#.norm.linear",),
        },
    },
    {
        "title": "HunyuanImage",
        "header": [r"hunyuan[ ._-]?image"],
        "sizes": {"2.1": ("HunyuanImageTransformer2DModel", {})},
    },
    {
        "title": "HiDream",
        "header": [r"hidream"],
        "sizes": {
            "I1": (
                "HiDreamImageTransformer2DModel",
                {
                    "patch_size": 2,
                    "in_channels": 16,
                    "num_layers": 16,
                    "num_single_layers": 32,
                    "attention_head_dim": 128,
                    "num_attention_heads": 20,
                    "caption_channels": [4096, 4096],
                    "text_emb_dim": 2048,
                    "num_routed_experts": 4,
                    "num_activated_experts": 2,
                    "axes_dims_rope": (64, 32, 32),
                    "max_resolution": (128, 128),
                    "llama_layers": list(range(48)),
                },
            )
        },
    },
    {
        "title": "Lumina 2",
        "header": [r"lumina"],
        "sizes": {"2": ("Lumina2Transformer2DModel", {})},
        "original": {
            "layers.#.attention.qkv": tuple(f"layers.#.attn.to_{letter}" for letter in "qkv"),
            "layers.#.attention.out": ("layers.#.attn.to_out.0",),
            "layers.#.feed_forward.w1": ("layers.#.feed_forward.linear_1",),
            "layers.#.feed_forward.w2": ("layers.#.feed_forward.linear_2",),
            "layers.#.feed_forward.w3": ("layers.#.feed_forward.linear_3",),
        },
    },
    {
        "title": "Sana",
        "header": [r"\bsana"],
        "sizes": {
            "1.6B": ("SanaTransformer2DModel", {}),
            "0.6B": (
                "SanaTransformer2DModel",
                {
                    "num_attention_heads": 36,
                    "num_layers": 28,
                    "num_cross_attention_heads": 16,
                    "cross_attention_head_dim": 72,
                    "cross_attention_dim": 1152,
                },
            ),
        },
        "original": {"blocks.#.attn.qkv": tuple(f"transformer_blocks.#.attn1.to_{letter}" for letter in "qkv")},
    },
    {
        "title": "PixArt",
        "header": [r"pixart"],
        "sizes": {"PixArt": ("PixArtTransformer2DModel", {})},
        "names": [r"blocks_#_cross_attn_(q|kv)_linear"],
    },
    {
        "title": "AuraFlow",
        "header": [r"aura[ ._-]?flow"],
        "sizes": {"0.3": ("AuraFlowTransformer2DModel", {})},
        "names": [r"(double|single)_layers_#_.*"],
    },
    {
        "title": "Cosmos",
        "header": [r"cosmos", r"\banima\b", r"lora_anima"],
        "sizes": {"Cosmos": ("CosmosTransformer3DModel", {})},
        "names": [r"(unet_)?blocks_#_(self|cross)_attn_(q_proj|k_proj|v_proj|output_proj)"],
    },
    {
        "title": "CogVideoX",
        "header": [r"cogvideo"],
        "sizes": {
            "2B": ("CogVideoXTransformer3DModel", {}),
            "5B": ("CogVideoXTransformer3DModel", {"num_attention_heads": 48, "num_layers": 42}),
        },
    },
    {"title": "CogView4", "header": [r"cogview"], "sizes": {"6B": ("CogView4Transformer2DModel", {})}},
    {"title": "Mochi", "header": [r"mochi"], "sizes": {"1": ("MochiTransformer3DModel", {})}},
    {"title": "Ideogram 4", "header": [r"ideogram"], "sizes": {"4": ("Ideogram4Transformer2DModel", {})}},
    {"title": "ERNIE-Image", "header": [r"ernie"], "sizes": {"ERNIE-Image": ("ErnieImageTransformer2DModel", {})}},
    {"title": "Kandinsky 5", "header": [r"kandinsky"], "sizes": {"5": ("Kandinsky5Transformer3DModel", {})}},
    {"title": "MiniMax-H3", "header": [r"minimax", r"\bh3\b"], "sizes": {"H3": ("MiniMaxH3Transformer3DModel", {})}},
    {"title": "Bria", "header": [r"\bbria", r"\bfibo\b"], "sizes": {"FIBO": ("BriaFiboTransformer2DModel", {})}},
    {"title": "OmniGen", "header": [r"omnigen"], "sizes": {}},
    {"title": "Stable Cascade", "header": [r"stable[ ._-]?cascade"], "sizes": {}},
    {"title": "Stable Video Diffusion", "header": [r"stable[ ._-]?video", r"\bsvd"], "sizes": {}},
    {"title": "AnimateDiff", "header": [r"animatediff"], "sizes": {}, "names": [r".*_motion_modules_#_.*"]},
]


def pattern(path: str) -> str:
    """A path with `#` for every number and `_` for `.`, as one spelling for dotted and for kohya's names."""
    return re.sub(r"(?<![^._])\d+(?![^._])", "#", path).replace(".", "_")


def modules(name: str, settings: dict[str, Any]) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The linear layers of a model by pattern, (out, in), and how many blocks it has of which kind."""
    with torch.device("meta"):
        model = getattr(diffusers, name)(**settings)
    shapes: dict[str, list[int]] = {}
    blocks: dict[str, int] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            shapes.setdefault(pattern(path), [module.out_features, module.in_features])
            if match := re.match(r"([\w.]*?)\.(\d+)\.", path):
                kind = match[1].replace(".", "_")
                blocks[kind] = max(blocks.get(kind, 0), int(match[2]) + 1)
    return shapes, blocks


def record() -> dict[str, Any]:
    """All families as the file holds them."""
    families = []
    for family in FAMILIES:
        sizes = {}
        for size, (name, settings) in family["sizes"].items():
            shapes, blocks = modules(name, settings)
            for original, members in family.get("original", {}).items():
                parts = [shapes[pattern(member)] for member in members if pattern(member) in shapes]
                if len(parts) == len(members):
                    shapes[pattern(original)] = [sum(part[0] for part in parts), parts[0][1]]
                    ours, theirs = (pattern(path).split("_#_")[0] for path in (members[0], original))
                    blocks[theirs] = blocks[ours]
            packed = {name: "x".join(map(str, shape)) for name, shape in sorted(shapes.items())}
            sizes[size] = {"blocks": dict(sorted(blocks.items())), "modules": packed}
        families.append({"title": family["title"], "header": family["header"], "names": family.get("names", [])})
        families[-1]["sizes"] = sizes
    return {
        "about": "linear layers (out x in) of families that are not read; tests/golden/record_other_families.py",
        "versions": {"diffusers": diffusers.__version__},
        "families": families,
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(record(), indent=1) + "\n")
