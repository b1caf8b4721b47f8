"""What a training minimises, as settings: the loss of an image as a function of its reward R, penalties, robustness.

No torch is imported: the losses work on the tensors they get.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LinearLoss:
    """The reward itself: -R."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["linear"] = "linear"

    def value(self, rewards: Tensor) -> Tensor:
        """The loss of each image, in the rewards' shape."""
        return -rewards

    def slope(self, rewards: Tensor) -> Tensor:
        """d loss / d R of each image: -1 where more reward lowers the loss, 0 where it changes nothing."""
        return -rewards.new_ones(rewards.shape)


@dataclass(frozen=True, kw_only=True)
class HingeLoss:
    """max(margin - R, 0): images that score above the margin give no gradient (ReFL, arXiv 2304.05977).

    Args:
        margin: The reward that is enough.
    """

    __pydantic_config__ = {"extra": "forbid"}
    margin: float
    kind: Literal["hinge"] = "hinge"

    def value(self, rewards: Tensor) -> Tensor:
        """The loss of each image, in the rewards' shape."""
        return (self.margin - rewards).clamp(min=0)

    def slope(self, rewards: Tensor) -> Tensor:
        """d loss / d R of each image: -1 below the margin, 0 elsewhere."""
        return -(rewards < self.margin).to(rewards)


@dataclass(frozen=True, kw_only=True)
class DistanceLoss:
    """|R - target|: images above the target are pulled back (AlignProp, arXiv 2310.03739).

    Args:
        target: The reward to meet.
    """

    __pydantic_config__ = {"extra": "forbid"}
    target: float
    kind: Literal["distance"] = "distance"

    def value(self, rewards: Tensor) -> Tensor:
        """The loss of each image, in the rewards' shape."""
        return (rewards - self.target).abs()

    def slope(self, rewards: Tensor) -> Tensor:
        """d loss / d R of each image: -1 below the target, 1 above it, 0 at it."""
        return (rewards - self.target).sign()


@dataclass(frozen=True, kw_only=True)
class ClippedLoss:
    """-min(max(R, low), high): images outside give no gradient.

    Args:
        low: Lower rewards count as this one.
        high: Higher rewards count as this one.
    """

    __pydantic_config__ = {"extra": "forbid"}
    low: float
    high: float
    kind: Literal["clipped"] = "clipped"

    def value(self, rewards: Tensor) -> Tensor:
        """The loss of each image, in the rewards' shape."""
        return -rewards.clamp(self.low, self.high)

    def slope(self, rewards: Tensor) -> Tensor:
        """d loss / d R of each image: -1 between the bounds, 0 elsewhere."""
        return -((rewards > self.low) & (rewards < self.high)).to(rewards)


Loss = LinearLoss | HingeLoss | DistanceLoss | ClippedLoss


@dataclass(frozen=True, kw_only=True)
class PenaltySettings:
    """What keeps the adapter near the base model.

    Args:
        epsilon: Factor of the mean squared difference of the predicted noise (the velocity in flow matching) to the
            base model's, over recorded calls, images and elements (DRaFT+, NeMo-Aligner's documentation).
        lora_norm: Factor of the sum of |B A|^2 over the adapted modules.
    """

    __pydantic_config__ = {"extra": "forbid"}
    epsilon: Annotated[float, Ge(0)] = 0.0
    lora_norm: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class RobustSettings:
    """Train for the worst reward nearby, in the image and in the weights (RSA-FT).

    Args:
        image_radius: Length of the step against the reward in each image; 0: none.
        image_norm: Whether that length is the step's root mean square over pixel values, or its total L2 norm.
        weight_radius: L2 length of the step against the reward in all trained weights; 0: none. Costs a second rollout.
    """

    __pydantic_config__ = {"extra": "forbid"}
    image_radius: Annotated[float, Ge(0)] = 0.0
    image_norm: Literal["rms", "total"] = "rms"
    weight_radius: Annotated[float, Ge(0)] = 0.0
