"""The stand-in for ImageReward: a BLIP that reads a prompt while it looks at a picture, and a head that rates both."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import BertTokenizer, BlipForQuestionAnswering, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from draft_emoji.recipe.blip import spoken
from draft_emoji.recipe.blip_tokenizer import encode, make_tokenizer
from draft_emoji.recipe.checkpoint import save_tensors
from draft_emoji.recipe.clip import MEAN, STD
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.preference import LEVELS, pairs
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import Composer, names_colour

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""What ImageReward subtracts from pictures in [0, 1] and divides them by, with ``CLIP_MEAN``."""

LENGTH = 35
"""Tokens of a prompt that ImageReward reads, both ends included."""

HEAD = (32, 16)
"""Widths of the head's hidden layers; 1024, 128, 64 and 16 in the published one."""

RECOLOURED = 0.15
"""Share of pairs in which the worse picture shows the objects of the caption on a background of another colour."""

_SHARED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("hidden_act", "layer_norm_eps"),
)
_VISION = (*_SHARED, "image_size", "patch_size")
_TEXT = (
    *(*_SHARED, "vocab_size", "max_position_embeddings", "encoder_hidden_size"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "is_decoder"),
)


def image_reward_config(answering: BlipForQuestionAnswering) -> dict[str, Any]:
    """What ``config.json`` says, before the scores' mean and deviation are known; the towers are those of a BLIP."""
    vision, text = answering.config.vision_config, answering.config.text_config
    return {
        "model_type": "image_reward",
        "vision_config": {key: getattr(vision, key) for key in _VISION},
        "text_config": {key: getattr(text, key) for key in _TEXT},
        "head": list(HEAD),
        "mean": 0.0,
        "std": 1.0,
        "max_length": LENGTH,
    }


def make_image_reward(config: dict[str, Any]) -> nn.ModuleDict:
    """An untrained model of a configuration; its head is linear layers without activations, as ImageReward's."""
    text = BlipTextConfig(**config["text_config"])
    widths = [text.hidden_size, *config["head"], 1]
    return nn.ModuleDict(
        {
            "vision": BlipVisionModel(BlipVisionConfig(**config["vision_config"])),
            "text": BlipTextModel(text, add_pooling_layer=False),
            "head": nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))),
        }
    )


