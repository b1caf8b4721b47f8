"""One module's sum as one product of concatenated factors, in float64, or rounded once to what is written.

With c_i = w_i s_i the sum of c_i B_i A_i is B A of A = [sqrt|c_1| A_1; sqrt|c_2| A_2; ...] and
B = [sgn(c_1) sqrt|c_1| B_1, sgn(c_2) sqrt|c_2| B_2, ...]. Changes that share A share its rows, and their B add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from draft.adapters.factors import Factors

Weighted = tuple[Factors, float]

_HALVES = (torch.float16, torch.bfloat16)
# Numbers that are scaled at a time: what they need on the way stays in the cache.
_BLOCK = 2**16


def concatenated(terms: Sequence[Weighted]) -> Factors:
    """The sum in float64.

    Args:
        terms: Factors of one shape with weights, at least one.

    Returns:
        Factors of scale 1; where every weight is 0 the first one's A and a B of zeros.
    """
    return _filled(terms, torch.float64)


def rounded(terms: Sequence[Weighted], dtype: torch.dtype) -> Factors:
    """The sum, computed in float64 and rounded once.

    Args:
        terms: As in `concatenated`.
        dtype: Of the new factors.

    Returns:
        The same as `concatenated` gives, in the dtype.
    """
    return _filled(terms, dtype)


def concatenated_shape(terms: Sequence[Weighted], dtype: torch.dtype) -> Factors:
    """The shapes of a sum.

    Args:
        terms: As in `concatenated`.
        dtype: Of the new factors.

    Returns:
        Factors on the device `meta`.
    """
    first = terms[0][0]
    rank = sum(group[0][0].rank for group in _groups(terms)) or first.rank
    down = torch.empty(rank, *first.down.shape[1:], dtype=dtype, device="meta")
    return Factors(down, torch.empty(len(first.up), rank, *first.up.shape[2:], dtype=dtype, device="meta"))


def _filled(terms: Sequence[Weighted], dtype: torch.dtype) -> Factors:
    groups, first = _groups(terms), terms[0][0]
    if not groups:
        # Every weight is 0: the module stays, as the zero it has become.
        return Factors(first.down.to(dtype), torch.zeros_like(first.up, dtype=dtype))
    rank = sum(group[0][0].rank for group in groups)
    down = torch.empty(rank, *first.down.shape[1:], dtype=dtype)
    up = torch.empty(first.up.shape[0], rank, *first.up.shape[2:], dtype=dtype)
    start = 0
    for group in groups:
        coefficients = [weight * factors.scale for factors, weight in group]
        root = math.sqrt(max(abs(c) for c in coefficients))
        rows = slice(start, start := start + group[0][0].rank)
        _scale(group[0][0].down, root, down[rows])
        if len(group) == 1:
            _scale(group[0][0].up, coefficients[0] / root, up[:, rows])
            continue
        added = group[0][0].up.double() * (coefficients[0] / root)
        for (factors, _), coefficient in zip(group[1:], coefficients[1:], strict=True):
            added.add_(factors.up.double(), alpha=coefficient / root)
        up[:, rows] = added.to(dtype)
    return Factors(down, up)


def _groups(terms: Sequence[Weighted]) -> list[list[Weighted]]:
    """Terms by their A."""
    groups: list[list[Weighted]] = []
    for factors, weight in terms:
        for group in groups:
            if _same(group[0][0].down, factors.down):
                group.append((factors, weight))
                break
        else:
            groups.append([(factors, weight)])
    # A group whose coefficients are all 0 adds nothing.
    return [group for group in groups if any(weight * factors.scale for factors, weight in group)]


def _same(one: Tensor, other: Tensor) -> bool:
    # Different factors differ in their first row already, which spares comparing, and converting, the rest.
    return one.shape == other.shape and all(_equal(a, b) for a, b in ((one[:1], other[:1]), (one, other)))


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) if one.dtype == other.dtype else torch.equal(one.double(), other.double())


def _scale(source: Tensor, factor: float, target: Tensor) -> None:
    """Write `source * factor`, computed in float64, to `target`."""
    rows = max(1, _BLOCK // source[0].numel())
    for part, place in zip(source.split(rows), target.split(rows), strict=True):
        if source.dtype in _HALVES:
            # A half has 65536 values, so that looking the products up is quicker than computing them.
            products = _products(source.dtype, factor, target.dtype)
            _numbers(place)[...] = products.take(_numbers(part), mode="wrap")
        else:
            place.copy_(part.double() * factor)


@lru_cache(maxsize=64)
def _products(source: torch.dtype, factor: float, target: torch.dtype) -> np.ndarray:
    """All values of a half dtype, in the order of their bits, times a factor."""
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(source)
    return _numbers(values.double().mul_(factor).to(target))


def _numbers(tensor: Tensor) -> np.ndarray:
    """A tensor's memory for numpy, halves as their bits."""
    if tensor.dtype in _HALVES:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
