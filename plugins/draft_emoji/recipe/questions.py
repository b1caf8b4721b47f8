"""Questions about scenes, to be answered with yes or no, and what makes the answer no."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from draft_emoji.recipe.blip import spoken
from draft_emoji.scenes import Composer, Scene, names_colour

FIGURE = 'Does this figure show "{}"? Please answer yes or no.'
THERE = "Is there {} in the image?"

ASKED = (
    *(FIGURE, THERE) * 3,
    "Is there {}?",
    "Is there {} in this photo?",
    "Does the image show {}?",
    "Does this picture show {}?",
    "Can you see {}?",
    "Do you see {} in the picture?",
    "Does this figure contain {}? Answer yes or no.",
    'Is this a picture of "{}"?',
    'Does "{}" describe the image?',
)
"""How questions are put; the first two, which rewards ask, in two fifths of the cases."""

NEVER_ASKED = (
    "Does the photo show {}?",
    'Does this image contain "{}"? Please answer.',
    "Can you see {} in the image?",
)
"""Wordings that no training sees, for a figure."""

KINDS = ("true", "object", "colour", "added", "absent")
"""What a statement is: true, or false in one object, in the background, in an object too many, or altogether."""


def statement(rng: np.random.Generator, composer: Composer, scene: Scene, kind: str) -> str:
    """Something that may be said of a scene, as a caption says it: about all of it, one object, or its background.

    Args:
        rng: Where choices come from.
        composer: Which concepts and colours there are.
        scene: The scene.
        kind: One of `KINDS`.
    """
    labels, background = list(scene.labels), scene.background
    if kind == "added" or rng.random() < 0.4:
        labels = [labels[rng.integers(len(labels))]]
    absent = [name for name in composer.names if name not in scene.labels]
    other = absent[rng.integers(len(absent))]
    if kind == "colour":
        other_colours = [colour for colour in composer.colours if colour != background]
        background = other_colours[rng.integers(len(other_colours))]
    elif kind == "object":
        labels[rng.integers(len(labels))] = other
    elif kind == "added":
        labels.insert(int(rng.integers(2)), other)
    elif kind == "absent":
        labels = [other]
    if kind in ("true", "colour") and rng.random() < 0.1:
        return f"a {background} background"
    described = replace(scene, labels=tuple(labels), background=background)
    caption = composer.caption(rng, described)
    while kind == "colour" and not names_colour(caption):
        caption = composer.caption(rng, described)
    return caption


def questions(
    rng: np.random.Generator, composer: Composer, scenes: list[Scene], wordings: tuple[str, ...] = ASKED
) -> tuple[list[str], list[str]]:
    """One question for each scene, half of them to be answered with yes, and the kinds of what they ask about."""
    kinds = [KINDS[0] if rng.random() < 0.5 else KINDS[rng.integers(1, len(KINDS))] for _ in scenes]
    texts = [
        wordings[rng.integers(len(wordings))].format(spoken(rng, statement(rng, composer, scene, kind)))
        for scene, kind in zip(scenes, kinds, strict=True)
    ]
    return texts, kinds
