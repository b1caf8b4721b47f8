"""How two adapters relate, module by module: how alike their changes are, and what adding them does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.adapters.factors import Adapter, Factors
from draft.errors import StageError

# Singular values below this share of the largest are rounding, and their directions mean nothing.
_RANK = 1e-7


@dataclass(frozen=True)
class Relation:
    """How two changes a and b of one module, or of all of them, relate.

    Args:
        norms: ||a||_F and ||b||_F.
        inner: <a, b> = tr(a^T b).
        columns: ||U_a^T U_b||_F^2 / min(r_a, r_b): the share of what one writes to that the other writes to as well, 0
            to 1. U holds the left singular vectors, as many as the change has rank. None over all modules.
        rows: The same of what they read from, with the right singular vectors.
        chance: What columns and rows would be for two random subspaces of these ranks, max(r_a, r_b) / n.
    """

    norms: tuple[float, float]
    inner: float
    columns: float | None = None
    rows: float | None = None
    chance: tuple[float, float] | None = None

    @property
    def cosine(self) -> float:
        """<a, b> / (||a|| ||b||): 1 the same direction, 0 unrelated, -1 opposite; 0 where one of them is 0."""
        size = self.norms[0] * self.norms[1]
        return max(-1.0, min(1.0, self.inner / size)) if size else 0.0

    @property
    def interference(self) -> float:
        """||a + b|| / sqrt(||a||^2 + ||b||^2): 1 if they leave each other alone, sqrt(2) if they are one, 0 gone."""
        size = self.norms[0] ** 2 + self.norms[1] ** 2
        return math.sqrt(max(0.0, 1 + 2 * self.inner / size)) if size else 1.0


@dataclass(frozen=True)
class Difference:
    """How two adapters relate.

    Args:
        modules: By module that both have, those with the strongest interference first.
        only: Modules that only the first and only the second have.
        total: Over all modules, as if they were one matrix; one that is in one file only counts as 0 in the other.
    """

    modules: Mapping[str, Relation]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    total: Relation


def compare_adapters(first: Adapter, second: Adapter) -> Difference:
    """Relate two adapters by their factors; no dense dW is formed.

    With a = s_a B_a A_a the inner product is <a, b> = s_a s_b sum((B_a^T B_b) * (A_a A_b^T)), elementwise, of two r x r
    matrices.

    Args:
        first: An adapter.
        second: One of the same family.

    Returns:
        The relations.

    Raises:
        StageError: Families or shapes differ.

    Example:
        >>> compare_adapters(a, a).total.cosine  # doctest: +SKIP
        1.0
    """
    if first.family != second.family:
        raise StageError(
            f"adapters of different families cannot be compared (got {first.family} and {second.family})",
            hint="their modules have different shapes and meanings",
        )
    both = [name for name in first.modules if name in second.modules]
    relations = {name: _relate(name, first.modules[name], second.modules[name]) for name in both}
    lonely = (
        tuple(name for name in first.modules if name not in second.modules),
        tuple(name for name in second.modules if name not in first.modules),
    )
    squares = [0.0, 0.0]
    for index, adapter in enumerate((first, second)):
        squares[index] += sum(relation.norms[index] ** 2 for relation in relations.values())
        squares[index] += sum(_inner(adapter.modules[name], adapter.modules[name]) for name in lonely[index])
    total = Relation(
        (math.sqrt(squares[0]), math.sqrt(squares[1])), sum(relation.inner for relation in relations.values())
    )
    ordered = sorted(relations.items(), key=lambda item: (-abs(item[1].interference - 1), item[0]))
    return Difference(dict(ordered), lonely, total)


def _relate(name: str, one: Factors, other: Factors) -> Relation:
    shapes = [(tuple(factors.down.shape[1:]), factors.up.shape[0]) for factors in (one, other)]
    if shapes[0] != shapes[1]:
        listed = " and ".join(f"in {i} out {o}" for i, o in shapes)
        raise StageError(
            f"the adapters disagree about the shape of {name} ({listed})", hint="they are for different base models"
        )
    norms = (math.sqrt(max(0.0, _inner(one, one))), math.sqrt(max(0.0, _inner(other, other))))
    (u, v), (p, q) = _directions(one), _directions(other)
    ranks = (u.shape[1], p.shape[1])
    if not all(ranks):
        return Relation(norms, _inner(one, other), 0.0, 0.0, (0.0, 0.0))
    return Relation(
        norms=norms,
        inner=_inner(one, other),
        columns=_overlap(u, p),
        rows=_overlap(v, q),
        chance=(min(1.0, max(ranks) / u.shape[0]), min(1.0, max(ranks) / v.shape[0])),
    )


def _inner(one: Factors, other: Factors) -> float:
    up = one.up.double().flatten(1).T @ other.up.double().flatten(1)
    down = one.down.double().flatten(1) @ other.down.double().flatten(1).T
    return float((up * down).sum()) * one.scale * other.scale


def _directions(factors: Factors) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of what a change writes to and of what it reads from."""
    up, down = torch.linalg.qr(factors.up.double().flatten(1)), torch.linalg.qr(factors.down.double().flatten(1).T)
    left, values, right = torch.linalg.svd(up.R @ down.R.T * factors.scale)
    rank = int((values > _RANK * values.max()).sum()) if float(values.max()) > 0 else 0
    return up.Q @ left[:, :rank], down.Q @ right[:rank].T


def _overlap(one: Tensor, other: Tensor) -> float:
    shared = float((one.T @ other).square().sum()) / min(one.shape[1], other.shape[1])
    return min(1.0, shared)
