"""LyCORIS' changes that are no B A of a small rank: Hadamard products (LoHa) and Kronecker products (LoKr).

Definitions: LyCORIS, arXiv 2309.14859, and https://github.com/KohakuBlueleaf/LyCORIS (functional/loha.py, lokr.py,
general.py). LoHa: dW = s (A1 B1) o (A2 B2), s = alpha / r. LoKr: dW = s C (x) D, where either may be a product of two,
and s = alpha / r, or 1 where neither is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from draft.adapters.factors import Factors

_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_LOKR = {f"lokr_w{n}{end}" for n in "12" for end in ("", "_a", "_b")} | {"lokr_t2"}


@dataclass(frozen=True)
class Structured:
    """One module's LoHa or LoKr, as its file has it.

    Args:
        kind: `LoHa` or `LoKr`.
        parts: Its tensors by LyCORIS' names.
        scale: s, times any weight.
        inputs: (in,) or, for a convolution, (in, k, k).
        outputs: How many rows dW has.
        rows: Ranges of the structure's rows that make up dW, in this order; None: all of them.
    """

    kind: Literal["LoHa", "LoKr"]
    parts: Mapping[str, Tensor]
    scale: float
    inputs: tuple[int, ...]
    outputs: int
    rows: tuple[tuple[int, int], ...] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of the tensors."""
        return reduce(torch.promote_types, [part.dtype for part in self.parts.values()])

    def dense(self) -> Tensor:
        """DW in float64, shape (out, in) or (out, in k k)."""
        if self.kind == "LoHa":
            (left, right), (other_left, other_right) = _halves(self._wide())
            matrix = (left @ right).mul_(other_left @ other_right)
        else:
            first, second = _kronecker(self._wide())
            matrix = torch.kron(first[(...,) + (None,) * (second.ndim - 2)], second.contiguous()).flatten(1)
        return self._taken(matrix.mul_(self.scale))

    def low_rank(self) -> Factors | None:
        """The same change as B A in float64, if its rank is at most half of dW's smaller side."""
        if self.kind == "LoHa":
            pairs = _halves(self._wide())
            rank = pairs[0][0].shape[1] * pairs[1][0].shape[1]
            if 2 * rank > min(self.outputs, pairs[0][1].shape[1]):
                return None
            up, down = _all_pairs(pairs)
        else:
            first, second = _kronecker(self._wide())
            rank = min(first.shape) * min(second.flatten(1).shape)
            if 2 * rank > min(self.outputs, first.shape[1] * second[0].numel()):
                return None
            up, values, down = _kronecker_singular(first, second, len)
            up, down = up * values, down.T
        up = self._taken(up) * self.scale
        return Factors(down.reshape(-1, *self.inputs), up.reshape(*up.shape, *([1] * (len(self.inputs) - 1))))

    def singular(self, keep: Callable[[Tensor], int]) -> tuple[Tensor, Tensor, Tensor] | None:
        """The singular vectors to keep, where the structure gives them without a dense dW: of a whole LoKr.

        The singular values of C (x) D are the products of theirs, and the vectors the Kronecker products.

        Args:
            keep: From all singular values, falling, to how many vectors to keep.

        Returns:
            Left vectors (out, k), all values, right vectors (in k k, k); None for any other change.
        """
        if self.kind != "LoKr" or self.rows is not None:
            return None
        first, second = _kronecker(self._wide())
        return _kronecker_singular(first * self.scale, second, keep)

    def taken(self, *rows: tuple[int, int]) -> Structured:
        """The change of some of the rows, ranges of this one's, in the given order."""
        if self.rows is not None:
            raise ValueError("rows were taken already")
        return replace(self, rows=rows, outputs=sum(stop - start for start, stop in rows))

    def _wide(self) -> dict[str, Tensor]:
        return {role: part.double() for role, part in self.parts.items()}

    def _taken(self, matrix: Tensor) -> Tensor:
        if self.rows is None:
            return matrix
        return torch.cat([matrix[start:stop] for start, stop in self.rows])


