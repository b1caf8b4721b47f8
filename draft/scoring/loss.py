"""The loss of an image as a function of its reward."""

from __future__ import annotations

import torch
from torch import Tensor

from draft.scoring.objective import ClippedLoss, DistanceLoss, HingeLoss, LinearLoss, Loss


def loss_value(loss: Loss, rewards: Tensor) -> Tensor:
    """The loss of each image.

    Args:
        loss: Its shape.
        rewards: R of each image, any shape.

    Returns:
        -R, max(margin - R, 0), |R - target| or -min(max(R, low), high).
    """
    match loss:
        case LinearLoss():
            return -rewards
        case HingeLoss(margin=margin):
            return (margin - rewards).clamp(min=0)
        case DistanceLoss(target=target):
            return (rewards - target).abs()
        case ClippedLoss(low=low, high=high):
            return -rewards.clamp(low, high)


def loss_slope(loss: Loss, rewards: Tensor) -> Tensor:
    """The derivative of each image's loss with respect to its reward.

    Args:
        loss: Its shape.
        rewards: R of each image, any shape.

    Returns:
        -1 where more reward lowers the loss, 0 where it changes nothing, 1 where it raises it.
    """
    match loss:
        case LinearLoss():
            return -torch.ones_like(rewards)
        case HingeLoss(margin=margin):
            return -(rewards < margin).to(rewards)
        case DistanceLoss(target=target):
            return (rewards - target).sign()
        case ClippedLoss(low=low, high=high):
            return -((rewards > low) & (rewards < high)).to(rewards)
