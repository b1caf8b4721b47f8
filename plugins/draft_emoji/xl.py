"""`emoji_xl`: the embedded model in Stable Diffusion XL's format, its trained weights rearranged; nothing is trained.

Stable Diffusion XL attends to the next-to-last hidden states of two text towers in a row, [p1, p2]; `emoji` attends to
the last one, h, behind the final layer norm N. Both towers are `emoji`'s with layers behind it: the first has one more,
so that p1 = h; the second has two, of which the first computes h + N(h), so that p2 = h + N(h). Keys and values are
K p2 - K p1 = K N(h), then, which are `emoji`'s, up to rounding. That layer computes h + M(N(h)), with `emoji`'s norm in
front of a perceptron M that returns its input: gelu(x) - gelu(-x) = x, of the exact gelu and of the quick one. Size and
crop, which `emoji` does not know, have weight zero.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import draft
from draft_emoji import WEIGHTS

if TYPE_CHECKING:
    import numpy as np

    Tensors = dict[str, np.ndarray]

_TIME_IDS = 6
_TIME_WIDTH = 32  # of the embedding of each of the six numbers; 256 in the published model
_IDENTITIES = ("gelu", "quick_gelu")
_LAYER = "encoder.layers"


def place() -> Path:
    """The built model's folder within Draft's cache; another one wherever weights or this module are other ones."""
    digest = hashlib.sha256((WEIGHTS / "manifest.json").read_bytes() + Path(__file__).read_bytes())
    return Path(f"emoji_xl-{digest.hexdigest()[:16]}")


def write(folder: Path) -> None:
    """Write the model, a `StableDiffusionXLPipeline` in diffusers' format.

    Args:
        folder: An empty folder.
    """
    source = Path(draft.model_path("emoji"))
    for part in ("vae", "scheduler"):
        shutil.copytree(source / part, folder / part)
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(source / "tokenizer", folder / part)
    text = _read(source / "text_encoder" / "config.json")
    weights = _tensors(source / "text_encoder" / "model.safetensors")
    first, second = text_towers(weights, text)
    layers, width = text["num_hidden_layers"], text["hidden_size"]
    _write(folder / "text_encoder", "model", {**text, "num_hidden_layers": layers + 1}, first)
    name = "CLIPTextModelWithProjection"
    wider = {**text, "architectures": [name], "num_hidden_layers": layers + 2, "projection_dim": width}
    _write(folder / "text_encoder_2", "model", wider, second)
    config = _read(source / "unet" / "config.json")
    unet = denoiser(_tensors(source / "unet" / "diffusion_pytorch_model.safetensors"), width)
    conditioned = {
        "cross_attention_dim": 2 * width,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _TIME_WIDTH,
        "projection_class_embeddings_input_dim": _TIME_IDS * _TIME_WIDTH + width,
    }
    _write(folder / "unet", "diffusion_pytorch_model", config | conditioned, unet)
    index = _read(source / "model_index.json")
    for gone in ("safety_checker", "requires_safety_checker"):
        index.pop(gone)
    index |= {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": False,  # `emoji`'s unconditional branch is the embedding of the empty prompt
        "text_encoder_2": ["transformers", name],
        "tokenizer_2": index["tokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def text_towers(weights: Tensors, config: Mapping[str, Any]) -> tuple[Tensors, Tensors]:
    """The two text encoders of the larger format, whose next-to-last states are h and h + N(h).

    Args:
        weights: The small model's text encoder, of L layers, under the names of `CLIPTextModel`.
        config: Its configuration.

    Returns:
        Tensors of a `CLIPTextModel` of L + 1 layers, and of a `CLIPTextModelWithProjection` of L + 2.

    Raises:
        ValueError: Its perceptron cannot return its input: too narrow, or of another activation.
    """
    import numpy as np

    layers, width, inner = (config[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    if inner < 2 * width or config["hidden_act"] not in _IDENTITIES:
        raise ValueError(f"a perceptron of {inner} {config['hidden_act']} on {width} cannot return its input")
    like = {name.removeprefix(f"{_LAYER}.0."): t for name, t in weights.items() if name.startswith(f"{_LAYER}.0.")}
    unused = {name: np.zeros_like(tensor) for name, tensor in like.items()}  # a layer of zeros returns its input
    norm = {name: weights[f"final_layer_norm.{name}"] for name in ("weight", "bias")}
    one = np.eye(width, dtype=like["mlp.fc1.weight"].dtype)
    up, down = unused["mlp.fc1.weight"].copy(), unused["mlp.fc2.weight"].copy()
    up[: 2 * width], down[:, : 2 * width] = np.concatenate([one, -one]), np.concatenate([one, -one], axis=1)
    normed = unused | {"mlp.fc1.weight": up, "mlp.fc2.weight": down}
    normed |= {f"layer_norm2.{name}": tensor for name, tensor in norm.items()}
    first = weights | _placed(unused, layers)
    second = weights | _placed(normed, layers) | _placed(unused, layers + 1)
    projected = {f"text_model.{name}": tensor for name, tensor in second.items()} | {"text_projection.weight": one}
    return first, projected


def denoiser(weights: Tensors, width: int) -> Tensors:
    """The UNet of the larger format: keys and values of [p1, p2], and an embedding of size and crop without effect.

    Args:
        weights: The small model's UNet, under diffusers' names.
        width: Width of its text, D.

    Returns:
        Tensors of a `UNet2DConditionModel` that attends to 2 D numbers a word.
    """
    import numpy as np

    doubled = {
        name: np.concatenate([-tensor, tensor], axis=1)
        for name, tensor in weights.items()
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
    }
    embedding = weights["time_embedding.linear_2.weight"]
    shapes = {
        "linear_1.weight": (embedding.shape[0], _TIME_IDS * _TIME_WIDTH + width),
        "linear_1.bias": (embedding.shape[0],),
        "linear_2.weight": embedding.shape,
        "linear_2.bias": (embedding.shape[0],),
    }
    added = {f"add_embedding.{name}": np.zeros(shape, embedding.dtype) for name, shape in shapes.items()}
    return {**weights, **doubled, **added}


def _placed(layer: Tensors, index: int) -> Tensors:
    return {f"{_LAYER}.{index}.{name}": tensor for name, tensor in layer.items()}


def _tensors(file: Path) -> Tensors:
    from safetensors.numpy import load_file

    return load_file(file)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(folder: Path, name: str, config: Mapping[str, Any], tensors: Tensors) -> None:
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / f"{name}.safetensors", {"format": "pt"})
