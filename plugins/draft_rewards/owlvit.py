"""The reward `owlvit`: how surely an open-vocabulary detector sees what the queries name."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

import draft
from draft.rewards.reading import ReadingScore
from draft.types import reads_prompt
from draft_rewards._loading import Revision
from draft_rewards._owlvit import DetectorModel, Queries, Template

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class Owlvit(draft.Reward):
    """How surely an open-vocabulary detector sees what the queries name; a negative weight removes it.

    With z_pq the detector's logit of box p for query q, before any threshold, a = logit(absent) and
    b = logit(present), u(z) = a + softplus(z - a) - softplus(z - b) and r(x) = T log mean_pq exp(u(z_pq) / T); with
    `aggregation: mean` the mean over q of T log mean_p exp(u(z_pq) / T). The score lies between a and b, -6.9 and 4.6
    unless you say otherwise, and is the higher the more is seen.

    Between a and b a box counts with its logit; beyond them u levels off, with a slope of about exp(-|z - a|). So
    removal ends where nothing is seen any more, instead of buying ever lower logits with the picture's quality, and
    detection ends where the thing is surely there, while no threshold cuts a gradient off. The mean of exponentials,
    for a small `temperature` T nearly the surest box and for a large one the mean of all, grows with each box and does
    not depend on how many boxes the detector has. Lower `absent` for a detector that is surer of what is not there.

    Queries are names of things: the detector reads 16 tokens of one, about ten words, and no more.

    Note:
        The DRaFT paper (arXiv 2309.17400) detects and removes with OWL-ViT; its exact score is not known to us, so
        this one is ours. OWL-ViT is trained with CLIP's prompt templates and evaluated with an ensemble of seven;
        here there is one, that of transformers' examples. A picture that is no square is squeezed into one, as
        transformers does it; the original code pads it with grey. A removed thing may come back as what the detector
        cannot name: judge the result with `owlvit_count`, best with another detector, and look at pictures.
    """

    name = "owlvit"
    cite = "Minderer et al., Simple Open-Vocabulary Object Detection with Vision Transformers, arXiv 2205.06230"
    licence = "Apache-2.0"
    memory = "0.6 GB of weights: 153 M parameters in float32"
    typical = "-6.9 (nothing is seen) to 4.6 (surely seen), or what `absent` and `present` make of it"
    stand_in = {"model": "emoji/owlvit", "revision": ""}

    model: DetectorModel = "google/owlvit-base-patch32"
    revision: Revision = ""
    queries: Queries = ("{prompt}",)
    template: Template = "a photo of a {query}"
    aggregation: Literal["softmax", "mean"] = draft.Field(
        "softmax",
        description="several queries: 'softmax' asks for any of them, 'mean' averages their scores, so that all count",
    )
    temperature: float = draft.Field(
        1.0, gt=0, allow_inf_nan=False, description="T: small for the surest box alone, large for the mean of all boxes"
    )
    absent: float = draft.Field(0.001, gt=0, lt=1, description="a box's confidence below which the thing is gone")
    present: float = draft.Field(0.99, gt=0, lt=1, description="a box's confidence above which it is surely there")

    @model_validator(mode="after")
    def _ordered(self) -> Owlvit:
        if self.absent >= self.present:
            raise ValueError(f"absent must be less than present, {self.present:g}")
        return self

    @property
    def uses_prompt(self) -> bool:
        """Whether one of the queries comes from the prompts."""
        return any(map(reads_prompt, self.queries))

    def load(self, device: torch.device) -> Score:
        """Load the detector.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to scores.
        """
        import torch
        from torch.nn.functional import softplus

        from draft_rewards._owlvit import load_detector, query_readings, query_vectors

        detector = load_detector(self.model, revision=self.revision, device=device, where=self.name)
        queries = query_vectors(detector, self.queries, self.template)
        a, b = (log(p / (1 - p)) for p in (self.absent, self.present))
        T = self.temperature

        def softmax_mean(u: torch.Tensor) -> torch.Tensor:
            return T * (torch.logsumexp(u / T, dim=1) - log(u.shape[1]))

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            z = detector.logits(images, queries(prompts))
            per_query = softmax_mean(a + softplus(z - a) - softplus(z - b))
            whole = softmax_mean(per_query) if self.aggregation == "softmax" else per_query.mean(dim=1)
            return whole.to(images.dtype)

        return ReadingScore(score, query_readings(detector, self.queries, self.template))


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Owlvit]
