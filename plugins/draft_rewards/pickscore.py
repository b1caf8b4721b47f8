"""The reward `pickscore`: which of two images for a prompt people would pick."""

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


class Pickscore(draft.Reward):
    """How much people would prefer an image for its prompt: PickScore, about 20 to 23 for the published model.

    r(x, c) = s cos(image(x), text(c)) with the CLIP's own scale s = exp(logit_scale), about 100. People picked the
    better one of two images for a prompt, and the model says how likely: sigmoid(r(x, c) - r(x', c)). So a difference
    of 1 is a chance of 73 %, and scores for different prompts do not compare. Of a prompt it reads 77 tokens, about 50
    words, and no more.
    """

    name = "pickscore"
    cite = "Kirstain et al., Pick-a-Pic: An Open Dataset of User Preferences, arXiv 2305.01569"
    licence = "model: MIT (its code's; the hub names none); processor: MIT"
    typical = "about 20 to 23; only the difference between images for one prompt means anything"
    memory = "3.9 GB of weights: 986 M parameters in float32"
    stand_in = {"model": "emoji/preference", "revision": "", "processor": ""}

    model: ClipModel = "yuvalkirstain/PickScore_v1"
    revision: Revision = ""
    processor: str = draft.Field(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        description="where tokenizer and image preprocessing come from, likewise; empty: from `model`",
    )
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

        clip = load_clip(self.model, processor=self.processor, revision=self.revision, device=device, where=self.name)
        # Each image with its own text; the model card's snippet has one prompt only.
        cosine, scale = cosines(clip, self.text), clip.model.logit_scale.exp()

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            return (scale * cosine(images, prompts)).to(images.dtype)

        return ReadingScore(score, cosine.readings)


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Pickscore]
