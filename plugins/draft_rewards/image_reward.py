"""The reward `image_reward`: how much people would like an image for its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import draft
from draft.rewards.reading import ReadingScore
from draft.types import reads_prompt
from draft_rewards._loading import Revision
from draft_rewards._text import Text

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class ImageReward(draft.Reward):
    """How much people would prefer an image for its prompt: ImageReward, about -2 to 2.

    r(x, c) = (head(BERT([CLS] c [SEP] | ViT(x))_[CLS]) - 0.167) / 1.033: a BLIP whose text encoder, BERT base, looks at
    the image, ViT-L/16 of 224 px, by cross attention; its first state goes through five linear layers,
    768-1024-128-64-16-1, which have dropout while they are trained and no activations. The score is roughly standard
    normal, say its authors. People ranked images for a prompt, and sigmoid(1.033 (r(x, c) - r(x', c))), of the
    difference before it was standardised, is the chance that x is preferred to x'. Scores for different prompts do
    not compare.

    Note:
        A prompt counts up to its 35th token, [CLS] and [SEP] among them. Images are cropped to their central square.
        446 M parameters, 1.8 GB in float32.
    """

    name = "image_reward"
    cite = "Xu et al., ImageReward: Learning and Evaluating Human Preferences for Text-to-Image, arXiv 2304.05977"
    licence = "model and tokenizer: Apache-2.0"
    typical = "-2 to 2; the four pictures of the published example have 0.58, 0.27, -1.41 and -2.03"
    memory = "1.8 GB of weights: 446 M parameters in float32"
    stand_in = {"model": "emoji/image_reward", "revision": "", "tokenizer": ""}

    model: str = draft.Field(
        "zai-org/ImageReward",
        description="an ImageReward: a name of `draft models`; a folder or a hub id that holds ImageReward.pt, or "
        "config.json and model.safetensors of Draft's own layout; a .pt or .safetensors file of published weights",
    )
    revision: Revision = ""
    tokenizer: str = draft.Field(
        "google-bert/bert-base-uncased", description="where the tokenizer comes from, likewise; empty: from `model`"
    )
    text: Text = "{prompt}"

    @property
    def uses_prompt(self) -> bool:
        """Whether `text` comes from the prompts."""
        return reads_prompt(self.text)

    def load(self, device: torch.device) -> Score:
        """Load the model.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to scores.
        """
        from draft_rewards._image_reward import load_image_reward

        rate = load_image_reward(
            self.model, tokenizer=self.tokenizer, revision=self.revision, device=device, where=self.name
        )

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            return rate(images, draft.per_prompt(self.text, prompts)).to(images.dtype)

        return ReadingScore(score, tuple(each.of(partial(draft.per_prompt, self.text)) for each in rate.readings))


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [ImageReward]