def structured(parts: Mapping[str, Tensor], alpha: float | None) -> Structured:
    """Understand a module's tensors.

    Args:
        parts: By LyCORIS' names.
        alpha: Its alpha; without one it is r.

    Returns:
        The change; its formulas have been tried on its shapes.

    Raises:
        KeyError: A tensor is missing or foreign.
        RuntimeError: Shapes disagree; so do IndexError and ValueError.
    """
    loha = "hada_w1_a" in parts
    if foreign := sorted(set(parts) - (_LOHA | {"hada_t1", "hada_t2"} if loha else _LOKR)):
        raise KeyError(f"foreign {foreign}")
    bare = {role: part.to("meta", torch.float64) for role, part in parts.items()}
    if loha:
        if ("hada_t1" in parts) != ("hada_t2" in parts):
            raise KeyError("hada_t1 and hada_t2 come together")
        products = [left @ right for left, right in _halves(bare)]
        outputs, columns = products[0].shape
        if products[0].shape != products[1].shape:
            raise ValueError("products of different shapes")
        rank = parts["hada_w1_b"].shape[0]
        core = parts.get("hada_t1")
        inputs = (columns,) if core is None else (parts["hada_w1_b"].shape[1], *core.shape[2:])
    else:
        first, second = _kronecker(bare)
        outputs = first.shape[0] * second.shape[0]
        inputs = (first.shape[1] * second.shape[1], *second.shape[2:])
        ranks = [parts[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in parts]
        rank = ranks[-1] if ranks else 0
    if 0 in (outputs, *inputs):
        raise ValueError("empty")
    scale = 1.0 if alpha is None or rank == 0 else alpha / rank
    return Structured("LoHa" if loha else "LoKr", dict(parts), scale, inputs, outputs)


def _halves(parts: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """A LoHa's two products, each as (out, r) and (r, in k k)."""
    pairs = []
    for number in "12":
        left, right = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        core = parts.get(f"hada_t{number}")
        if core is not None:
            # W_{p,c,k,l} = sum_ij T_{i,j,k,l} A_{i,p} B_{j,c}
            left, right = left.T, torch.einsum("ij...,jc->ic...", core, right).flatten(1)
        pairs.append((left, right))
    return pairs


def _all_pairs(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(A1 B1) o (A2 B2) is the product of all pairs of columns of A with all pairs of rows of B."""
    (left, right), (other_left, other_right) = pairs
    up = (left[:, :, None] * other_left[:, None, :]).flatten(1)
    down = (right[:, None, :] * other_right[None, :, :]).flatten(0, 1)
    return up, down


def _kronecker(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A LoKr's C, a matrix, and D, a matrix or a convolution's weight."""
    halves: list[Tensor] = []
    for number in "12":
        whole = parts.get(f"lokr_w{number}")
        core = parts.get("lokr_t2") if number == "2" else None
        if whole is None:
            left, right = parts[f"lokr_w{number}_a"], parts[f"lokr_w{number}_b"]
            whole = left @ right.flatten(1) if core is None else torch.einsum("ij...,ip,jr->pr...", core, left, right)
            if core is None and right.ndim > 2:
                whole = whole.reshape(-1, *right.shape[1:])
        elif core is not None or f"lokr_w{number}_a" in parts or f"lokr_w{number}_b" in parts:
            raise KeyError("both whole and factored")
        halves.append(whole)
    first, second = halves
    if first.ndim > 2:
        first = first.reshape(first.shape[:2])
    if first.ndim != 2 or second.ndim < 2:
        raise ValueError("no matrix")
    return first, second


def _kronecker_singular(first: Tensor, second: Tensor, keep: Callable[[Tensor], int]) -> tuple[Tensor, Tensor, Tensor]:
    u1, s1, v1 = torch.linalg.svd(first, full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(second.flatten(1), full_matrices=False)
    values, order = torch.outer(s1, s2).flatten().sort(descending=True, stable=True)
    order = order[: keep(values)]
    i, j = order // len(s2), order % len(s2)
    left = (u1[:, None, i] * u2[None, :, j]).flatten(0, 1)
    right = (v1.T[:, None, i] * v2.T[None, :, j]).flatten(0, 1)
    return left, values, right
