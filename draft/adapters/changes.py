"""A module's change dW in whichever form its file has it: a product B A, a structure of several factors, or dense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from draft.adapters.factors import Factors
from draft.adapters.skipped import Skipped
from draft.adapters.structured import Structured


@dataclass(frozen=True)
class Whole:
    """A change that is dense.

    Args:
        matrix: dW in float64, shape (out, in) or, for a convolution, (out, in k k).
        inputs: (in,) or (in, k, k).
    """

    matrix: Tensor
    inputs: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """How many rows dW has."""
        return self.matrix.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """float64."""
        return self.matrix.dtype


Change: TypeAlias = Factors | Structured | Whole
Terms: TypeAlias = Callable[[str], Sequence[tuple[Change, float]]]
"""From a module to what its change should be: changes with weights, to be added up."""


@dataclass(frozen=True)
class Changes:
    """An adapter exactly as its file has it, whatever form its modules' changes have.

    Args:
        modules: Changes by module path, as in `Adapter`.
        family: As in `Adapter`.
        metadata: As in `Adapter`.
        skipped: Tensors of the file that were left out.
    """

    modules: Mapping[str, Change]
    family: str = "sd"
    metadata: Mapping[str, str] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()

    @property
    def ranks(self) -> dict[int | str, int]:
        """How many modules have which rank or, without one, which form (`LoHa`, `LoKr`)."""
        counts = Counter(
            change.kind if isinstance(change, Structured) else change.rank if isinstance(change, Factors) else "dense"
            for change in self.modules.values()
        )
        return dict(sorted(counts.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def inputs_of(change: Change) -> tuple[int, ...]:
    """What a module reads: (in,) of a linear layer, (in, k, k) of a convolution."""
    return tuple(change.down.shape[1:]) if isinstance(change, Factors) else change.inputs


def outputs_of(change: Change) -> int:
    """How many outputs a module has."""
    return change.up.shape[0] if isinstance(change, Factors) else change.outputs


def scale_of(change: Change) -> float:
    """The factor that a change's own structure is multiplied by; 1 for a dense one."""
    return 1.0 if isinstance(change, Whole) else change.scale


def dtype_of(change: Change) -> torch.dtype:
    """The widest dtype in which a change is held; of factors with more digits than their file has, the file's."""
    if isinstance(change, Factors):
        return change.stored or torch.promote_types(change.down.dtype, change.up.dtype)
    return change.dtype


def dense(change: Change) -> Tensor:
    """A module's change as a matrix.

    Args:
        change: Any change.

    Returns:
        A new tensor in float64, shape (out, in) or (out, in k k).
    """
    if isinstance(change, Factors):
        return (change.up.double().flatten(1) @ change.down.double().flatten(1)).mul_(change.scale)
    return change.dense() if isinstance(change, Structured) else change.matrix.clone()


def dense_sum(terms: Sequence[tuple[Change, float]]) -> Tensor:
    """A weighted sum of changes as a matrix.

    Args:
        terms: Changes of one shape with weights, at least one.

    Returns:
        sum_i w_i dW_i in float64, shape (out, in) or (out, in k k).
    """
    (first, weight), *others = terms
    total = dense(first).mul_(weight)
    for change, weight in others:
        if isinstance(change, Factors):
            total.addmm_(change.up.double().flatten(1), change.down.double().flatten(1), alpha=weight * change.scale)
        else:
            total.add_(dense(change), alpha=weight)
    return total


def scaled(change: Change, weight: float) -> Change:
    """A change times a weight."""
    if isinstance(change, Whole):
        return replace(change, matrix=change.matrix * weight)
    return replace(change, scale=change.scale * weight)
