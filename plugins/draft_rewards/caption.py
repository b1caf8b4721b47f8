"""The reward `caption`: how likely a captioner is to describe an image by its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import draft
from draft.rewards.reading import ReadingScore
from draft.types import reads_prompt
from draft_rewards._loading import Revision
from draft_rewards._text import Text

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class Caption(draft.Reward):
    """How likely a captioner is to describe an image by its prompt: log p(prompt | image) of BLIP, per token.

    With w_1 ... w_n the tokens of the text and w_{n+1} = [SEP], the end of a caption,
    r(x, c) = 1/(n+1) sum_i log p(w_i | [DEC], prefix, w_1 ... w_{i-1}, x), at most 0; with `reduction: sum` without
    the 1/(n+1). The token [DEC] that starts every caption and the `prefix` are given to the captioner and do not count.

    With the mean, prompts of different lengths can be combined in a batch; the sum is the log-likelihood itself, of
    which a long prompt has far less. Neither compares two prompts: rare words cost much whatever the image.

    Note:
        The published captioners were fine-tuned to go on from "a picture of " (Li et al., arXiv 2201.12086, and their
        code), which transformers drops by default. Their captions are plain words without full stops: lists of keywords
        and quality tags are unlikely whatever the image shows. The default has 224 M parameters.
    """

    name = "caption"
    cite = "Li et al., BLIP: Bootstrapping Language-Image Pre-training, arXiv 2201.12086"
    licence = "BSD-3-Clause"
    typical = "at most 0; the exponential of the mean is how likely each token was, as a geometric mean"
    memory = "0.9 GB of weights: 224 M parameters in float32"
    stand_in = {"model": "emoji/caption", "revision": "", "prefix": ""}

    model: str = draft.Field(
        "Salesforce/blip-image-captioning-base",
        description="a BlipForConditionalGeneration of transformers: a name of `draft models`, a folder, or a hub id",
    )
    revision: Revision = ""
    text: Text = "{prompt}"
    prefix: str = draft.Field("a picture of ", description="what every caption begins with; it does not count")
    reduction: Literal["mean", "sum"] = draft.Field(
        "mean", description="log-probability per token that counts, or that of the whole text"
    )

    @property
    def uses_prompt(self) -> bool:
        """Whether `text` comes from the prompts."""
        return reads_prompt(self.text)

    def load(self, device: torch.device) -> Score:
        """Load the captioner.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to scores.
        """
        from functools import lru_cache, partial

        import torch
        from transformers import BlipForConditionalGeneration

        from draft_rewards._blip import Line, load_blip

        blip = load_blip(
            BlipForConditionalGeneration,
            self.model,
            revision=self.revision,
            device=device,
            what="BLIP captioner",
            where=self.name,
        )

        @lru_cache(maxsize=8192)
        def line(text: str) -> Line:
            return blip.line(text, before=self.prefix)

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            lines = [line(text) for text in draft.per_prompt(self.text, prompts)]
            whole = blip.log_likelihood(lines, blip.image_states(images))
            if self.reduction == "mean":
                whole = whole / torch.tensor([one.counted for one in lines], device=whole.device)
            return whole.to(images.dtype)

        return ReadingScore(score, (blip.line_reading(before=self.prefix).of(partial(draft.per_prompt, self.text)),))


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Caption]
