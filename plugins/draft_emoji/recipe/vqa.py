"""The BLIP that answers: yes or no to a question about what a scene shows, starting from the captioner."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForQuestionAnswering

from draft_emoji.recipe.blip import WIDTH, Reading, likelihoods, write_blip
from draft_emoji.recipe.blip_tokenizer import encode, encode_written, make_tokenizer
from draft_emoji.recipe.judge import blemish
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.questions import ASKED, KINDS, NEVER_ASKED, questions
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import Composer, Scene
from draft_emoji.vocabulary import colours, entries


class Checking(nn.Module):
    """A linear head that reads, at each concept and colour of a question, whether the scene shows it; dropped later.

    Yes and no alone hardly teach anything, since they do not tell which word makes a question wrong: without this head
    their loss was still 0.65, chance being log 2, after 4,400 updates of a schedule of 7,000.
    """

    def __init__(self, tokenizer: BertTokenizer) -> None:
        super().__init__()
        self.shown = nn.Linear(WIDTH, 1)
        self.terms: dict[tuple[int, ...], str] = {}
        for entry in entries():
            for word in (*entry.words, *entry.other_forms):
                self.terms.setdefault(tuple(tokenizer(word, add_special_tokens=False).input_ids), entry.name)
        background = tokenizer.convert_tokens_to_ids("background")
        for colour in colours():
            self.terms[tokenizer.convert_tokens_to_ids(colour), background] = colour
        self.longest = max(map(len, self.terms))

    def wanted(self, ids: Tensor, scenes: list[Scene]) -> Tensor:
        """1 at the tokens of what a scene shows, 0 at those of what it does not, -1 elsewhere: shape of `ids`."""
        marks = torch.full(ids.shape, -1.0)
        for row, (tokens, scene) in enumerate(zip(ids.tolist(), scenes, strict=True)):
            place = 0
            while place < len(tokens):
                for length in range(self.longest, 0, -1):
                    term = self.terms.get(tuple(tokens[place : place + length]))
                    if term is not None:
                        marks[row, place : place + length] = term in (*scene.labels, scene.background)
                        place += length
                        break
                else:
                    place += 1
        return marks

    def loss(self, states: Tensor, ids: Tensor, scenes: list[Scene]) -> Tensor:
        """Cross-entropy over the marked tokens of questions.

        Args:
            states: Of the text encoder, shape (B, L, width).
            ids: The questions, shape (B, L).
            scenes: B scenes.
        """
        marks = self.wanted(ids, scenes).to(states.device)
        marked = marks >= 0
        return binary_cross_entropy_with_logits(self.shown(states[marked].float())[:, 0], marks[marked])


def answers(blip: BlipForQuestionAnswering, tokenizer: BertTokenizer, read: Tensor) -> Tensor:
    """log p(no | question, picture) and log p(yes | question, picture), the end token included: float32, shape (B, 2).

    Args:
        blip: The BLIP that answers.
        tokenizer: Its tokenizer.
        read: The text encoder's states of questions, shape (B, L, width).
    """
    written, whole = (part.to(read.device) for part in encode_written(tokenizer, ["no", "yes"]))
    count = len(read)
    log_likelihoods = likelihoods(
        blip.text_decoder, read.repeat(2, 1, 1), written.repeat_interleave(count, 0), whole.repeat_interleave(count, 0)
    )
    return log_likelihoods.view(2, count).T


def grouped(tokenizer: BertTokenizer, texts: list[str], groups: int | None = None) -> list[np.ndarray]:
    """Rows of questions that go together: BLIP's decoder in transformers 5.23 sees padding whatever mask it is given.

    Args:
        tokenizer: Of the BLIP.
        texts: B questions.
        groups: So many groups of nearly one length, which is faster; None for as many as there are lengths.
    """
    lengths = np.array([len(ids) for ids in tokenizer(texts).input_ids])
    order = np.argsort(lengths, kind="stable")
    if groups is not None:
        return np.array_split(order, groups)
    return np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)


def train_vqa(sitting: Sitting, training: Training) -> None:
    """Train the BLIP that answers and write ``vqa_model/`` as a transformers folder.

    Args:
        sitting: Reads ``caption_model/`` in its `out`.
        training: The schedule.
    """
    device = sitting.device
    tokenizer = make_tokenizer()
    torch.manual_seed(sitting.seed)
    blip = start(BlipForConditionalGeneration.from_pretrained(sitting.out / "caption_model", dtype=torch.float32)).to(
        device
    )
    reading, checking = Reading().to(device), Checking(tokenizer).to(device)
    composer = Composer()

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((sitting.seed, 15, step))
        scenes = [composer.scene(rng, one_object=0.5) for _ in range(training.batch)]
        texts, kinds = questions(rng, composer, scenes)
        images = blemish(pictures(scenes), rng).to(device)
        right = torch.tensor([int(kind == "true") for kind in kinds], device=device)
        log_probabilities, checked = [], []
        with sitting.autocast():
            states = blip.vision_model(pixel_values=images).last_hidden_state
            for rows in grouped(tokenizer, texts, 4):
                ids, read = look(blip, tokenizer, states[rows], [texts[row] for row in rows])
                log_probabilities.append(answers(blip, tokenizer, read).gather(1, right[rows, None]))
                checked.append(checking.loss(read, ids, [scenes[row] for row in rows]))
        return {
            "answers": -torch.cat(log_probabilities).mean(),
            "words": torch.stack(checked).mean(),
            "cells": 0.3 * reading.loss(states, scenes),
        }

    modules = {"vqa": blip, "reading": reading, "checking": checking}
    fit("vqa", sitting, training, modules, loss_of, weight_decay=0.02, every=200)
    write_blip(blip, tokenizer, sitting.out / "vqa_model")
    print("vqa: right answers, in all and where the question is in other words:", accuracy(blip, tokenizer))


def look(
    blip: BlipForQuestionAnswering, tokenizer: BertTokenizer, states: Tensor, texts: list[str]
) -> tuple[Tensor, Tensor]:
    """Token ids of questions, and what the text encoder makes of them while it looks at the vision tower's states."""
    ids, mask = (part.to(states.device) for part in encode(tokenizer, texts))
    return ids, blip.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states).last_hidden_state


