"""An adapter at a smaller rank, the best there is, with an error that is known before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.adapters.changes import Changes
from draft.adapters.factors import Adapter, Factors
from draft.adapters.truncation import decompose
from draft.errors import StageError


@dataclass(frozen=True)
class Compressed:
    """An adapter cut to smaller ranks.

    Args:
        adapter: Every module at its new rank, scale 1, in the dtypes it had.
        errors: By module, ||dW - dW'||_F / ||dW||_F from the singular values that were cut; 0 where dW is 0.
        error: The same over all modules together, as if they were one matrix.
    """

    adapter: Adapter
    errors: Mapping[str, float]
    error: float


def compress(
    adapter: Adapter | Changes,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> Compressed:
    """Cut every module to the rank at which its change is approximated best (Eckart and Young, 1936).

    With B = Q_B R_B and A^T = Q_A R_A the singular values of dW = s B A are those of the small core s R_B R_A^T, so
    that no dense dW is formed. With core = U S V^T the new factors are B' = Q_B U sqrt(S) and A' = sqrt(S) V^T Q_A^T.

    Args:
        adapter: What to cut; of modules that are no B A the best approximation is found as well.
        rank: The largest rank of a module, at least 1.
        energy: The share, above 0 and at most 1, of the squared singular values that every module keeps at least; each
            gets the smallest rank that does.
        max_error: The relative error, at least 0 and below 1, that all modules together may have at most. The smallest
            singular values of all modules are cut first, so that no other ranks reach it with a smaller sum.
        dtypes: Of the new factors by module; a module that is not in it keeps its own.

    Returns:
        The adapter with its errors. Singular values that are rounding (below 1e-14 times the module's size and largest
        one) are cut always, and every module keeps at least rank 1: one that is zero stays as zeros.

    Raises:
        StageError: Not exactly one bound is given, or it is out of its range.

    Example:
        >>> compress(adapter, rank=8).error  # doctest: +SKIP
        0.031
    """
    _check(rank, energy, max_error)

    def chosen(spectrum: Tensor) -> int:
        if energy is not None:
            return ranks_by_error({"": spectrum}, math.sqrt(max(0.0, 1 - energy)))[""]
        return max(1, min(len(spectrum), rank or len(spectrum), int((spectrum > 0).sum())))

    new_dtypes = dtypes or {}
    modules: dict[str, Factors] = {}
    spectra: dict[str, Tensor] = {}
    # Of a dense change all vectors would be as large as the model: where the ranks come last, it is decomposed again.
    twice: set[str] = set()
    for name, change in adapter.modules.items():
        if max_error is not None and not isinstance(change, Factors):
            twice.add(name)
        keep = _one if name in twice else chosen
        modules[name], spectra[name] = decompose(change, keep=keep, dtype=new_dtypes.get(name))
    if max_error is not None:
        ranks = ranks_by_error(spectra, max_error)
        for name, rank in ranks.items():
            if name in twice:
                dtype = new_dtypes.get(name)
                modules[name], _ = decompose(adapter.modules[name], keep=lambda _, rank=rank: rank, dtype=dtype)
            else:
                modules[name] = _first(modules[name], rank)
    cut = {name: float(spectra[name][factors.rank :].square().sum()) for name, factors in modules.items()}
    sizes = {name: float(spectrum.square().sum()) for name, spectrum in spectra.items()}
    errors = {name: math.sqrt(cut[name] / size) if size else 0.0 for name, size in sizes.items()}
    whole = sum(sizes.values())
    error = math.sqrt(sum(cut.values()) / whole) if whole else 0.0
    return Compressed(Adapter(modules, adapter.family, adapter.metadata), errors, error)


def ranks_by_error(spectra: Mapping[str, Tensor], max_error: float) -> dict[str, int]:
    """The smallest ranks whose relative error over all modules together stays within a bound.

    The squared error is the sum of the squared singular values that are cut, whichever module they come from, so the
    smallest of all go first until the bound is reached.

    Args:
        spectra: Singular values by module, falling.
        max_error: The bound, relative Frobenius norm.

    Returns:
        Rank by module, at least 1.
    """
    names = list(spectra)
    squares = torch.cat([spectra[name].square() for name in names])
    # A module's largest value stays, since a file must hold something for it.
    owners = torch.cat([torch.full((len(spectra[name]) - 1,), i) for i, name in enumerate(names)])
    order = torch.cat([spectra[name][1:].square() for name in names]).sort(stable=True)
    budget = max_error**2 * float(squares.sum())
    # A hair of rounding must not cost a rank where the bound is met exactly.
    gone = int((order.values.cumsum(0) <= budget * (1 + 1e-12)).sum())
    cuts = torch.bincount(owners[order.indices[:gone]], minlength=len(names)).tolist()
    return {name: len(spectra[name]) - cuts[i] for i, name in enumerate(names)}


def _one(_: Tensor) -> int:
    return 1


def _first(factors: Factors, rank: int) -> Factors:
    return Factors(factors.down[:rank].clone(), factors.up[:, :rank].clone(), factors.scale)


def _check(rank: int | None, energy: float | None, max_error: float | None) -> None:
    bounds = [
        name for name, value in (("rank", rank), ("energy", energy), ("max_error", max_error)) if value is not None
    ]
    if len(bounds) != 1:
        raise StageError(f"give exactly one of rank, energy and max_error (got {' and '.join(bounds) or 'none'})")
    if rank is not None and rank < 1:
        raise StageError(f"rank must be at least 1 (got {rank})")
    if energy is not None and not 0 < energy <= 1:
        raise StageError(f"energy must be above 0 and at most 1 (got {energy:g})")
    if max_error is not None and not 0 <= max_error < 1:
        raise StageError(f"max_error must be at least 0 and below 1 (got {max_error:g})")
