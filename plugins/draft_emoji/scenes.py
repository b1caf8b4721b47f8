"""Scenes composed from the shipped sprites: a coloured background and one or two objects at known places.

Only numpy and Pillow are needed. Composing one scene takes tens of microseconds, because every sprite is resized
to every size once, when a composer is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from draft_emoji.vocabulary import Concept, colours, entries

SHEET = Path(__file__).parent / "sprites.webp"
"""All sprites in one picture, `SPRITE` pixels each, `COLUMNS` in a row, in the vocabulary's order."""

SPRITE = 96
COLUMNS = 12
SIZE = 64
"""Side of a scene in pixels."""

ONE_OBJECT = (36, 54)
"""Smallest and largest side of the object where a scene holds one, in pixels; sizes are even."""

TWO_OBJECTS = (24, 34)
"""The same where it holds two."""

TEMPLATES_ONE = (
    "{a}",
    "{word}",
    "{a} on a {colour} background",
    "{a} on a {colour} background",
    "a photo of {a} on a {colour} background",
    "a photo of {a}",
    "an emoji of {a}",
    "an emoji of {a} on a {colour} background",
)
TEMPLATES_TWO = (
    "{a} and {b}",
    "{a} next to {b}",
    "{a} and {b} on a {colour} background",
    "{a} and {b} on a {colour} background",
    "{a} next to {b} on a {colour} background",
    "a photo of {a} and {b} on a {colour} background",
)


@dataclass(frozen=True)
class Scene:
    """A composed picture and what is in it.

    Attributes:
        image: RGB pixels, uint8, shape (64, 64, 3).
        labels: The concepts shown, the left one first.
        boxes: One row (left, top, right, bottom) for each label, in pixels, float32, shape (n, 4).
        background: Name of the background's colour.
    """

    image: np.ndarray
    labels: tuple[str, ...]
    boxes: np.ndarray
    background: str


class Composer:
    """Draws scenes; all randomness comes from the generator that a caller passes.

    Args:
        names: The concepts to draw from when a caller asks for any; all of them if None.
    """

    def __init__(self, names: list[str] | None = None) -> None:
        self.concepts: dict[str, Concept] = {entry.name: entry for entry in entries()}
        self.names = list(names or self.concepts)
        self.colours = colours()
        self._sprites = _resized()

    def scene(
        self,
        rng: np.random.Generator,
        labels: tuple[str, ...] | None = None,
        background: str | None = None,
        one_object: float = 0.65,
    ) -> Scene:
        """Compose one scene.

        Args:
            rng: Where all choices come from.
            labels: One or two concepts, the left one first; drawn if None.
            background: A colour's name; drawn if None.
            one_object: Share of scenes with one object where `labels` is None.

        Returns:
            The scene, with the tight boxes of its objects.
        """
        if labels is None:
            count = 1 if rng.random() < one_object else 2
            labels = tuple(self.names[i] for i in rng.choice(len(self.names), count, replace=False))
        background = background or tuple(self.colours)[rng.integers(len(self.colours))]
        image = _background(rng, self.colours[background])
        if len(labels) == 1:
            places = [_place(rng, ONE_OBJECT, 0, SIZE)]
        else:
            places = [_place(rng, TWO_OBJECTS, 0, SIZE // 2 + 2), _place(rng, TWO_OBJECTS, SIZE // 2 - 2, SIZE)]
        boxes = []
        for label, (side, left, top) in zip(labels, places, strict=True):
            colour, keep, box = self._sprites[label, side]
            patch = image[top : top + side, left : left + side]
            patch *= keep
            patch += colour
            boxes.append(box + np.array([left, top, left, top], np.float32))
        return Scene(np.clip(image + 0.5, 0, 255).astype(np.uint8), tuple(labels), np.stack(boxes), background)

    def caption(self, rng: np.random.Generator, scene: Scene) -> str:
        """Say what a scene shows, from a drawn template with drawn synonyms; the colour is not always named."""
        forms = []
        for label in scene.labels:
            entry = self.concepts[label]
            # The name itself is said in most captions; synonyms share the rest.
            word = entry.name if rng.random() < 0.7 else entry.words[rng.integers(len(entry.words))]
            forms.append((word, entry.phrase(word)))
        templates = TEMPLATES_ONE if len(forms) == 1 else TEMPLATES_TWO
        template = templates[rng.integers(len(templates))]
        return template.format(word=forms[0][0], a=forms[0][1], b=forms[-1][1], colour=scene.background)


def names_colour(caption: str) -> bool:
    """True where a caption of this module names the background."""
    return caption.endswith(" background")


def _background(rng: np.random.Generator, colour: tuple[int, int, int]) -> np.ndarray:
    """A flat colour, a little off its name, with a slight vertical gradient: float32, 0 to 255, (64, 64, 3)."""
    shade = np.asarray(colour, np.float32) + rng.normal(0, 5, 3).astype(np.float32)
    slope = np.linspace(1, -1, SIZE, dtype=np.float32)[:, None, None] * np.float32(rng.uniform(-14, 14))
    return np.clip(np.broadcast_to(shade + slope, (SIZE, SIZE, 3)), 0, 255).copy()


def _place(rng: np.random.Generator, sides: tuple[int, int], low: int, high: int) -> tuple[int, int, int]:
    """A side and a place with the object between the columns `low` and `high`: (side, left, top)."""
    side = 2 * int(rng.integers(sides[0] // 2, sides[1] // 2 + 1))
    left = int(rng.integers(low, max(low, high - side) + 1))
    return side, left, int(rng.integers(0, SIZE - side + 1))


@cache
def sheet() -> tuple[Image.Image, ...]:
    """The sprites, RGBA, 96 x 96 pixels, in the vocabulary's order."""
    picture = Image.open(SHEET).convert("RGBA")
    cells = []
    for number in range(len(entries())):
        left, top = number % COLUMNS * SPRITE, number // COLUMNS * SPRITE
        cells.append(picture.crop((left, top, left + SPRITE, top + SPRITE)))
    return tuple(cells)


@cache
def _resized() -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every sprite at every side: colour times alpha, one minus alpha (both float32), and the tight box."""
    sides = {*range(*TWO_OBJECTS, 2), *range(*ONE_OBJECT, 2), TWO_OBJECTS[1], ONE_OBJECT[1]}
    ready = {}
    for entry, cell in zip(entries(), sheet(), strict=True):
        for side in sides:
            # Premultiplied, so that the colour of transparent pixels does not bleed into the rim.
            pixels = np.asarray(cell.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS), np.float32)
            keep = 1 - pixels[..., 3:] / 255
            rows, columns = np.nonzero(keep[..., 0] < 0.9)
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
            ready[entry.name, side] = pixels[..., :3].copy(), keep, box
    return ready
