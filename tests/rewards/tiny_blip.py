"""Tiny models that look and speak, with random weights: BLIPs, an ImageReward in Draft's layout, a PaliGemma."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

IMAGE_SIZE, PATCH = 24, 8
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;!?()-\"'"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *CHARACTERS, *(f"##{one}" for one in CHARACTERS), "a", "picture", "of", "yes", "no", "cat")
COLOURS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
# Fresh vision towers of transformers' BLIP draw their weights with a deviation of 1e-10.
VISION = {**TOWER, "image_size": IMAGE_SIZE, "patch_size": PATCH, "initializer_range": 0.1}
POSITIONS = 96


def words() -> list[str]:
    """The vocabulary, each word once."""
    return list(dict.fromkeys(VOCABULARY))


def save_tokenizer(folder: Path) -> Any:
    """Write a BertTokenizer that spells nearly every word; its ids begin with those of `SPECIAL`."""
    (folder / "vocab.txt").write_text("\n".join(words()), encoding="utf-8")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_config(extra: int) -> dict[str, Any]:
    """Arguments of a BlipTextConfig; `extra` embeddings lie behind the tokenizer's own, the first of them [DEC]."""
    ids = {"bos_token_id": len(words()), "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3}
    return {**TOWER, **ids, "vocab_size": len(words()) + extra, "max_position_embeddings": POSITIONS}


def save_blip(folder: Path, processor: Any, *, answers: bool = False, extra: int = 2) -> Path:
    """Write a captioning or an answering BLIP of about 60 k parameters with its tokenizer and its image processor."""
    config = transformers.BlipConfig(text_config=text_config(extra), vision_config=VISION)
    family = transformers.BlipForQuestionAnswering if answers else transformers.BlipForConditionalGeneration
    _seeded(lambda: family(config)).save_pretrained(folder)
    save_tokenizer(folder)
    processor(size=SIZE, **COLOURS).save_pretrained(folder)
    return folder


def image_reward() -> tuple[dict[str, Any], Any]:
    """An ImageReward of Draft's own layout, made from the description of that layout alone: configuration, modules."""
    from torch import nn

    text = {**text_config(1), "encoder_hidden_size": 32, "is_decoder": True}
    scale = {"head": [12, 6], "mean": 0.25, "std": 2.0, "max_length": 12}
    network = _seeded(
        lambda: nn.ModuleDict(
            {
                "vision": transformers.BlipVisionModel(transformers.BlipVisionConfig(**VISION)),
                "text": transformers.BlipTextModel(transformers.BlipTextConfig(**text), add_pooling_layer=False),
                "head": nn.Sequential(nn.Linear(32, 12), nn.Linear(12, 6), nn.Linear(6, 1)),
            }
        )
    )
    return {"model_type": "image_reward", "vision_config": VISION, "text_config": text, **scale}, network


def save_image_reward(folder: Path) -> Path:
    """Write it with its tokenizer."""
    from safetensors.torch import save_file

    config, network = image_reward()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_tokenizer(folder)
    return folder


def save_paligemma(folder: Path, processor: Any, *, second: bool = False) -> Path:
    """Write a PaliGemma, or a PaliGemma 2, of about 50 k parameters with a tokenizer of characters and its processor.

    As in the published files, the image's token lies behind the words that the model can say.
    """
    from tokenizers import AddedToken, Tokenizer, models

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", " ", *CHARACTERS, *CHARACTERS[:26].upper()]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:4]])
    image = len(pieces)
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    names = {name: f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    special = {f"{name}_token": token for name, token in names.items()}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    text = {
        **TOWER,
        "model_type": "gemma2" if second else "gemma",
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": len(pieces),
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    vision = {**TOWER, "model_type": "siglip_vision_model", "image_size": IMAGE_SIZE, "patch_size": PATCH}
    config = transformers.PaliGemmaConfig(
        text_config=text,
        vision_config={**vision, "vision_use_head": False, "projection_dim": 32},
        projection_dim=32,
        hidden_size=32,
        image_token_index=image,
    )
    _seeded(lambda: transformers.PaliGemmaForConditionalGeneration(config), 0.8, 0.1).save_pretrained(folder)
    fast.save_pretrained(folder)
    size = processor(size=SIZE)
    size.image_seq_length = (IMAGE_SIZE // PATCH) ** 2
    size.save_pretrained(folder)
    return folder


def _seeded(make: Callable[[], Any], scale: float = 1.0, embed: float = 0.7) -> Any:
    # Fresh networks are nearly constant functions, and every version of transformers draws them otherwise; with these
    # weights images and texts differ.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for name, weight in sorted(model.named_parameters()):
                if weight.ndim > 1:
                    deviation = embed if "embed" in name else scale / weight[0].numel() ** 0.5
                    weight.copy_(deviation * torch.randn(weight.shape))
                elif "bias" in name:
                    weight.copy_(0.1 * torch.randn(weight.shape))
    return model.eval()
