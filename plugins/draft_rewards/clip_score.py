"""The reward `clip_score`: how well an image fits its prompt, in the eyes of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import draft
from draft.rewards.reading import ReadingScore
from draft.types import reads_prompt
from draft_rewards._clip import ClipModel
from draft_rewards._loading import Revision
from draft_rewards._text import Text

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class ClipScore(draft.Reward):
    """How well an image fits a text: 100 times the cosine of their CLIP vectors, -100 to 100.

    r(x, c) = 100 * cos(image(x), text(c)). CLIP reads 77 tokens, about 50 words, and no more of a longer text.

    Note:
        CLIPScore (Hessel et al., arXiv 2104.08718) is max(2.5 cos, 0). Here nothing is cut at 0, so that an image that
        does not fit at all still has a gradient. The DRaFT paper found that image quality falls under this reward: use
        it as a held-out metric, or with little weight and few steps.
    """

    name = "clip_score"
    cite = "Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, arXiv 2104.08718"
    licence = "MIT (its code's; the hub names none)"
    typical = "about 20 to 35 for pictures with their captions"
    memory = "1.7 GB of weights: 428 M parameters in float32"
    stand_in = {"model": "emoji/clip", "revision": ""}

    model: ClipModel = "openai/clip-vit-large-patch14"
    revision: Revision = ""
    text: Text = "{prompt}"

    @property
    def uses_prompt(self) -> bool:
        """Whether `text` comes from the prompts."""
        return reads_prompt(self.text)

    def load(self, device: torch.device) -> Score:
        """Load the CLIP.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to scores.
        """
        from draft_rewards._clip import cosines, load_clip

        clip = load_clip(self.model, revision=self.revision, device=device, where=self.name)
        cosine = cosines(clip, self.text)

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            return (100.0 * cosine(images, prompts)).to(images.dtype)

        return ReadingScore(score, cosine.readings)


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [ClipScore]
