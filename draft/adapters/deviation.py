"""How far an adapter's change is from a wanted sum, by factors alone: no dense dW is ever formed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.adapters.factors import Factors

# Below this share of what went into it, a squared norm from Gram matrices has lost its digits to rounding.
_TRUSTED = {torch.float64: 1e-9, torch.float32: 1e-2}


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
    off_down = torch.addcmul(down_got, down, fit[:, None], value=-1)
    off_up = torch.addcmul(up, up_got, fit, value=-1)
    # Of mere rounding nobody needs more digits than float32 gives, and its products take a third of the time.
    rounding = off_down.norm() < 0.01 * down_got.norm() and off_up.norm() < 0.01 * up.norm()
    down, up = torch.cat([down, off_down]), torch.cat([-off_up, up_got], 1)
    if rounding and (missed := _norm_by_products(down.float(), up.float())) is not None:
        return Deviation(missed, size)
    return Deviation(_norm(down, up), size)


def _matrices(factors: Factors, coefficient: float) -> tuple[Tensor, Tensor]:
    """A module's factors as new float64 matrices (r, in k k) and (out, r), the coefficient on B."""
    down = factors.down.flatten(1).to(torch.float64, copy=True)
    return down, factors.up.flatten(1).to(torch.float64, copy=True).mul_(coefficient)


def _norm(down: Tensor, up: Tensor) -> float:
    found = _norm_by_products(down, up)
    if found is not None:
        return found
    left = torch.linalg.qr(up, mode="r").R
    right = torch.linalg.qr(down.T, mode="r").R
    return float(torch.linalg.norm(left @ right.T))


def _norm_by_products(down: Tensor, up: Tensor) -> float | None:
    """The norm by Gram matrices, or None where too few of its digits are left."""
    products = (down @ down.T) * (up.T @ up)
    square, scale = float(products.sum(dtype=torch.float64)), float(products.abs().sum(dtype=torch.float64))
    if products.dtype == torch.float64 and scale == 0:
        return 0.0
    return math.sqrt(square) if square > _TRUSTED[products.dtype] * scale else None
