"""Checkpoints of open_clip's ViT-H-14 as models of transformers, and texts as open_clip's tokenizer takes them."""

from __future__ import annotations

import html
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from draft_rewards._loading import explained

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VIT_H_14: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
    },
}
"""open_clip's ViT-H-14 as transformers' configuration; what it leaves out is CLIP's: 224 pixels, 77 of 49408 tokens."""

_NAMES = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def load_open_clip(file: Path, *, what: str, device: torch.device, where: str) -> Any:
    """Load a ViT-H-14 from a checkpoint as open_clip trains and saves them: ``{"state_dict": ...}``.

    The file is mapped into memory and its tensors are converted one by one, so that a single copy is made.

    Args:
        file: The checkpoint, in half or single precision.
        what: What is being loaded, for errors.
        device: Where to put it.
        where: The reward's name, for errors.

    Returns:
        A `transformers.CLIPModel`, frozen, in evaluation mode and float32.

    Raises:
        DraftError: The file is broken, holds more than weights, or weights of another layout.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    with explained(what, str(file), where=where):
        source = dict(to_transformers(_read(file)))
        with torch.device("meta"):
            model = CLIPModel(CLIPConfig(**VIT_H_14))
        for name, wanted in model.state_dict().items():
            shape = tuple(source[name].shape) if name in source else "nothing"
            if shape != tuple(wanted.shape):
                raise ValueError(
                    f"it must be a ViT-H-14, whose {name} has the shape {tuple(wanted.shape)} (got {shape})"
                )
        if unknown := sorted(source.keys() - model.state_dict().keys()):
            raise ValueError(f"it must be a ViT-H-14, which has no {unknown[0]}")
        weights = {
            name: tensor.to(device, torch.float32, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in source.items()
        }
        model.load_state_dict(weights, assign=True)
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        # No weight but a row of numbers, which the checkpoint does not hold.
        row = torch.arange(embeddings.position_embedding.num_embeddings, device=device)[None]
        embeddings.register_buffer("position_ids", row, persistent=False)
    return model.eval().requires_grad_(False)


def _read(file: Path) -> Mapping[str, Tensor]:
    import torch

    try:
        # Files of the old format, which is no zip archive, cannot be mapped.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (UnpicklingError, EOFError) as error:
        raise ValueError(f"{file.name} is not a file of weights alone") from error
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"it must hold a dict with tensors under 'state_dict' (got {_outline(content)})")
    return weights


def _outline(content: Any) -> str:
    if not isinstance(content, dict):
        return type(content).__name__
    keys = [str(key) for key in content]
    return f"the keys {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"


def to_transformers(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Rename the tensors of an open_clip CLIP and cut them as transformers has them.

    Query, key and value are one matrix in open_clip and three here, and its projections are multiplied from the other
    side.

    Args:
        weights: The state dict of an open_clip CLIP with two transformers.

    Yields:
        Names and tensors of a `CLIPModel`, as views of the given ones.

    Raises:
        ValueError: A tensor has no place in a `CLIPModel`.
    """
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", stem)
        layer = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}" if block else ""
        if name in ("text_projection", "visual.proj"):
            yield _NAMES[name], tensor.T
        elif name in _NAMES:
            yield _NAMES[name], tensor
        elif stem in _NAMES:
            yield f"{_NAMES[stem]}.{kind}", tensor
        elif block and block[3] in _BLOCK_NAMES:
            yield f"{layer}.{_BLOCK_NAMES[block[3]]}.{kind}", tensor
        elif block and block[3] == "attn" and kind in ("in_proj_weight", "in_proj_bias"):
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{layer}.self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}", third
        else:
            raise ValueError(f"it must be a CLIP of open_clip with two transformers, which has no {name!r}")


_PLAIN: dict[int, str | None] = {
    **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
    # Ligatures and characters of full width.
    **{
        code: normalize("NFKC", chr(code))
        for code in (0x132, 0x133, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB05), 0xFB06)
    },
    **{code: normalize("NFKC", chr(code)) for code in (0x3000, *range(0xFF01, 0xFFF0))},
    **dict.fromkeys((*range(9), 11, *range(14, 32), 127, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))),
}


def clean_text(text: str) -> str:
    """Clean a text as open_clip's tokenizer does: entities, quotes, ligatures, widths, white space, lower case.

    Args:
        text: The text.

    Returns:
        What CLIP's byte-pair encoding makes of this is what open_clip makes of the text. Not so where the text is
        mojibake, wrongly decoded somewhere: open_clip has it repaired by the package ftfy, here it stays.
    """
    plain = html.unescape(html.unescape(text)).translate(_PLAIN)
    return " ".join(normalize("NFC", plain).split()).lower()


def with_clean_texts(tokenizer: Any) -> Callable[..., Any]:
    """A tokenizer of transformers that cleans its texts first.

    Args:
        tokenizer: The tokenizer.

    Returns:
        A function from a list of texts, with the tokenizer's own options.
    """

    def tokenize(texts: list[str], **options: Any) -> Any:
        return tokenizer([clean_text(text) for text in texts], **options)

    return tokenize
