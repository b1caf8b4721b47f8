"""Every reward as a metric: loaded once, one number per image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from draft.errors import StageError
from draft.rewards.inputs import guarded
from draft.rewards.reward import Score, Term
from draft.types import Images, Prompts


@dataclass
class Metric:
    """A loaded reward and the scores it has given so far.

    Args:
        term: The reward with its label.
        device: Where it is loaded.
        score: The function that scores.
        pending: Batches kept until all are there, for rewards that see the whole set at once.
    """

    term: Term
    device: torch.device
    score: Score
    pending: list[tuple[Prompts, Images]] = field(default_factory=list)

    def see(self, prompts: Prompts, images: Images) -> list[float]:
        """Score a batch, or keep it where the reward needs the whole set.

        Args:
            prompts: B prompts.
            images: (B, 3, H, W) in [0, 1].

        Returns:
            B scores, or none yet.
        """
        if not self.term.reward.per_image:
            self.pending.append((prompts, images))
            return []
        return self._scores(prompts, images)

    def finish(self, prompts: Prompts) -> list[float]:
        """Score what was kept, all at once.

        Args:
            prompts: The prompts of all images of the arm.

        Returns:
            Their scores; none if each batch has been scored already.
        """
        if not self.pending:
            return []
        images = torch.cat([images for _, images in self.pending])
        self.pending.clear()
        return self._scores(prompts, images)

    def _scores(self, prompts: Prompts, images: Images) -> list[float]:
        with torch.no_grad():
            scores = self.score(images.to(self.device), prompts)
        if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (len(images),):
            got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise StageError(
                f"the reward must return one score per image, shape ({len(images)},) (got {got})",
                where=f"rewards.{self.term.label}",
                hint="`draft rewards check NAME` says more",
            )
        return scores.double().cpu().tolist()


def load_metrics(terms: Sequence[Term], device: torch.device) -> list[Metric]:
    """Load every reward, each on its own device if it names one.

    Args:
        terms: Rewards with labels.
        device: Where the model is.

    Returns:
        One metric per term.
    """
    metrics = []
    for term in terms:
        place = torch.device(term.device) if term.device else device
        # A metric such as a file size would make a number of a broken image, too.
        metrics.append(Metric(term, place, guarded(term.reward.load(place), where=f"rewards.{term.label}")))
    return metrics


def score_all(
    metrics: Sequence[Metric], batches: Iterable[tuple[Prompts, Images]], prompts: Prompts
) -> dict[str, list[float]]:
    """Score one arm.

    Args:
        metrics: Loaded rewards.
        batches: Prompts and images, in order.
        prompts: All prompts, in the same order.

    Returns:
        One score per image, by label; NaN where a reward says so.
    """
    scores: dict[str, list[float]] = {metric.term.label: [] for metric in metrics}
    for batch, images in batches:
        for metric in metrics:
            scores[metric.term.label] += metric.see(batch, images)
    for metric in metrics:
        scores[metric.term.label] += metric.finish(prompts)
    return scores
