"""A module's change in its singular vectors, those that are to be kept: the best approximation of its rank."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from draft.adapters.changes import Change, dense, inputs_of
from draft.adapters.factors import Factors
from draft.adapters.structured import Structured


def decompose(
    change: Change, *, keep: Callable[[Tensor], int], dtype: torch.dtype | None = None
) -> tuple[Factors, Tensor]:
    """Write a module's change in its singular vectors, balanced: sqrt(S) on both sides, S falling.

    With B = Q_B R_B and A^T = Q_A R_A the singular values of dW = s B A are those of the small core s R_B R_A^T, so
    that no dense dW is formed; nor is it for a Kronecker product. Any other change is decomposed as a matrix.

    Args:
        change: Any change, a convolution's taken as (out, in k k).
        keep: From all singular values to how many to keep, at least 1.
        dtype: Of the cut factors; None: those it had.

    Returns:
        The cut factors, scale 1, and all singular values in float64, at most min(out, in) of them, those that are
        rounding set to 0.
    """
    if isinstance(change, Factors):
        return _of_factors(change, keep, dtype)
    inputs = inputs_of(change)
    outputs, columns = change.outputs, math.prod(inputs)

    def chosen(values: Tensor) -> int:
        return keep(_without_rounding(values, outputs, columns))

    vectors = None
    if isinstance(change, Structured):
        vectors = change.singular(chosen)
        if vectors is None and (factors := change.low_rank()) is not None:
            return _of_factors(factors, keep, dtype or change.dtype)
    left, values, right = vectors or singular(dense(change), chosen)
    root = values[: left.shape[1]].sqrt()
    up = (left * root).reshape(outputs, len(root), *([1] * (len(inputs) - 1)))
    down = (right * root).T.reshape(len(root), *inputs)
    dtype = dtype or change.dtype
    cut = Factors(down.to(dtype).contiguous(), up.to(dtype).contiguous())
    return cut, _without_rounding(values, outputs, columns)


def singular(matrix: Tensor, keep: Callable[[Tensor], int]) -> tuple[Tensor, Tensor, Tensor]:
    """The singular vectors of a matrix that are to be kept.

    Args:
        matrix: Shape (out, in), float64.
        keep: From all singular values, falling, to how many vectors to keep.

    Returns:
        Left vectors (out, k), all values (min(out, in),), right vectors (in, k).
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = singular(matrix.T, keep)
        return left, values, right
    # A wide matrix is reduced to a square one first, which is far quicker than the decomposition of all of it.
    base, core = torch.linalg.qr(matrix.T) if matrix.shape[0] < matrix.shape[1] else (None, matrix.T)
    u, values, v = torch.linalg.svd(core.T, full_matrices=False)
    rank = keep(values)
    right = v[:rank].T
    return u[:, :rank], values, right if base is None else base @ right


def _of_factors(factors: Factors, keep: Callable[[Tensor], int], dtype: torch.dtype | None) -> tuple[Factors, Tensor]:
    down, up = factors.down.double().flatten(1), factors.up.double().flatten(1)
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.T)
    u, spectrum, v = torch.linalg.svd(left.R @ right.R.T * factors.scale, full_matrices=False)
    spectrum = _without_rounding(spectrum, len(up), down.shape[1])
    rank = keep(spectrum)
    root = spectrum[:rank].sqrt()
    new_up = left.Q @ (u[:, :rank] * root)
    new_down = (v[:rank] * root[:, None]) @ right.Q.T
    cut = Factors(
        new_down.reshape(rank, *factors.down.shape[1:]).to(dtype or factors.stored or factors.down.dtype),
        new_up.reshape(len(up), rank, *factors.up.shape[2:]).to(dtype or factors.stored or factors.up.dtype),
    )
    return cut, spectrum


def _without_rounding(values: Tensor, outputs: int, inputs: int) -> Tensor:
    """Singular values with those set to 0 that are rounding, below 1e-14 times the module's size and largest one."""
    return torch.where(values > values[0] * 1e-14 * math.sqrt(outputs + inputs), values, 0.0)
