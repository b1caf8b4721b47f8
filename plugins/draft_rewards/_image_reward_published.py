"""The published weights of ImageReward, under the names that the BLIP of transformers has for them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_VISION, _BLOCK = r"blip\.visual_encoder\.", r"blip\.visual_encoder\.blocks\.(\d+)\."
_LAYER = r"vision.encoder.layers.\1."
_NAMES: tuple[tuple[str, str], ...] = (
    (_VISION + r"cls_token$", "vision.embeddings.class_embedding"),
    (_VISION + r"pos_embed$", "vision.embeddings.position_embedding"),
    (_VISION + r"patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (_VISION + r"norm\.", "vision.post_layernorm."),
    (_BLOCK + r"norm([12])\.", _LAYER + r"layer_norm\2."),
    (_BLOCK + r"attn\.qkv\.", _LAYER + "self_attn.qkv."),
    (_BLOCK + r"attn\.proj\.", _LAYER + "self_attn.projection."),
    (_BLOCK + r"mlp\.", _LAYER + "mlp."),
    (r"blip\.text_encoder\.", "text."),
    *((rf"mlp\.layers\.{old}\.", f"head.{new}.") for new, old in enumerate((0, 2, 4, 6, 7))),
)
"""How each published name begins, and our beginning in its place."""

_USED = re.compile(r"blip\.visual_encoder\.|blip\.text_encoder\.(?!embeddings\.position_ids$)|mlp\.")
"""What the score depends on; the published file also holds the two projections of BLIP's contrastive loss."""


def convert(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn published weights into our own layout; sizes are read off the tensors.

    Args:
        weights: The state dict of ImageReward-v1.0, or of a model that differs in sizes only.

    Returns:
        The configuration and the tensors.

    Raises:
        ValueError: A tensor is missing or not one of ImageReward's.
    """
    tensors = {}
    for name, tensor in weights.items():
        if _USED.match(name):
            tensors[_renamed(name)] = tensor
    try:
        return _configuration(tensors), tensors
    except KeyError as error:
        raise ValueError(f"its weights lack {error.args[0]!r}") from error


def _renamed(name: str) -> str:
    for old, new in _NAMES:
        renamed, count = re.subn("^" + old, new, name)
        if count:
            return renamed
    raise ValueError(f"its weights hold {name!r}, which ImageReward does not have")


def _configuration(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    def layers(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})

    patch = tensors["vision.embeddings.patch_embedding.weight"].shape
    places = tensors["vision.embeddings.position_embedding"].shape[1] - 1
    words = tensors["text.embeddings.word_embeddings.weight"].shape
    # Both towers have heads of 64 numbers, as ViT and BERT do in all their sizes.
    return {
        "model_type": "image_reward",
        "vision_config": {
            "hidden_size": patch[0],
            "intermediate_size": tensors["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": layers("vision.encoder.layers."),
            "num_attention_heads": patch[0] // 64,
            "image_size": math.isqrt(places) * patch[-1],
            "patch_size": patch[-1],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "vocab_size": words[0],
            "hidden_size": words[1],
            "encoder_hidden_size": patch[0],
            "intermediate_size": tensors["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
            "num_hidden_layers": layers("text.encoder.layer."),
            "num_attention_heads": words[1] // 64,
            "max_position_embeddings": tensors["text.embeddings.position_embeddings.weight"].shape[0],
            "pad_token_id": 0,
            "is_decoder": True,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
        },
        "head": [tensors[f"head.{number}.weight"].shape[0] for number in range(4)],
        "mean": 0.16717362830052426,
        "std": 1.0333394966054072,
        "max_length": 35,
    }
