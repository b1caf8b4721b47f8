"""How far an adapter's change is from a wanted sum: by factors alone, as long as all of it is products B A."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.adapters.changes import Change, dense, dense_sum
from draft.adapters.factors import Factors

# Below this share of what went into it, a squared norm from Gram matrices has lost its digits to rounding.
_TRUSTED = {torch.float64: 1e-9, torch.float32: 1e-2}
_HALVES = {torch.float16, torch.bfloat16}
# Changes whose sum is a smaller share of them than this have cancelled out.
_CANCELLED = 1e-6


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


def deviation(got: Factors | None, terms: Sequence[tuple[Change, float]]) -> Deviation:
    """Compare a module's change with a weighted sum of changes.

    A change of concatenated factors D = B A has ||D||_F^2 = sum((B^T B) * (A A^T)), elementwise. Subtracting two nearly
    equal changes that way leaves their rounding only, so where got has as many rows as the sum, each row is compared
    with its own first (`_of_rounding`). What is still too small to be trusted is computed from the triangles of
    B = Q_B R_B and A^T = Q_A R_A, as ||R_B R_A^T||_F. Where one of the terms is no product B A, both sides are dense.

    Args:
        got: The factors to judge; None: the module is missing, which counts as zero.
        terms: What should be added, changes with weights; none: zero.

    Returns:
        The difference and its measure, computed in float64 where it is more than rounding.
    """
    if not terms:
        return Deviation(0.0 if got is None else _norm(*_stacked([(got, 1.0)], torch.float64)), 0.0)
    factored = [(change, weight) for change, weight in terms if isinstance(change, Factors)]
    if len(factored) < len(terms):
        return _of_dense(got, terms)
    return _of_factors(got, factored)


def _of_dense(got: Factors | None, terms: Sequence[tuple[Change, float]]) -> Deviation:
    wanted = dense_sum(terms)
    total = float(torch.linalg.norm(wanted))
    size = total
    if len(terms) > 1 and total <= _CANCELLED * (added := _added(terms)):
        size = added
    if got is None:
        return Deviation(total, size)
    wanted.addmm_(got.up.double().flatten(1), got.down.double().flatten(1), alpha=-got.scale)
    return Deviation(float(torch.linalg.norm(wanted)), size)


def _added(terms: Sequence[tuple[Change, float]]) -> float:
    return sum(abs(weight) * float(torch.linalg.norm(dense(change))) for change, weight in terms)


def _of_factors(got: Factors | None, terms: Sequence[tuple[Factors, float]]) -> Deviation:
    ranks = [factors.rank for factors, _ in terms]
    if got is not None and got.rank == sum(ranks):
        # float32 is a thousand times finer than the rounding of half precision, and half the bytes to move.
        fine = torch.float32 if {got.down.dtype, got.up.dtype} <= _HALVES else torch.float64
        if quick := _of_rounding(got, terms, fine):
            return quick
    down, up = _stacked(terms, torch.float64)
    stacked = None if got is None else _stacked([(got, 1.0)], torch.float64)
    products = (down @ down.T) * (up.T @ up)
    total = math.sqrt(max(0.0, float(products.sum())))
    blocks = [block for row, r in zip(products.split(ranks), ranks, strict=True) for block in row.split(ranks, 1)]
    added = sum(math.sqrt(max(0.0, float(blocks[i * (len(ranks) + 1)].sum()))) for i in range(len(ranks)))
    size = total if total > _CANCELLED * added else added
    if stacked is None:
        return Deviation(total, size)
    return Deviation(_norm(torch.cat([stacked[0], down]), torch.cat([stacked[1], -up], 1)), size)


def _of_rounding(got: Factors, terms: Sequence[tuple[Factors, float]], dtype: torch.dtype) -> Deviation | None:
    """The deviation of factors that differ by rounding, row by row; None where they differ by more.

    With A' = A_got, B' = B_got, and t by row so that t A fits A' best, the differences A' - t A = a and B' - B / t = b
    are small, and

        B' A' - B A = b A' + (B / t) a.

    Both terms are small, nothing cancels, and of rounding nobody needs more digits than float32's products give, which
    take a third of the time.
    """
    rank = got.rank
    # All that is multiplied by a number is so in the Gram matrices, which are small.
    downs, ups = _side_by_side([*(factors for factors, _ in terms), got], dtype)
    weights = [torch.full((factors.rank,), weight * factors.scale, dtype=torch.float64) for factors, weight in terms]
    (down, small_down), (up, small_up) = downs.split(rank), ups.split(rank, 1)
    t = (small_down * down).sum(1) / down.square().sum(1)
    if not (torch.isfinite(t) & (t != 0)).all():
        return None
    weight = (torch.cat(weights) / t).to(dtype)
    small_down.addcmul_(down, t[:, None], value=-1)
    if got.scale != 1.0:
        small_up.mul_(got.scale)
    small_up.addcmul_(up, weight, value=-1)
    downs, ups = downs.float(), ups.float()
    (down, small_down), (up, small_up) = downs.split(rank), ups.split(rank, 1)
    t, weight = t.double(), weight.double()
    aa, bb = (down @ down.T) * torch.outer(t, t), (up.T @ up) * torch.outer(weight, weight)
    a_small, small_a = (downs @ small_down.T).double().split(rank)
    b_small, small_b = (ups.T @ small_up).double().split(rank)
    a_small, b_small = a_small * t[:, None], b_small * weight[:, None]
    if small_a.trace() > 1e-4 * aa.trace() or small_b.trace() > 1e-4 * bb.trace():
        return None
    size = _trusted_root(aa * bb, _TRUSTED[torch.float32])
    if not (small_a.trace() or small_b.trace()):
        return None if size is None else Deviation(0.0, size)
    whole = aa + a_small + a_small.T + small_a
    products = torch.stack([small_b * whole, 2 * b_small.T * (a_small + small_a), bb * small_a])
    missed = _trusted_root(products, _TRUSTED[torch.float32])
    return None if size is None or missed is None else Deviation(missed, size)


def _stacked(terms: Sequence[tuple[Factors, float]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Changes with weights as one product: new matrices (r, in k k) and (out, r), r the sum of ranks, weights on B."""
    down, up = _side_by_side([factors for factors, _ in terms], dtype)
    start = 0
    for factors, weight in terms:
        up[:, start : start + factors.rank].mul_(weight * factors.scale)
        start += factors.rank
    return down, up


