"""The reward `aesthetic`: LAION's predictor of how much people like a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import draft
from draft_rewards._loading import Revision

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class Aesthetic(draft.Reward):
    """How much people like a picture, whatever its prompt: LAION's aesthetic predictor v2, about 1 to 10.

    r(x) = head(e / |e|) with e the projected image vector of CLIP ViT-L/14 and a head of five linear layers,
    768-1024-128-64-16-1, which has dropout while it is trained and no activations, so that it is one affine map. It
    was fitted to ratings from 1 to 10, and nothing bounds the score.

    Note:
        It knows no prompt: trained for long, a model paints the same pleasing picture whatever it is asked for. Stop
        early, scale the adapter down, and watch a reward that reads the prompt.
    """

    name = "aesthetic"
    cite = "Schuhmann, improved-aesthetic-predictor, https://github.com/christophschuhmann/improved-aesthetic-predictor"
    licence = "CLIP: MIT (its code's; the hub names none); head: Apache-2.0"
    typical = "LAION's mean embeddings of pictures that people rated 0, 5 and 9 score 1.66, 4.70 and 5.75"
    memory = "1.7 GB of weights: 429 M parameters in float32"
    stand_in = {"model": "emoji/clip", "revision": "", "head": "emoji/aesthetic", "head_revision": ""}

    model: str = draft.Field(
        "openai/clip-vit-large-patch14",
        description="the CLIPModel the head was trained on: a name of `draft models`, a folder, or a hub id",
    )
    revision: Revision = ""
    head: str = draft.Field(
        "ttj/sac-logos-ava1-l14-linearMSE",
        description="the head's weights: a name of `draft models`, a folder, a .safetensors or .pth file, a hub id "
        "with model.safetensors, or a hub id and a file as 'owner/name/file.pth'",
    )
    head_revision: str = draft.Field("", description="a hub revision of the head, likewise")

    def load(self, device: torch.device) -> Score:
        """Load the CLIP and the head.

        Args:
            device: Where the images will be.

        Returns:
            A function from images to scores.
        """
        from draft_rewards._aesthetic import load_head
        from draft_rewards._clip import load_clip

        clip = load_clip(
            self.model, revision=self.revision, texts=False, device=device, where=self.name, others={self.head: ()}
        )
        width = clip.model.visual_projection.out_features
        head = load_head(self.head, width, revision=self.head_revision, device=device, where=self.name)

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            return head(clip.image_features(images)).to(images.dtype)

        return score


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Aesthetic]
