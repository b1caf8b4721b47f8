"""Decoded values outside [0, 1]: what an image keeps of them, and what the gradient does there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from draft.types import Images


def clip(images: Tensor, *, straight_through: bool = False) -> Images:
    """Clip decoded values to [0, 1].

    y = min(max(x, 0), 1). The derivative dy/dx is 1 inside and 0 outside: a value that was driven too far says nothing
    to the network any more. Straight through (Bengio et al., arXiv 1308.3432) it counts as 1 everywhere, so that a
    reward can pull the value back, and just as well push it further out; it is no longer the loss's own gradient.

    Args:
        images: Float, any shape, as a decoder gives them.
        straight_through: Whether the gradient passes where values are clipped.

    Returns:
        The same values in both cases, in [0, 1].

    Example:
        >>> x = torch.tensor([-0.5, 0.5, 2.0], requires_grad=True)
        >>> torch.autograd.grad(clip(x).sum(), x)[0].tolist()
        [0.0, 1.0, 0.0]
        >>> torch.autograd.grad(clip(x, straight_through=True).sum(), x)[0].tolist()
        [1.0, 1.0, 1.0]
    """
    return _StraightThrough.apply(images) if straight_through else images.clamp(0, 1)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
