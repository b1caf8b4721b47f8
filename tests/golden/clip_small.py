"""A small CLIP of ViT-L/14's proportions, LAION's head at its widths, and texts: what `clip.json` was recorded from.

Patches of 14 of 224 pixels, heads of 64, layers four times as wide inside, 77 of 49408 tokens, vectors of 768; narrower
and with three layers. Weights are made from whole numbers, and so are the same everywhere.
"""

from __future__ import annotations

import json
from math import log, prod
from pathlib import Path

import torch

WIDTH, LAYERS = 128, 3
HEAD = (768, 1024, 128, 64, 16, 1)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
START, END = 49406, 49407
PROMPTS = [
    "an astronaut before a flag",
    "a cup of coffee",
    "a cat that looks at you " + "and looks and looks " * 8 + "this is never read",
]


def tokens(text: str) -> list[int]:
    """A text's tokens in the vocabulary of `save`: one per letter, another one for a word's last; 77 at most."""
    ids = [LETTERS.index(c) + 26 * (i == len(word) - 1) for word in text.split() for i, c in enumerate(word)]
    return [START, *ids[:75], END]


def weights() -> dict[str, torch.Tensor]:
    """The weights by their names in the published files."""
    shapes = {
        "logit_scale": (),
        "text_model.embeddings.position_embedding.weight": (77, WIDTH),
        "text_model.embeddings.token_embedding.weight": (49408, WIDTH),
        "text_projection.weight": (768, WIDTH),
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, WIDTH),
        "visual_projection.weight": (768, WIDTH),
    }
    norms = ["text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for tower in ("text_model", "vision_model"):
        for layer in range(LAYERS):
            base = f"{tower}.encoder.layers.{layer}"
            norms += [f"{base}.layer_norm1", f"{base}.layer_norm2"]
            sizes = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
            sizes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
            for name, (rows, columns) in sizes.items():
                shapes |= {f"{base}.{name}.weight": (rows, columns), f"{base}.{name}.bias": (rows,)}
    for name in norms:
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    made = {}
    for number, name in enumerate(sorted(shapes)):
        values = _hashed(prod(shapes[name]), 10_000_000 * number).view(shapes[name])
        if "norm" in name or "layrnorm" in name:
            values = values * 0.3 + (1 if name.endswith("weight") else 0)
        elif name.endswith("bias"):
            values = values * 0.3
        elif "embedding" not in name or "patch" in name:
            # A gain of two: activations shall reach where QuickGELU and GELU differ.
            values = values * 2 * (3 / prod(shapes[name][1:])) ** 0.5
        made[name] = values.float().contiguous()
    made["logit_scale"] = torch.tensor(log(100.0))
    return made


def head() -> dict[str, torch.Tensor]:
    """The weights of a head of LAION's widths, which spreads unit vectors over several points as LAION's does."""
    made = {}
    for number, before, after in zip((0, 2, 4, 6, 7), HEAD, HEAD[1:], strict=False):
        start, gain = 2_000_000_000 + 2_000_000 * number, 50 if number == 0 else 1
        weight = _hashed(after * before, start).view(after, before) * gain * (3 / before) ** 0.5
        made[f"layers.{number}.weight"] = weight.float()
        made[f"layers.{number}.bias"] = (_hashed(after, start + 1_000_000) * 0.3).float()
    return made


def save(folder: Path, hidden_act: str) -> Path:
    """Write the CLIP as the hub has it; `hidden_act` is quick_gelu in OpenAI's models and gelu in LAION's."""
    from safetensors.torch import save_file
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "hidden_act": hidden_act,
    }
    tower["num_attention_heads"] = WIDTH // 64
    text = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": START, "eos_token_id": END}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": tower | text,
        "vision_config": tower | {"image_size": 224, "patch_size": 14},
    }
    processors = json.loads(Path(__file__).with_name("processors.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    processor = processors["openai/clip-vit-large-patch14"]["config"]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = {letter: number for number, letter in enumerate(LETTERS)}
    vocabulary |= {f"{letter}</w>": number + 26 for number, letter in enumerate(LETTERS)}
    vocabulary |= {f"<unused {number}>": number for number in range(52, START)}
    vocabulary |= {"<|startoftext|>": START, "<|endoftext|>": END}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    CLIPTokenizer(*files, model_max_length=77).save_pretrained(folder)
    return folder


def _hashed(count: int, start: int) -> torch.Tensor:
    """Numbers that look random, in [-1, 1): float64 (count,)."""
    x = (torch.arange(start, start + count) * 2654435761) & 0xFFFFFFFF
    for shift, factor in ((16, 0x45D9F3B), (15, 0x119DE1F3)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return ((x ^ (x >> 16)).double() - 2**31) / 2**31
