"""What a JPEG file of an image shows, as a function of the pixels: libjpeg's arithmetic with 4:2:0 chroma, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from draft.types import Images

Rounding = Literal["exact", "smooth"]

# The tables of the standard, ITU-T T.81, K.1 and K.2.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)

# Halves are common among whole numbers, and a float may lie a hair below one: this much counts as rounding error.
_HAIR = 1e-3


def quantization_tables(quality: int) -> list[list[list[int]]]:
    """The steps of the coefficients at a quality, as libjpeg scales those of the standard.

    Args:
        quality: 1 (coarse) to 100 (fine).

    Returns:
        The tables of luma and chroma, 8 x 8 each, of whole numbers from 1 to 255.
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [[[min(max((step * percent + 50) // 100, 1), 255) for step in row] for row in t] for t in (_LUMA, _CHROMA)]


def make_codec(quality: int, device: torch.device, *, rounding: Rounding) -> Callable[[Images], Images]:
    """Make the function from images to what their JPEG files show.

    Args:
        quality: 1 (coarse) to 100 (fine).
        device: Where the images will be; the tables are put there now.
        rounding: `exact` rounds pixels, chroma and coefficients to whole numbers as a file does; it has no gradient,
            as that of rounding is 0 wherever there is one. `smooth` rounds nothing but coefficients, to
            round(c) + (c - round(c))^3, whose gradient is that of the formula.

    Returns:
        A function from (B, 3, H, W) in [0, 1], float32 or float64, to the same shape and dtype.
    """
    import torch

    steps = torch.tensor(quantization_tables(quality), dtype=torch.float64)
    constants = {
        dtype: tuple(each.to(device=device, dtype=dtype) for each in (_basis(), steps))
        for dtype in (torch.float32, torch.float64)
    }
    exact = rounding == "exact"
    whole = _whole if exact else _as_it_is

    def codec(images: Images) -> Images:
        basis, (luma_steps, chroma_steps) = constants[images.dtype]
        height, width = images.shape[-2:]
        # As libjpeg fills blocks up: columns before chroma is halved, rows behind the last pair of them after it.
        luma, chroma = _to_ycc(whole(_padded(images * 255, height % 2, -width % 16)).clamp(0, 255))
        small = _halved(whole(chroma), exact=exact)
        luma, small = (
            whole(_quantized(_padded(plane, -plane.shape[-2] % 8, 0), table, basis, exact=exact))
            for plane, table in ((whole(luma), luma_steps), (small, chroma_steps))
        )
        if exact:
            luma, small = luma.clamp(0, 255), small.clamp(0, 255)
        chroma = _doubled(small[..., : -(-height // 2), : -(-width // 2)], exact=exact)
        rebuilt = whole(_to_rgb(luma[..., :height, :width], chroma[..., :height, :width]))
        return rebuilt.clamp(0, 255) / 255

    return torch.no_grad()(codec) if exact else codec


def _basis() -> Tensor:
    """The orthonormal DCT-II of 8 values, (frequency, place), float64."""
    import torch

    k = torch.arange(8, dtype=torch.float64)
    basis = ((2 * k + 1) * k[:, None] * (math.pi / 16)).cos() / 2
    return torch.cat([basis[:1] / math.sqrt(2), basis[1:]])


def _whole(values: Tensor) -> Tensor:
    return (values + (0.5 + _HAIR)).floor()


def _as_it_is(values: Tensor) -> Tensor:
    return values


def _padded(images: Images, below: int, right: int) -> Images:
    # Not `pad`, whose gradient on a GPU depends on the order of additions.
    import torch

    if right:
        images = torch.cat([images, images[..., -1:].expand(*images.shape[:-1], right)], dim=-1)
    if below:
        images = torch.cat([images, images[..., -1:, :].expand(*images.shape[:-2], below, -1)], dim=-2)
    return images


def _to_ycc(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Luma, (B, 1, H, W), and both chromas, (B, 2, H, W), from 0 to 255."""
    import torch

    red, green, blue = levels.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma[:, None], torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], dim=1) + 128


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    import torch

    blue, red = (chroma - 128).unbind(1)
    green = -(0.114 * 1.772 / 0.587) * blue - (0.299 * 1.402 / 0.587) * red
    return luma + torch.stack([1.402 * red, green, 1.772 * blue], dim=1)


def _halved(chroma: Tensor, *, exact: bool) -> Tensor:
    """Means of squares of four."""
    import torch

    sums = chroma[..., ::2, ::2] + chroma[..., ::2, 1::2] + chroma[..., 1::2, ::2] + chroma[..., 1::2, 1::2]
    if not exact:
        return sums / 4
    # libjpeg rounds halves down and up in turn, from column to column.
    turns = torch.arange(sums.shape[-1], device=sums.device) % 2
    return ((sums + 1 + turns) / 4).floor()


def _doubled(small: Tensor, *, exact: bool) -> Tensor:
    """Three quarters of the nearest value and one of the next in each direction, as libjpeg smooths chroma."""
    import torch

    if small.shape[-1] <= 2:  # so narrow a picture libjpeg does not smooth
        return small.repeat_interleave(2, -2).repeat_interleave(2, -1)
    above = torch.cat([small[..., :1, :], small[..., :-1, :]], dim=-2)
    below = torch.cat([small[..., 1:, :], small[..., -1:, :]], dim=-2)
    rows = torch.stack([3 * small + above, 3 * small + below], dim=-2).flatten(-3, -2)
    left = torch.cat([rows[..., :1], rows[..., :-1]], dim=-1)
    right = torch.cat([rows[..., 1:], rows[..., -1:]], dim=-1)
    first, second = 3 * rows + left, 3 * rows + right
    if exact:
        first, second = ((first + 8) / 16).floor(), ((second + 7) / 16).floor()
    else:
        first, second = first / 16, second / 16
    return torch.stack([first, second], dim=-1).flatten(-2)


def _quantized(planes: Tensor, steps: Tensor, basis: Tensor, *, exact: bool) -> Tensor:
    """Planes (B, C, H, W) from 0 to 255, H and W multiples of 8, after their coefficients are rounded to steps."""
    *batch, height, width = planes.shape
    blocks = (planes - 128).reshape(*batch, height // 8, 8, width // 8, 8).transpose(-3, -2)
    count = basis @ blocks @ basis.T / steps
    if exact:
        rounded = count.sign() * _whole(count.abs())
    else:
        nearest = count.detach().round()
        rounded = nearest + (count - nearest) ** 3
    blocks = basis.T @ (rounded * steps) @ basis
    return blocks.transpose(-3, -2).reshape(planes.shape) + 128
