"""How far an adapter's change is from a wanted sum, by factors alone: no dense dW is ever formed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.adapters.factors import Factors

# Below this share of what went into it, a squared norm from Gram matrices has lost its digits to rounding.
_TRUSTED = 1e-9


@dataclass(frozen=True)
class Deviation:
    """One module's difference from what was wanted.

    Args:
        missed: ||dW - sum_i w_i dW_i||_F.
        size: ||sum_i w_i dW_i||_F; where the sum cancels out, the sizes that were added.
    """

    missed: float
    size: float

    @property
    def relative(self) -> float:
        """The difference relative to the size; where that is 0, the difference itself."""
        return self.missed / self.size if self.size > 0 else self.missed


def deviation(got: Factors | None, terms: Sequence[tuple[Factors, float]]) -> Deviation:
    """Compare a module's change with a weighted sum of changes, in float64.

    A change of concatenated factors D = B A has ||D||_F^2 = sum((B^T B) * (A A^T)), elementwise. Subtracting two equal
    changes that way would leave rounding of 1e-8 of their size, more than float32 itself rounds. Where got has as many
    rows as the sum, each row is therefore compared with its own first: with any t per row,
    B_g A_g - B A = (B_g t - B) A + B_g (A_g - t A), and with the t that fits A best both terms are small. What is
    still too small to be trusted is computed from the triangles of B = Q_B R_B, A^T = Q_A R_A as ||R_B R_A^T||_F.

    Args:
        got: The factors to judge; None: the module is missing, which counts as zero.
        terms: What should be added, factors with weights; none: zero.

    Returns:
        The difference and its measure.
    """
    if not terms:
        return Deviation(0.0 if got is None else _norm(*_matrices(got, got.scale)), 0.0)
    pairs = [_matrices(factors, weight * factors.scale) for factors, weight in terms]
    down, up = torch.cat([a for a, _ in pairs], 0), torch.cat([b for _, b in pairs], 1)
    products = (down @ down.T) * (up.T @ up)
    total = math.sqrt(max(0.0, float(products.sum())))
    ranks = [a.shape[0] for a, _ in pairs]
    blocks = [block for row, r in zip(products.split(ranks), ranks, strict=True) for block in row.split(ranks, 1)]
    added = sum(math.sqrt(max(0.0, float(blocks[i * (len(ranks) + 1)].sum()))) for i in range(len(ranks)))
    size = total if total > 1e-6 * added else added
    if got is None:
        return Deviation(total, size)
    down_got, up_got = _matrices(got, got.scale)
    if len(down_got) != len(down):
        return Deviation(_norm(torch.cat([down_got, down]), torch.cat([up_got, -up], 1)), size)
    squares = down.square().sum(1)
    fit = torch.where(squares > 0, (down_got * down).sum(1) / squares, 0.0)
    difference = down_got.addcmul_(down, fit[:, None], value=-1)
    return Deviation(_norm(torch.cat([down, difference]), torch.cat([up_got * fit - up, up_got], 1)), size)


def _matrices(factors: Factors, coefficient: float) -> tuple[Tensor, Tensor]:
    """A module's factors as new float64 matrices (r, in k k) and (out, r), the coefficient on B."""
    down = factors.down.flatten(1).to(torch.float64, copy=True)
    return down, factors.up.flatten(1).to(torch.float64, copy=True).mul_(coefficient)


def _norm(down: Tensor, up: Tensor) -> float:
    products = (down @ down.T) * (up.T @ up)
    square, scale = float(products.sum()), float(products.abs().sum())
    if scale == 0 or square > _TRUSTED * scale:
        return math.sqrt(square)
    left = torch.linalg.qr(up, mode="r").R
    right = torch.linalg.qr(down.T, mode="r").R
    return float(torch.linalg.norm(left @ right.T))