def start(captioner: BlipForConditionalGeneration) -> BlipForQuestionAnswering:
    """A BLIP that answers, with the captioner's towers; what reads a question starts as what writes a caption."""
    blip = BlipForQuestionAnswering(captioner.config)
    blip.vision_model.load_state_dict(captioner.vision_model.state_dict())
    blip.text_encoder.load_state_dict(captioner.text_decoder.bert.state_dict())
    blip.text_decoder.load_state_dict(captioner.text_decoder.state_dict())
    return blip


@torch.no_grad()
def accuracy(blip: BlipForQuestionAnswering, tokenizer: BertTokenizer, count: int = 2000) -> dict[str, float]:
    """Share of right answers on unseen scenes: to yes and no alike, to each kind of statement, and to new wordings."""
    figures = {}
    for number, wordings in enumerate((ASKED, NEVER_ASKED)):
        composer, rng = Composer(), np.random.default_rng((1_000_003, 8, number))
        right, kinds = [], []
        for _ in range(0, count, 100):
            scenes = [composer.scene(rng) for _ in range(100)]
            texts, drawn = questions(rng, composer, scenes, wordings)
            states = blip.vision_model(pixel_values=pictures(scenes).to(blip.device)).last_hidden_state
            yes = torch.empty(100, dtype=torch.int64)
            for rows in grouped(tokenizer, texts):
                _, read = look(blip, tokenizer, states[rows], [texts[row] for row in rows])
                yes[rows] = answers(blip, tokenizer, read).argmax(1).cpu()
            right += (yes == torch.tensor([int(kind == "true") for kind in drawn])).tolist()
            kinds += drawn
        hits = np.array(right)
        shares = {kind: float(hits[[one == kind for one in kinds]].mean()) for kind in KINDS}
        # Half the weight on yes, whatever was drawn; the kinds of no are equally frequent.
        balanced = 0.5 * shares["true"] + 0.5 * float(np.mean([shares[kind] for kind in KINDS[1:]]))
        figures |= {"other_words": balanced} if number else {"balanced": balanced, **shares}
    return figures
