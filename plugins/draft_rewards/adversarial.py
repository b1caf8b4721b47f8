"""The reward `adversarial`: images that a classifier takes for something else."""

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


class Adversarial(draft.Reward):
    """How well an image fools a classifier: log p(target), or with `mode: untargeted` -log p(the true class).

    With the classifier's probabilities p(. | x), r(x) = log p(target | x), the negative cross-entropy, at most 0; or
    r(x) = -log p(target | x), at least 0, where `target` is the class that the image really shows. The gradient is
    strongest where the classifier is surest of something else, and fades only as the attack succeeds.

    A class is found by its name in the model's labels, whatever the case and whichever of a label's names
    ("tench, Tinca tinca" has two), or by its index.

    Note:
        The DRaFT paper (arXiv 2309.17400) makes adversarial examples for a ResNet-50. Judge the result with
        `attack_rate`, for this classifier and, as the transfer rate, for one of another family.
    """

    name = "adversarial"
    cite = "Clark et al., Directly Fine-Tuning Diffusion Models on Differentiable Rewards, arXiv 2309.17400"
    licence = "Apache-2.0"
    memory = "0.1 GB of weights: 26 M parameters in float32"
    typical = (
        "-6.9, log(1/1000), where an ImageNet classifier has no idea, towards 0 as the attack succeeds; untargeted: "
        "from 0 up"
    )
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
            A function from images and prompts to scores.
        """
        import torch

        from draft_rewards._classifier import load_classifier, target_classes

        classifier = load_classifier(self.model, revision=self.revision, device=device, where=self.name)
        classes = target_classes(classifier, self.target, where=self.name)
        sign = 1.0 if self.mode == "targeted" else -1.0

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            targets = torch.tensor(classes(prompts), device=images.device)
            chosen = classifier.log_probabilities(images).gather(1, targets[:, None])[:, 0]
            return (sign * chosen).to(images.dtype)

        return score


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Adversarial]
