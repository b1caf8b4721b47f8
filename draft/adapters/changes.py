"""A module's change dW in whichever form its file has it: a product B A, a structure of factors, DoRA, or dense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

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


@dataclass(frozen=True)
class Dora:
    """A weight-decomposed change (DoRA, arXiv 2402.09353): dW = (W + D) m / ||W + D|| - W.

    Args:
        inner: D, with its own scale.
        magnitude: m, one number for each row or column of W.
        axis: Whether the norms are those of the rows of W, one for each output, as peft has them, or of what belongs to
            each input, as LyCORIS has them by default.
        weight: Gives W of the base model in any dtype, shape (out, in) or (out, in, k, k); None: no base is known yet.
        scale: What all of dW is multiplied by, as ComfyUI does with a strength.
    """

    inner: Factors | Structured
    magnitude: Tensor
    axis: Literal["outputs", "inputs"]
    weight: Callable[[], Tensor] | None = None
    scale: float = 1.0

    @property
    def inputs(self) -> tuple[int, ...]:
        """As those of D."""
        return inputs_of(self.inner)

    @property
    def outputs(self) -> int:
        """As those of D."""
        return outputs_of(self.inner)

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of the tensors."""
        return torch.promote_types(dtype_of(self.inner), self.magnitude.dtype)

    def dense(self) -> Tensor:
        """DW in float64, shape (out, in) or (out, in k k)."""
        if self.weight is None:
            raise ValueError("a DoRA has no change without its base")
        base = self.weight().double().flatten(1)
        moved = dense(self.inner).add_(base).reshape(self.outputs, self.inputs[0], -1)
        over = (1, 2) if self.axis == "outputs" else (0, 2)
        norms = torch.linalg.vector_norm(moved, dim=over, keepdim=True)
        moved.mul_(self.magnitude.double().reshape(norms.shape) / norms)
        return moved.flatten(1).sub_(base).mul_(self.scale)


FileChange: TypeAlias = Factors | Structured | Dora
"""What a file holds of a module."""
Change: TypeAlias = FileChange | Whole
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
        """How many modules have which rank or, without one, which form (`LoHa`, `LoKr`, `DoRA`)."""
        counts = Counter(
            change.rank if isinstance(change, Factors) else kind_of(change) for change in self.modules.values()
        )
        return dict(sorted(counts.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def kind_of(change: Change) -> str:
    """What kind of change it is: `LoRA`, `LoHa`, `LoKr`, `DoRA` or `dense`."""
    if isinstance(change, Structured):
        return change.kind
    return {Factors: "LoRA", Dora: "DoRA"}.get(type(change), "dense")


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
    return change.matrix.clone() if isinstance(change, Whole) else change.dense()


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
