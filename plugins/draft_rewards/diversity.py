"""The reward `diversity`: how different the images of a batch are from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import draft
from draft_rewards._clip import ClipModel
from draft_rewards._loading import Revision

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from draft.rewards.reward import Score
    from draft.types import Images, Scores

_SIDE = 32
_AT_ONCE = 32


class Diversity(draft.Reward):
    """How different the images of a batch are from each other: the Vendi score, or their mean distance.

    `measure: vendi` is the Vendi score V = exp(-sum_k l_k log l_k), with l the eigenvalues of K / n and K the cosines
    of the n images' vectors: 1 where all are alike, n where no two have anything in common. `measure: pairwise` is the
    mean of 1 - cos over all pairs, 0 where all are alike, at most n / (n - 1).

    The batch's score is the mean of its images' scores. With `pairwise`, an image's own is its mean distance to the
    others; with `vendi` it is V plus V's influence function at the image: above V for what is rare, below it, and even
    below 0, for what is frequent. So an interval over prompts is V's own to first order, and not of width 0.

    `features: clip` compares what is shown, `features: pixels` the pixels of the images at 32 x 32, as the published
    pixel Vendi score does; cosines of pixels are all close to 1. `within: prompt` compares only images of the same
    prompt: how many different pictures a prompt gives. In `evaluate` the batch is all images of an adapter, however
    many are drawn at once; there `within: prompt` wants `images_per_prompt` of at least 2. In a training the batch is
    `batch_size` images, the copies of DRaFT-LV apart, and `micro_batch_size` does not divide it.
    """

    name = "diversity"
    cite = "Friedman and Dieng, The Vendi Score: A Diversity Evaluation Metric for Machine Learning, arXiv 2210.02410"
    licence = "MIT (its code's; the hub names none)"
    typical = "1, all alike, to the number of images that are compared; pairwise: 0, all alike, to about 1"
    memory = "1.7 GB of weights: 428 M parameters in float32; none with features: pixels"
    per_image = False
    stand_in = {"model": "emoji/clip", "revision": ""}

    measure: Literal["vendi", "pairwise"] = draft.Field(
        "vendi", description="'vendi': the effective number of different images; 'pairwise': their mean distance"
    )
    within: Literal["batch", "prompt"] = draft.Field(
        "batch", description="what is compared: all images of the batch, or those of the same prompt"
    )
    features: Literal["clip", "pixels"] = draft.Field(
        "clip", description="what images are compared by: their CLIP vectors, or their pixels at 32 x 32"
    )
    model: ClipModel = "openai/clip-vit-large-patch14"
    revision: Revision = ""

    def load(self, device: torch.device) -> Score:
        """Load the CLIP, if images are compared by it.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to scores, whose mean is the batch's.
        """
        import torch

        from draft_rewards._vendi import vendi

        describe = self._features(device)
        shared = vendi if self.measure == "vendi" else _distances

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            groups = self._groups(prompts, training=images.requires_grad)
            vectors = describe(images)
            parts = torch.cat([shared(vectors[group]) for group in groups])
            order = torch.tensor([index for group in groups for index in group], device=parts.device)
            return parts[order.argsort()].to(images)

        return score

    def _features(self, device: torch.device) -> Callable[[Images], Tensor]:
        """The function from images to their unit vectors."""
        import torch

        if self.features == "pixels":
            return _pixels()
        from draft_rewards._clip import load_clip

        clip = load_clip(self.model, revision=self.revision, texts=False, device=device, where=self.name)

        def describe(images: Images) -> Tensor:
            if images.requires_grad:
                return clip.image_features(images)
            # An evaluation hands over all images of an adapter at once.
            return torch.cat([clip.image_features(some) for some in images.split(_AT_ONCE)])

        return describe

    def _groups(self, prompts: Sequence[str], *, training: bool) -> list[list[int]]:
        """The images that are compared with each other, by their places in the batch.

        Args:
            prompts: B prompts.
            training: Whether a gradient is wanted.

        Returns:
            One or more groups; every image is in one.

        Raises:
            DraftError: No group has two images, so that there is nothing to compare.
        """
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(str(prompt) if self.within == "prompt" else "", []).append(index)
        # One image alone is a batch, too; but of many that stand alone, or for a gradient, something else was meant.
        if max(map(len, groups.values())) == 1 and (training or len(groups) > 1):
            whose = "of the same prompt " if self.within == "prompt" else ""
            more = "raise images_per_prompt, or set within: batch" if self.within == "prompt" else "raise batch_size"
            raise draft.DraftError(
                f"there are no two images {whose}to compare (got a batch of {len(prompts)})",
                where=self.name,
                hint=more,
            )
        return list(groups.values())


def _pixels() -> Callable[[Images], Tensor]:
    import torch
    from torch.nn import functional as F

    from draft_rewards._agreement import precise
    from draft_rewards._preprocessing import Preprocessing

    shrink = Preprocessing(shortest_edge=0, resized=(_SIDE, _SIDE), cropped=(0, 0), mean=(0.0,) * 3, std=(1.0,) * 3)

    def describe(images: Images) -> Tensor:
        pixels = shrink(precise(images)).flatten(1)
        # A black image has no direction of its own; with this all of them have the same one.
        faint = pixels.new_full((len(pixels), 1), 1e-3)
        return F.normalize(torch.cat([pixels, faint], dim=1), dim=1)

    return describe


def _distances(vectors: Tensor) -> Tensor:
    """Each vector's mean distance 1 - cos to the others: (n,) for (n, d); 0 where there are none."""
    count = len(vectors)
    return (count - (vectors @ vectors.T).sum(dim=1)) / max(count - 1, 1)


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Diversity]
