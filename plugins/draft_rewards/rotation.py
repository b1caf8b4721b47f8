"""The reward `rotation`: how much an image looks the same when it is turned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import draft
from draft_rewards._agreement import Measure, agreement, precise

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class Rotation(draft.Reward):
    """How much an image looks the same when it is turned: 1 for exactly, -1 where turning gives the negative.

    r(x) = corr(x, turn(x)), over the pixels of all channels with each channel's mean taken out; 0 for a flat image.
    Neither brightness nor contrast changes it. A negative weight asks for images that turning makes as different as can
    be. Quarter turns compare the largest square in the middle, half turns the whole image. A quarter turn to the left
    and one to the right have the same correlation, so `angle: all`, the mean over 90, 180 and 270 degrees, is (2 r_90 +
    r_180) / 3.

    `measure: difference` is -mean |x - turn(x)| instead, from -1 to 0 for exactly; a flat image then scores 0, the most
    there is.

    Note:
        Rotational correlation and anti-correlation are said to be among the experiments of the DRaFT paper (arXiv
        2309.17400), which we could not check, so measures, angles and default are ours, not the paper's.
    """

    name = "rotation"
    typical = "about 0 where the turned image has nothing to do with the image, 1 at most"
    stand_in = {}

    angle: Literal[90, 180, 270, "all"] = draft.Field(
        180, description="by how many degrees it is turned; 'all': the mean of the three"
    )
    measure: Measure = "correlation"

    def load(self, device: torch.device) -> Score:
        """Return the score; nothing has to be loaded.

        Args:
            device: Where the images will be.

        Returns:
            A function from images to scores of their dtype.
        """
        import torch

        turns = (1, 2, 3) if self.angle == "all" else (self.angle // 90,)
        measure = self.measure

        def turned(pixels: torch.Tensor, turn: int) -> Scores:
            shown = pixels if turn == 2 else _square(pixels)
            return agreement(shown, shown.rot90(turn, dims=(2, 3)), measure)

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            pixels = precise(images)
            return torch.stack([turned(pixels, turn) for turn in turns]).mean(0).to(images.dtype)

        return score


def _square(images: Images) -> Images:
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Rotation]
