"""The reward `clip_score`: how well an image fits its prompt, in the eyes of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import draft

if TYPE_CHECKING:
    import torch

    from draft.registry.reward import Score
    from draft.types import Images, Scores


class ClipScore(draft.Reward):
    """How well an image fits a text: 100 times the cosine of their CLIP vectors, -100 to 100.

    r(x, c) = 100 * cos(image(x), text(c)). Published models give about 20 to 35 for pictures with their captions.

    Note:
        CLIPScore (Hessel et al., arXiv 2104.08718) is max(2.5 cos, 0). Here nothing is cut at 0, so that an image that
        does not fit at all still has a gradient. The DRaFT paper found that image quality falls under this reward: use
        it as a held-out metric, or with little weight and few steps.
    """

    name = "clip_score"
    cite = "Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, arXiv 2104.08718"
    stand_in = {"model": "emoji/clip", "revision": ""}

    model: str = draft.Field(
        "openai/clip-vit-large-patch14",
        description="a CLIPModel of transformers: a name of `draft models`, a folder, or a hub id",
    )
    revision: str = draft.Field("", description="a hub revision (branch, tag or commit); empty: the newest")
    text: str = draft.Field(
        "{prompt}",
        min_length=1,
        description="what the image should fit: '{prompt}' is its prompt, '{column}' a column of the prompt file, "
        "anything else is one text for all images",
    )

    def load(self, device: torch.device) -> Score:
        """Load the CLIP.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to scores.
        """
        import torch

        from draft_rewards._clip import cached_text_features, load_clip

        clip = load_clip(self.model, revision=self.revision, device=device, where=self.name)
        features = cached_text_features(clip)
        text = self.text

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            texts = list(prompts) if text == "{prompt}" else draft.per_prompt(text, prompts)
            wanted = torch.stack([features(one) for one in texts])
            return (100.0 * (clip.image_features(images) * wanted).sum(dim=-1)).to(images.dtype)

        return score


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [ClipScore]
