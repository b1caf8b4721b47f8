"""The metric `owlvit_count`: how many boxes an open-vocabulary detector draws for the queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import draft
from draft.rewards.reading import ReadingScore
from draft.types import reads_prompt
from draft_rewards._loading import Revision
from draft_rewards._owlvit import DetectorModel, Queries, Template

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class OwlvitCount(draft.Reward):
    """The number of boxes a detector draws for the queries: those surer than `threshold` of one; without a gradient.

    r(x) = #{p : max_q sigmoid(z_pq) > threshold}, with z_pq the logit of box p for query q, which is what
    `post_process_object_detection` of transformers keeps. OWL-ViT has one box per patch of the image and is trained to
    draw each object once; boxes that overlap are not merged, so a large or doubtful object may count more than once.
    """

    name = "owlvit_count"
    cite = "Minderer et al., Simple Open-Vocabulary Object Detection with Vision Transformers, arXiv 2205.06230"
    licence = "Apache-2.0"
    memory = "0.6 GB of weights: 153 M parameters in float32"
    typical = "0 to a few; at most 576, one per patch of the default model"
    differentiable = False
    stand_in = {"model": "emoji/owlvit", "revision": ""}

    model: DetectorModel = "google/owlvit-base-patch32"
    revision: Revision = ""
    queries: Queries = ("{prompt}",)
    template: Template = "a photo of a {query}"
    threshold: float = draft.Field(0.1, ge=0, le=1, description="confidence above which a box counts")

    @property
    def uses_prompt(self) -> bool:
        """Whether one of the queries comes from the prompts."""
        return any(map(reads_prompt, self.queries))

    def load(self, device: torch.device) -> Score:
        """Load the detector.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to numbers of boxes, float32.
        """
        import torch

        from draft_rewards._owlvit import load_detector, query_readings, query_vectors

        detector = load_detector(self.model, revision=self.revision, device=device, where=self.name)
        queries, threshold = query_vectors(detector, self.queries, self.template), self.threshold

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str]) -> Scores:
            surest = detector.logits(images, queries(prompts)).amax(dim=-1).sigmoid()
            return (surest > threshold).sum(dim=-1).float()

        return ReadingScore(score, query_readings(detector, self.queries, self.template))


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [OwlvitCount]
