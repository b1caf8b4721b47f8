"""How far an image agrees with itself after its pixels have changed places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import draft

if TYPE_CHECKING:
    from torch import Tensor

    from draft.types import Images, Scores

Measure = Annotated[
    Literal["correlation", "difference"],
    draft.Field(
        description="'correlation' of the two, -1 to 1, which brightness and contrast do not change; or minus the mean "
        "absolute 'difference' of their pixels, -1 to 0"
    ),
]
"""The option `measure` of the rewards that compare an image with itself."""

_FLAT = 1e-6
"""Variance below which an image counts as flat: a standard deviation of a quarter of an 8-bit level."""


def agreement(images: Images, moved: Images, measure: str) -> Scores:
    """Compare images with copies of them whose pixels have changed places.

    With y the moved copy of x, and x_c and y_c without each channel's mean, the correlation is
    sum(x_c y_c) / (sum(x_c^2) + N v), as both have the same variance; v = 1e-6 makes it 0 for a flat image instead of
    0 / 0, and takes no more than v / (variance + v) off any other. The difference is -mean |x - y|.

    Args:
        images: Float (B, C, H, W) in [0, 1], N = C H W.
        moved: The same pixels in other places.
        measure: ``"correlation"`` or ``"difference"``.

    Returns:
        Float (B,): at most 1, or at most 0.
    """
    if measure == "difference":
        return -(images - moved).abs().mean(dim=(1, 2, 3))
    centred, other = (one - one.mean(dim=(2, 3), keepdim=True) for one in (images, moved))
    return (centred * other).mean(dim=(1, 2, 3)) / (centred.square().mean(dim=(1, 2, 3)) + _FLAT)


def precise(images: Images) -> Tensor:
    """Images in float32 at least: half precision would drown small differences of many pixels."""
    import torch

    return images.to(torch.promote_types(images.dtype, torch.float32))
