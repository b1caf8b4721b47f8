"""The metric `attack_rate`: whether a classifier is fooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import draft
from draft.types import reads_prompt
from draft_rewards._classifier import ClassifierModel, Mode, Target
from draft_rewards._loading import Revision

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class AttackRate(draft.Reward):
    """Whether a classifier is fooled, 1 or 0; the mean over images is the attack rate. A metric without a gradient.

    1 where the classifier's first answer is `target`, or with `mode: untargeted` where it is not. With the `model` that
    `adversarial` was trained against this is the attack rate, with one of another family (ConvNeXt, ViT) the transfer
    rate. An index may mean another class to another model: give names.
    """

    name = "attack_rate"
    cite = "Clark et al., Directly Fine-Tuning Diffusion Models on Differentiable Rewards, arXiv 2309.17400"
    licence = "Apache-2.0"
    memory = "0.1 GB of weights: 26 M parameters in float32"
    typical = "0 or 1"
    differentiable = False
    stand_in = {"model": "emoji/resnet", "revision": "", "target": "cat"}

    model: ClassifierModel = "microsoft/resnet-50"
    revision: Revision = ""
    target: Target
    mode: Mode = "targeted"

    @property
    def uses_prompt(self) -> bool:
        """Whether `target` comes from the prompts."""
        return reads_prompt(self.target)

    def load(self, device: torch.device) -> Score:
        """Load the classifier and find the class.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to 0 or 1, float32.
        """
        import torch

        from draft_rewards._classifier import load_classifier, target_classes

        classifier = load_classifier(self.model, revision=self.revision, device=device, where=self.name)
        classes = target_classes(classifier, self.target, where=self.name)
        targeted = self.mode == "targeted"

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str]) -> Scores:
            targets = torch.tensor(classes(prompts), device=images.device)
            hit = classifier.log_probabilities(images).argmax(dim=-1) == targets
            return (hit if targeted else ~hit).float()

        return score


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [AttackRate]
