"""The captioner: a BLIP whose likelihood of a caption says how well a scene shows it; the other BLIPs start from it."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    PreTrainedModel,
)
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from draft_emoji.recipe.blip_tokenizer import LENGTH, encode_written, make_tokenizer
from draft_emoji.recipe.clip import MEAN, STD, truth, wrong_caption
from draft_emoji.recipe.detector import inside, objects
from draft_emoji.recipe.judge import blemish
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import SIZE, Composer, Scene
from draft_emoji.vocabulary import OTHER_WORDS, colours, concepts, entries

WIDTH = 64
"""Of all towers: a decoder that answers reads the states of a text as it would read those of a picture."""

TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
"""Weights of a decoder to those whose memory they share; a transformers folder holds only the latter."""

_MEANT = {"no", "not", "orange", *colours(), *(part for entry in entries() for part in " ".join(entry.words).split())}

NOISE = tuple(word for word in OTHER_WORDS if word not in _MEANT)
"""Words that change nothing of what a caption says."""


def blip_config(tokenizer: BertTokenizer) -> BlipConfig:
    """Three layers that see and two that read or write; special ids as this tokenizer has them."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    # The vision tower's default deviation of 1e-10 is for weights that are read from a file.
    vision = {"image_size": SIZE, "patch_size": 8, "num_hidden_layers": 3, "initializer_range": 0.02}
    text = {
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer) + 1,
        "max_position_embeddings": LENGTH,
        "bos_token_id": len(tokenizer),
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "sep_token_id": tokenizer.sep_token_id,
    }
    return BlipConfig(text_config=shape | text, vision_config=shape | vision, projection_dim=WIDTH)


def image_processor() -> BlipImageProcessor:
    """The processor of all three, as the published models have it: the whole picture as a square, here of 64 px."""
    return BlipImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=list(MEAN), image_std=list(STD))


class Reading(nn.Module):
    """Linear heads that read the object at every cell and the background; they teach the tower and are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.object = nn.Linear(WIDTH, len(concepts()) + 1)
        self.colour = nn.Linear(WIDTH, len(colours()))

    def loss(self, states: Tensor, scenes: list[Scene]) -> Tensor:
        """Cross-entropy over cells, the last class being the bare background, and over the backgrounds' colours.

        Args:
            states: Of the vision tower, its class token first, shape (B, 1 + cells, width).
            scenes: B scenes.
        """
        labels, boxes, present = objects(scenes)
        within = inside(boxes, present, states.shape[1] - 1)
        bare = torch.full(within.shape[:2], len(concepts()))
        classes = torch.where(within[..., 0], labels[:, :1], torch.where(within[..., 1], labels[:, 1:], bare))
        hues = torch.tensor([list(colours()).index(scene.background) for scene in scenes])
        cells, colour = self.object(states[:, 1:].float()).flatten(0, 1), self.colour(states[:, 0].float())
        things = cross_entropy(cells, classes.flatten().to(cells.device))
        return things + 0.3 * cross_entropy(colour, hues.to(colour.device))


def likelihoods(decoder: BlipTextLMHeadModel, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """log p(text | states) = sum_t log p(w_t | w_<t, states), the end token included.

    Args:
        decoder: Of a captioner or of a BLIP that answers.
        states: What it looks at, shape (B, states, width).
        ids: Texts that start with ``[DEC]``, shape (B, L).
        mask: 0 where a text is padded, shape (B, L).

    Returns:
        Float32, shape (B,).
    """
    out = decoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states, use_cache=False)
    log_probabilities = out.logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (log_probabilities * mask[:, 1:]).sum(1)


def spoken(rng: np.random.Generator, text: str) -> str:
    """A text as a user may write it: one in ten with a word that means nothing here at an end or behind an article."""
    if rng.random() >= 0.1:
        return text
    words = text.split()
    places = [0, len(words), *(place + 1 for place, word in enumerate(words) if word in ("a", "an"))]
    words.insert(places[rng.integers(len(places))], NOISE[rng.integers(len(NOISE))])
    return " ".join(words)


def train_caption(sitting: Sitting, training: Training) -> None:
    """Train the captioner and write ``caption_model/`` as a transformers folder.

    Args:
        sitting: Where and how long.
        training: The schedule.
    """
    device = sitting.device
    tokenizer = make_tokenizer()
    torch.manual_seed(sitting.seed)
    blip = BlipForConditionalGeneration(blip_config(tokenizer)).to(device)
    reading = Reading().to(device)
    composer = Composer()

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((sitting.seed, 14, step))
        scenes = [composer.scene(rng, one_object=0.5) for _ in range(training.batch)]
        captions = [spoken(rng, composer.caption(rng, scene)) for scene in scenes]
        ids, mask = (part.to(device) for part in encode_written(tokenizer, captions))
        images = blemish(pictures(scenes), rng).to(device)
        with sitting.autocast():
            states = blip.vision_model(pixel_values=images).last_hidden_state
            log_likelihoods = likelihoods(blip.text_decoder, states, ids, mask)
        return {"words": -log_likelihoods.sum() / mask[:, 1:].sum(), "cells": reading.loss(states, scenes)}

    fit("caption", sitting, training, {"caption": blip, "reading": reading}, loss_of, weight_decay=0.02, every=200)
    write_blip(blip, tokenizer, sitting.out / "caption_model")
    print("caption: the right caption among 10 and 100, and against a wrong one:", retrieval(blip, tokenizer))


def write_blip(blip: PreTrainedModel, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write a BLIP of transformers with its tokenizer and its image processor."""
    blip.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)


@torch.no_grad()
def retrieval(
    blip: BlipForConditionalGeneration, tokenizer: BertTokenizer, rounds: int = 5
) -> tuple[float, float, float]:
    """Share of unseen scenes whose own caption is the likeliest of several.

    Returns:
        Among 10, and among 100, captions of different scenes; and the share of scenes whose own caption is likelier a
        token than one that is wrong in one object or in the colour.
    """
    composer, rng = Composer(), np.random.default_rng((1_000_003, 7))
    tens, hundreds, hard = [], [], []
    for _ in range(rounds):
        scenes = [composer.scene(rng) for _ in range(100)]
        captions = [composer.caption(rng, scene) for scene in scenes]
        ids, mask = (part.to(blip.device) for part in encode_written(tokenizer, captions))
        states = blip.vision_model(pixel_values=pictures(scenes).to(blip.device)).last_hidden_state
        rows = [likelihoods(blip.text_decoder, one.expand(100, -1, -1), ids, mask) for one in states]
        table = torch.stack(rows).cpu()
        # A caption that is also true of another scene counts as right there.
        true = truth(scenes, captions)
        hundreds.append(true.gather(1, table.argmax(1, keepdim=True)).mean())
        for start in range(0, 100, 10):
            part = slice(start, start + 10)
            tens.append(true[part, part].gather(1, table[part, part].argmax(1, keepdim=True)).mean())
        right = table.diagonal() / mask[:, 1:].sum(1).cpu()
        wrong = [wrong_caption(rng, composer, scene) for scene in scenes]
        ids, mask = (part.to(blip.device) for part in encode_written(tokenizer, wrong))
        other = likelihoods(blip.text_decoder, states, ids, mask) / mask[:, 1:].sum(1)
        hard.append((right > other.cpu()).float().mean())
    ten, hundred, against = (float(torch.stack(shares).mean()) for shares in (tens, hundreds, hard))
    return ten, hundred, against