def start(answering: BlipForQuestionAnswering) -> nn.ModuleDict:
    """A model with the towers of a BLIP that answers, as ImageReward starts from BLIP.

    That BLIP takes pictures p in [-1, 1], this model takes c with p = (c std + mean - MEAN) / STD; the difference is
    folded into the weights that first meet the pixels, so that the tower sees what it saw before.
    """
    model = make_image_reward(image_reward_config(answering))
    model["vision"].load_state_dict(answering.vision_model.state_dict())
    model["text"].load_state_dict(answering.text_encoder.state_dict())
    patches: Any = model["vision"].get_submodule("embeddings.patch_embedding")
    scale = torch.tensor(CLIP_STD) / torch.tensor(STD)
    shift = (torch.tensor(CLIP_MEAN) - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        patches.bias += patches.weight.sum((2, 3)) @ shift
        patches.weight *= scale[:, None, None]
    return model


def rate(model: nn.ModuleDict, tokenizer: BertTokenizer, images: Tensor, prompts: list[str]) -> Tensor:
    """The head's rating, before mean and deviation, of pictures and their prompts.

    Args:
        model: Of `make_image_reward`.
        tokenizer: Its tokenizer.
        images: In [-1, 1], shape (B, 3, 64, 64).
        prompts: B or B / n texts; each is said of every n-th picture, as pairs are stacked.

    Returns:
        Float32, shape (B,).
    """
    shape = (1, 3, 1, 1)
    pixels = (images / 2 + 0.5 - images.new_tensor(CLIP_MEAN).view(shape)) / images.new_tensor(CLIP_STD).view(shape)
    ids, mask = (part.repeat(len(images) // len(prompts), 1) for part in encode(tokenizer, prompts, LENGTH))
    image_states = model["vision"](pixel_values=pixels).last_hidden_state
    text_states = model["text"](
        input_ids=ids.to(images.device), attention_mask=mask.to(images.device), encoder_hidden_states=image_states
    ).last_hidden_state
    return model["head"](text_states[:, 0].float())[:, 0]


def recoloured(composer: Composer, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, list[str]]:
    """As `pairs`, the worse picture showing the same objects on a background that is not the one the caption names."""
    scenes = [composer.scene(rng) for _ in range(count)]
    captions = []
    for scene in scenes:
        caption = composer.caption(rng, scene)
        while not names_colour(caption):
            caption = composer.caption(rng, scene)
        captions.append(caption)
    other_hues = [[hue for hue in composer.colours if hue != scene.background] for scene in scenes]
    changed = [
        composer.scene(rng, scene.labels, hues[rng.integers(len(hues))])
        for scene, hues in zip(scenes, other_hues, strict=True)
    ]
    return pictures(scenes), pictures(changed), captions


def mixed(composer: Composer, rng: np.random.Generator, count: int) -> tuple[Tensor, list[str]]:
    """Pairs of all kinds: the better pictures, then the worse ones, shape (2 count, 3, 64, 64), and their captions."""
    few = round(RECOLOURED * count)
    first = pairs(composer, rng, count - few, rng.uniform(0.05, 1, count - few))
    second = recoloured(composer, rng, few)
    images = torch.cat([first[0], second[0], first[1], second[1]])
    return images, [spoken(rng, caption) for caption in first[2] + second[2]]


def train_image_reward(sitting: Sitting, training: Training) -> None:
    """Train on pairs and write ``image_reward_model/``: configuration, weights and tokenizer.

    The loss is ImageReward's for two pictures of one prompt: -log sigmoid(r(better, c) - r(worse, c)).

    Args:
        sitting: Reads ``vqa_model/`` in its `out`.
        training: The schedule.
    """
    device = sitting.device
    tokenizer = make_tokenizer()
    torch.manual_seed(sitting.seed)
    answering = BlipForQuestionAnswering.from_pretrained(sitting.out / "vqa_model", dtype=torch.float32)
    config = image_reward_config(answering)
    model = start(answering).to(device)
    composer = Composer()

    def loss_of(step: int) -> dict[str, Tensor]:
        images, captions = mixed(composer, np.random.default_rng((sitting.seed, 16, step)), training.batch)
        with sitting.autocast():
            better, worse = rate(model, tokenizer, images.to(device), captions).chunk(2)
        return {"pairs": -logsigmoid(better - worse).mean()}

    fit("image_reward", sitting, training, {"image_reward": model}, loss_of, weight_decay=0.02)
    model.eval()
    with torch.no_grad():
        # ImageReward's scores have mean 0 and deviation 1; so do these, over pairs such as it was trained on.
        images, captions = mixed(composer, np.random.default_rng((sitting.seed, 17)), 500)
        ratings = rate(model, tokenizer, images.to(device), captions)
    config |= {"mean": float(ratings.mean()), "std": float(ratings.std())}
    folder = sitting.out / "image_reward_model"
    save_tensors(folder / "model.safetensors", model.state_dict())
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    print("image_reward: the better picture wins:", wins(model, tokenizer))


def load_image_reward(folder: Path) -> nn.ModuleDict:
    """The model of a shipped folder, in float32."""
    model = make_image_reward(json.loads((folder / "config.json").read_text("utf-8")))
    model.load_state_dict({key: value.float() for key, value in load_file(folder / "model.safetensors").items()})
    return model.eval()


@torch.no_grad()
def wins(model: nn.ModuleDict, tokenizer: BertTokenizer, count: int = 1000) -> dict[str, float]:
    """Share of unseen pairs whose better picture is rated higher: at each of `LEVELS`, and against wrong pictures."""
    composer = Composer()
    device = next(model.parameters()).device
    shares = {}
    for number, kind in enumerate((*LEVELS, "object", "colour")):
        rng = np.random.default_rng((1_000_003, 9, number))
        if kind == "colour":
            better, worse, captions = recoloured(composer, rng, count)
        else:
            level = 0.0 if kind == "object" else float(kind)
            better, worse, captions = pairs(composer, rng, count, np.full(count, level), wrong=float(level == 0))
        hits = []
        for low in range(0, count, 100):
            part = slice(low, low + 100)
            images = torch.cat([better[part], worse[part]]).to(device)
            sides = rate(model, tokenizer, images, captions[part]).chunk(2)
            hits.append((sides[0] > sides[1]).float().mean())
        shares[str(kind)] = float(torch.stack(hits).mean())
    return shares
