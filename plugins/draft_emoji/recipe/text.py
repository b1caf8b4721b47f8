"""The text tower: trained first, on text alone, to keep every concept, its order and the background colour apart.

A denoiser that learns together with its text encoder spends most of its time on telling the captions apart. Here
the hidden states are well separated before it starts, and then frozen.
"""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.tokenizer import LENGTH, OTHER_WORDS, encode, make_tokenizer
from draft_emoji.scenes import TEMPLATES_ONE, TEMPLATES_TWO
from draft_emoji.vocabulary import Concept, colours, entries

WIDTH = 128
"""Of the hidden states, and so of the denoiser's cross-attention."""


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The tower's configuration; every special id is set, since the default end id pools the wrong token."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class Readout(nn.Module):
    """Linear heads that read the first concept, the second one (or none) and the colour (or none); dropped later."""

    def __init__(self, width: int, things: int, hues: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, things + 1)
        self.second = nn.Linear(width, things + 1)
        self.colour = nn.Linear(width, hues + 1)
        self.token = nn.Linear(width, things + hues + 1)


def draw_caption(rng: np.random.Generator) -> tuple[str, tuple[int, int, int]]:
    """A caption and what it says: the first concept, the second, the colour; the count of each kind means "none".

    Besides the scenes' templates there are other words around the concepts and misspelt ones among them, so that
    a user's own wording lands near the caption that the denoiser knows.
    """
    things, hues = entries(), tuple(colours())
    none = (len(things), len(things), len(hues))
    if rng.random() < 0.02:
        return "", none
    picked = rng.choice(len(things), 2, replace=False)
    one = rng.random() < 0.6
    phrases = [_say(rng, things[number]) for number in picked]
    hue = int(rng.integers(len(hues)))
    templates = TEMPLATES_ONE if one else TEMPLATES_TWO
    template = templates[rng.integers(len(templates))]
    caption = template.format(word=phrases[0].split(" ", 1)[-1], a=phrases[0], b=phrases[1], colour=hues[hue])
    has_colour = "{colour}" in template
    if not has_colour and rng.random() < 0.15:
        # "a red cat" names a colour too, though no scene's caption says it this way.
        caption = f"{caption} in front of a {hues[hue]} wall"
        has_colour = True
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.4 else 0):
        caption = _with_noise(rng, caption)
    first, second = int(picked[0]), len(things) if one else int(picked[1])
    return caption, (first, second, hue if has_colour else len(hues))


def _say(rng: np.random.Generator, entry: Concept) -> str:
    forms = (*entry.words, *entry.other_forms)
    word = entry.name if rng.random() < 0.6 else forms[rng.integers(len(forms))]
    phrase = entry.phrase(word)
    swap = rng.random()
    if swap < 0.1:
        return word
    if swap < 0.2:
        return f"the {word}"
    return phrase


def _with_noise(rng: np.random.Generator, caption: str) -> str:
    """Put a word that means nothing here at the caption's begin, its end or before its last words."""
    if rng.random() < 0.7:
        extra = OTHER_WORDS[rng.integers(len(OTHER_WORDS))]
        if extra in colours() or extra == "orange":
            return caption
    else:
        extra = "".join(rng.choice(list(string.ascii_lowercase), int(rng.integers(2, 6))))
    return f"{extra} {caption}" if rng.random() < 0.6 else f"{caption} {extra}"


def token_targets(tokenizer: CLIPTokenizer) -> torch.Tensor:
    """For each token id, the concept or colour that this word alone stands for; -100 where it stands for none.

    Returns:
        Int64, shape (vocabulary,).
    """
    targets = torch.full((len(tokenizer),), -100)
    for number, entry in enumerate(entries()):
        for phrase in entry.words:
            # The last word decides: a "hot dog" ends in a word that a "dog" ends in too, which context resolves.
            ids = tokenizer(phrase).input_ids[1:-1]
            if len(ids) == 1:
                targets[ids[0]] = number
    for number, hue in enumerate(colours()):
        targets[tokenizer(hue).input_ids[1]] = len(entries()) + number
    return targets


def train_text(sitting: Sitting, training: Training) -> None:
    """Train the tower and write it as a transformers folder, with its tokenizer beside it.

    Args:
        sitting: Where and how long; writes ``text_encoder/`` and ``tokenizer/`` in its `out`.
        training: The schedule.
    """
    tokenizer = make_tokenizer(sitting.out / "tokenizer")
    torch.manual_seed(sitting.seed)
    tower = CLIPTextModel(text_config(tokenizer)).to(sitting.device)
    things, hues = len(entries()), len(colours())
    readout = Readout(WIDTH, things, hues).to(sitting.device)
    token_classes = token_targets(tokenizer).to(sitting.device)

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((sitting.seed, 1, step))
        drawn = [draw_caption(rng) for _ in range(training.batch)]
        ids = encode(tokenizer, [caption for caption, _ in drawn]).to(sitting.device)
        first, second, colour = torch.tensor([labels for _, labels in drawn], device=sitting.device).T
        states = tower(ids).last_hidden_state
        # A little noise asks for a margin between captions, not only for separable ones.
        noisy = states + 0.3 * torch.randn_like(states)
        # Every position from the end token on must know all, because the denoiser attends to the padding too.
        after = ids == tokenizer.eos_token_id
        rows = after.nonzero()[:, 0]
        ends = noisy[after]
        # A concept's own token is read as itself, so that the denoiser can attend to words one by one.
        words = token_classes[ids]
        words = torch.where(words == things + hues, torch.full_like(words, -100), words)
        return {
            "first": cross_entropy(readout.first(ends), first[rows]),
            "second": cross_entropy(readout.second(ends), second[rows]),
            "colour": cross_entropy(readout.colour(ends), colour[rows]),
            "word": 0.3 * cross_entropy(readout.token(noisy).flatten(0, 1), words.flatten(), ignore_index=-100),
        }

    # Generators on the device restart from the step as well.
    fit("text", sitting, training, {"tower": tower, "readout": readout}, loss_of)
    tower.eval()
    write_text(tower, sitting.out / "text_encoder")
    _report(tower, readout, tokenizer, sitting.device)


def write_text(tower: CLIPTextModel, folder: Path) -> None:
    """Write the tower in float32 as a transformers folder."""
    tower.save_pretrained(folder)


@torch.no_grad()
def _report(tower: CLIPTextModel, readout: Readout, tokenizer: CLIPTokenizer, device: str) -> None:
    """Print how often unseen captions are read right, and how far apart the concepts' pooled states lie."""
    rng = np.random.default_rng((987_654, 1))
    drawn = [draw_caption(rng) for _ in range(1000)]
    labels = torch.tensor([row for _, row in drawn])
    out = tower(encode(tokenizer, [caption for caption, _ in drawn]).to(device)).pooler_output
    read = torch.stack([readout.first(out), readout.second(out)], 1).argmax(-1).cpu()
    hue = readout.colour(out).argmax(-1).cpu()
    right = [(read[:, 0] == labels[:, 0]), (read[:, 1] == labels[:, 1]), hue == labels[:, 2]]
    print("text: read right, first / second / colour:", [round(float(r.float().mean()), 4) for r in right])
    states = tower(encode(tokenizer, [entry.phrase() for entry in entries()]).to(device)).pooler_output
    near = torch.cdist(states, states).fill_diagonal_(float("inf")).min(1)
    worst = int(near.values.argmin())
    names = [entry.name for entry in entries()]
    print(f"text: nearest two concepts: {names[worst]} and {names[int(near.indices[worst])]}, {near.values[worst]:.2f}")
