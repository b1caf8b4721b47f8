"""The reward `symmetry`: how much an image is its own mirror image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import draft
from draft_rewards._agreement import Measure, agreement, precise

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class Symmetry(draft.Reward):
    """How much an image is its own mirror image: 1 for perfect symmetry, -1 where the mirror shows the negative.

    r(x) = corr(x, mirror(x)), over the pixels of all channels with each channel's mean taken out. In other words: with
    x_c = s + a, its symmetric and its antisymmetric part, r = (|s|^2 - |a|^2) / (|s|^2 + |a|^2). Neither brightness nor
    contrast changes it, so that it cannot be had by washing the picture out; a flat image, which has nothing to
    compare, scores 0. A negative weight asks for asymmetry.

    `measure: difference` is -mean |x - mirror(x)| instead, from -1 to 0 for perfect symmetry. It counts in levels of
    brightness: faint asymmetries cost little, and a flat image is perfectly symmetric.

    Note:
        Symmetry is said to be among the experiments of the DRaFT paper (arXiv 2309.17400), which we could not check, so
        both measures are ours and none is presented as the paper's.
    """

    name = "symmetry"
    typical = "about 0 where the two halves have nothing to do with each other, 1 at most"
    stand_in = {}

    axis: Literal["vertical", "horizontal"] = draft.Field(
        "vertical", description="how the mirror stands: 'vertical' compares left and right, 'horizontal' top and bottom"
    )
    measure: Measure = "correlation"

    def load(self, device: torch.device) -> Score:
        """Return the score; nothing has to be loaded.

        Args:
            device: Where the images will be.

        Returns:
            A function from images to scores of their dtype.
        """
        flipped, measure = {"vertical": -1, "horizontal": -2}[self.axis], self.measure

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            pixels = precise(images)
            return agreement(pixels, pixels.flip(flipped), measure).to(images.dtype)

        return score


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Symmetry]
