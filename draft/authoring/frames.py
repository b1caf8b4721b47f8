"""A picture of an ascent: one row per picture and way, from the start to the end, the score beneath each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from PIL import Image

from draft.authoring.ascent import Frame
from draft.authoring.scores import reward_values
from draft.report.data import as_json
from draft.report.pictures import Sheet, fitted, to_picture
from draft.rewards.reward import Reward

SMALLEST, LARGEST = 128, 256
"""Sides of the pictures shown, in pixels: smaller ones are enlarged by whole factors, larger ones shrunk."""

_GAP, _LINE = 8, 18


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


def draw_frames(title: str, prompts: Sequence[str], ways: Mapping[str, Sequence[Frame]]) -> Image.Image:
    """Lay the frames out.

    Args:
        title: The line at the top.
        prompts: B prompts, one row each.
        ways: What was changed, to its frames.

    Returns:
        The picture.
    """
    rows = [(way, index, frames) for index in range(len(prompts)) for way, frames in ways.items()]
    height, width = rows[0][2][0].images.shape[-2:]
    width, height = fitted((width, height), SMALLEST, LARGEST)
    columns = max(len(frames) for _, _, frames in rows)
    row = _LINE + height + _LINE + _GAP
    sheet = Sheet((width, height), columns=columns, gap=_GAP, left=_GAP, height=_GAP + _LINE + len(rows) * row)
    sheet.write(_GAP, _GAP // 2, title, colour="black")
    for number, (way, index, frames) in enumerate(rows):
        top = _GAP + _LINE + number * row
        sheet.write(_GAP, top, f"{way}: {prompts[index]}", colour="dimgrey")
        sheet.paste([to_picture(frame.images[index]) for frame in frames], top + _LINE)
        for column, frame in enumerate(frames):
            caption = f"{frame.scores[index]:.4g}{'' if column else ' (start)'}"
            sheet.write(sheet.x(column), top + _LINE + height, caption, colour="black", room=width)
    return sheet.picture


def json_text(reward: Reward, prompts: Sequence[str], ways: Mapping[str, Sequence[Frame]]) -> str:
    """The scores of a trial with the reward's name and parameters.

    Args:
        reward: The reward with its parameters.
        prompts: B prompts.
        ways: What was changed, to its frames.

    Returns:
        One JSON object with the keys `reward`, `prompts` and one list of frames for each way.
    """
    values: dict[str, Any] = {"reward": reward_values(reward), "prompts": list(prompts)}
    for way, frames in ways.items():
        values[way] = [
            {"step": frame.step, "scores": list(frame.scores), "change": change(frame, frames[0])} for frame in frames
        ]
    return as_json(values)
