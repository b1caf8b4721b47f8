"""LyCORIS' modules out of a file's tensors: LoHa and LoKr, and the core of a Tucker-decomposed LoRA."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from draft.adapters.changes import Change
from draft.adapters.factors import Factors
from draft.adapters.structured import Structured, structured
from draft.adapters.truncation import decompose
from draft.errors import StageError


def is_lycoris(parts: Mapping[str, Tensor]) -> bool:
    """Whether a module's tensors are a LoHa's or a LoKr's."""
    return any(role.startswith(("hada_", "lokr_")) for role in parts)


def lycoris_change(name: str, parts: Mapping[str, Tensor], alpha: float | None, *, where: str) -> Structured:
    """A LoHa or a LoKr as its file has it.

    Args:
        name: The module, for errors.
        parts: Its tensors by LyCORIS' names.
        alpha: Its alpha; without one it is r.
        where: The file, for errors.

    Returns:
        The change.

    Raises:
        StageError: A tensor is missing, foreign, or shapes disagree.
    """
    try:
        return structured(parts, alpha)
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{role} {tuple(part.shape)}" for role, part in sorted(parts.items()))
        raise StageError(
            f"the factors of {name} disagree or are incomplete (got {shapes})",
            where=where,
            hint="LoHa needs hada_w1_a, hada_w1_b, hada_w2_a and hada_w2_b; LoKr lokr_w1 and lokr_w2, each one or a "
            "product _a _b",
        ) from error


def nearest(change: Change, rank: int) -> Factors:
    """The B A of at most a rank that is nearest to a LoHa or a LoKr in the Frobenius norm (Eckart and Young, 1936).

    Args:
        change: The LoHa or LoKr.
        rank: The largest rank, at least 1.

    Returns:
        Factors of scale 1 in the widest dtype of the tensors, for a convolution in its shape.
    """
    return decompose(change, keep=lambda values: max(1, min(rank, int((values > 0).sum()))))[0]


def with_core(down: Tensor, mid: Tensor) -> Tensor:
    """The A of a Tucker-decomposed LoRA: A'_{i,c,k,l} = sum_j M_{i,j,k,l} A_{j,c}, so that dW = B A'.

    Args:
        down: A, shape (r, in, 1, 1).
        mid: The core M, shape (r, r, k, l).

    Returns:
        A' in float64, shape (r, in, k, l).
    """
    return torch.einsum("ijkl,jc->ickl", mid.double(), down.double().flatten(1))
