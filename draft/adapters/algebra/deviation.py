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

    With A' = A_got / t and B' = t B_got, t by row so that A' fits A best, and the small A' - A = a, B' - B = b,

        B_got A_got - B A = b A' + B a.

    Both terms are small, nothing cancels, and of rounding nobody needs more digits than float32's products give, which
    take a third of the time.
    """
    rank = got.rank
    downs, ups = _stacked([*terms, (got, 1.0)], dtype)
    (down, small_down), (up, small_up) = downs.split(rank), ups.split(rank, 1)
    fit = (small_down * down).sum(1) / down.square().sum(1)
    if not (torch.isfinite(fit) & (fit != 0)).all():
        return None
    small_down.div_(fit[:, None]).sub_(down)
    small_up.mul_(fit).sub_(up)
    exact = not (small_down.any() or small_up.any())
    downs, ups = downs.float(), ups.float()
    aa, as_ = (downs[:rank] @ downs.T).split(rank, 1)
    bb, bt = (ups[:, :rank].T @ ups).split(rank, 1)
    ss, tt = downs[rank:] @ downs[rank:].T, ups[:, rank:].T @ ups[:, rank:]
    if ss.trace() > 1e-4 * aa.trace() or tt.trace() > 1e-4 * bb.trace():
        return None
    size = _trusted_root(aa * bb)
    missed = 0.0
    if not exact:
        missed = _trusted_root(torch.stack([tt * (aa + as_ + as_.T + ss), 2 * bt.T * (as_ + ss), bb * ss]))
    return None if size is None or missed is None else Deviation(missed, size)


def _stacked(terms: Sequence[tuple[Factors, float]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Changes with weights as one product: new matrices (r, in k k) and (out, r), r the sum of ranks, weights on B."""
    first, rank = terms[0][0], sum(factors.rank for factors, _ in terms)
    down = torch.empty(rank, first.down[0].numel(), dtype=dtype)
    up = torch.empty(len(first.up), rank, dtype=dtype)
    start = 0
    for factors, weight in terms:
        rows = slice(start, start := start + factors.rank)
        down[rows].copy_(factors.down.flatten(1))
        place, coefficient = up[:, rows].copy_(factors.up.flatten(1)), weight * factors.scale
        if coefficient != 1.0:
            place.mul_(coefficient)
    return down, up


def _norm(down: Tensor, up: Tensor) -> float:
    products = (down @ down.T) * (up.T @ up)
    if not products.any():
        return 0.0
    root = _trusted_root(products)
    if root is not None:
        return root
    left = torch.linalg.qr(up, mode="r").R
    right = torch.linalg.qr(down.T, mode="r").R
    return float(torch.linalg.norm(left @ right.T))


def _trusted_root(products: Tensor) -> float | None:
    """The root of a sum of products of Gram matrices, or None where too few of its digits are left."""
    square, scale = float(products.sum(dtype=torch.float64)), float(products.abs().sum(dtype=torch.float64))
    return math.sqrt(square) if square > _TRUSTED[products.dtype] * scale else None