def _side_by_side(parts: Sequence[Factors], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Copies of all A below each other, (r, in k k), and of all B next to each other, (out, r)."""
    first, rank = parts[0], sum(factors.rank for factors in parts)
    down = torch.empty(rank, first.down[0].numel(), dtype=dtype)
    up = torch.empty(len(first.up), rank, dtype=dtype)
    start = 0
    for factors in parts:
        rows = slice(start, start := start + factors.rank)
        down[rows].copy_(factors.down.flatten(1))
        up[:, rows].copy_(factors.up.flatten(1))
    return down, up


def _norm(down: Tensor, up: Tensor) -> float:
    products = (down @ down.T) * (up.T @ up)
    if not products.any():
        return 0.0
    root = _trusted_root(products, _TRUSTED[products.dtype])
    if root is not None:
        return root
    left = torch.linalg.qr(up, mode="r").R
    right = torch.linalg.qr(down.T, mode="r").R
    return float(torch.linalg.norm(left @ right.T))


def _trusted_root(products: Tensor, share: float) -> float | None:
    """The root of a sum of products of Gram matrices, or None where too few of its digits are left."""
    square, scale = float(products.sum(dtype=torch.float64)), float(products.abs().sum(dtype=torch.float64))
    return math.sqrt(square) if square > share * scale else None
