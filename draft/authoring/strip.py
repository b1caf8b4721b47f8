"""A picture of an ascent: one row per picture and way, from the start to the end, the score beneath each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from draft.authoring.ascent import Frame
from draft.evaluation.arms import to_picture
from draft.rewards.reward import Reward

SMALLEST, LARGEST = 128, 256
"""Sides of the pictures on the strip, in pixels: smaller ones are enlarged by whole factors, larger ones shrunk."""

_GAP, _LINE, _FONT = 8, 18, 13


def change(frame: Frame, start: Frame) -> list[float]:
    """How far pictures have moved from the start: the root of the mean squared change, in 256 levels.

    Args:
        frame: The moment.
        start: The first one.

    Returns:
        B numbers, 0 to 255.
    """
    squares = (frame.images - start.images).double().square().mean(dim=(1, 2, 3))
    return [255 * sqrt(square) for square in squares.tolist()]


def draw_strip(title: str, prompts: Sequence[str], ways: Mapping[str, Sequence[Frame]]) -> Image.Image:
    """Lay the frames out.

    Args:
        title: The line at the top.
        prompts: B prompts, one row each.
        ways: What was changed, to its frames.

    Returns:
        The strip.
    """
    rows = [(way, index, frames) for index in range(len(prompts)) for way, frames in ways.items()]
    height, width = (round(side * _scale(frames)) for frames in [rows[0][2]] for side in frames[0].images.shape[-2:])
    columns = max(len(frames) for _, _, frames in rows)
    row = _LINE + height + _LINE + _GAP
    sheet = Image.new("RGB", (_GAP + columns * (width + _GAP), _GAP + _LINE + len(rows) * row), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT)

    def write(x: int, y: int, text: str, colour: str) -> None:
        # The font that Pillow brings has the letters of Latin-1 alone; longer lines than the strip are cut.
        shown = text.encode("latin-1", "replace").decode("latin-1")
        while shown and x + draw.textlength(shown, font=font) > sheet.width:
            shown = shown[:-1]
        draw.text((x, y), shown, fill=colour, font=font)

    write(_GAP, _GAP // 2, title, "black")
    for number, (way, index, frames) in enumerate(rows):
        top = _GAP + _LINE + number * row
        write(_GAP, top, f"{way}: {prompts[index]}", "dimgrey")
        for column, frame in enumerate(frames):
            left = _GAP + column * (width + _GAP)
            picture = to_picture(frame.images[index])
            enlarged = picture.width <= width
            picture = picture.resize((width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX)
            sheet.paste(picture, (left, top + _LINE))
            caption = f"{frame.scores[index]:.4g}"
            write(left, top + _LINE + height, caption if column else f"{caption} (start)", "black")
    return sheet


def as_json(reward: Reward, prompts: Sequence[str], ways: Mapping[str, Sequence[Frame]]) -> str:
    """The scores of a trial with the reward's name and parameters.

    Args:
        reward: The reward with its parameters.
        prompts: B prompts.
        ways: What was changed, to its frames.

    Returns:
        One JSON object with the keys `reward`, `prompts` and one list of frames for each way.
    """
    told: dict[str, Any] = {"reward": {"use": reward.name, **reward.model_dump(mode="json")}, "prompts": list(prompts)}
    for way, frames in ways.items():
        told[way] = [
            {"step": frame.step, "scores": list(frame.scores), "change": change(frame, frames[0])} for frame in frames
        ]
    return json.dumps(told, indent=2, ensure_ascii=False)


def _scale(frames: Sequence[Frame]) -> float:
    side = max(frames[0].images.shape[-2:])
    return -(-SMALLEST // side) if side < SMALLEST else min(1.0, LARGEST / side)
