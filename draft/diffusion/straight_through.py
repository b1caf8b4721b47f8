"""Tensors whose value and whose gradient come from different places."""

from __future__ import annotations

from torch import Tensor


def st(hat: Tensor, true: Tensor) -> Tensor:
    """A tensor with the value of `true`, bit for bit, and the gradient of `hat`: sg(true) + (hat - sg(hat)).

    Args:
        hat: What carries the gradient, finite.
        true: What it stands for, same shape.

    Returns:
        The tensor. The usual hat + sg(true - hat) is off by a rounding.
    """
    return true.detach() + (hat - hat.detach())


def scaled(x: Tensor, factor: float) -> Tensor:
    """A tensor with the value of x and `factor` times its gradient: sg(x) + factor (x - sg(x)).

    Args:
        x: Any tensor, finite.
        factor: 1 is x itself, 0 a constant.

    Returns:
        The tensor.
    """
    if factor == 1:
        return x
    return x.detach() + factor * (x - x.detach()) if factor else x.detach()
