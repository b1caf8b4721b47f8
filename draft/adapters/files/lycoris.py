"""LyCORIS' other parameterisations of a change, as the nearest B A of a given rank.

Definitions: LyCORIS, arXiv 2309.14859, and https://github.com/KohakuBlueleaf/LyCORIS (functional/loha.py, lokr.py,
general.py). None of them needs a dense dW: a Hadamard product of two low-rank matrices has low rank itself, and the
singular vectors of a Kronecker product are Kronecker products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from draft.adapters.factors import Factors
from draft.errors import StageError

_Singular = tuple[Tensor, Tensor, Tensor, tuple[int, ...]]
"""Left vectors (out, k), falling values (k,), right vectors (in k k, k), and the shape of a row of A."""

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def is_lycoris(parts: Mapping[str, Tensor]) -> bool:
    """Whether a module's tensors are a LoHa's or a LoKr's."""
    return any(role.startswith(("hada_", "lokr_")) for role in parts)


def nearest(name: str, parts: Mapping[str, Tensor], alpha: float | None, *, rank: int, where: str) -> Factors:
    """The B A of at most a rank that is nearest to a LoHa or a LoKr in the Frobenius norm (Eckart and Young, 1936).

    LoHa: dW = s (A1 B1) o (A2 B2), s = alpha / r. LoKr: dW = s C (x) D, where either may be a product of two, and
    s = alpha / r, or 1 where neither is.

    Args:
        name: The module, for errors.
        parts: Its tensors by LyCORIS' names.
        alpha: Its alpha; without one it is r.
        rank: The largest rank, at least 1.
        where: The file, for errors.

    Returns:
        Factors of scale 1 in the widest dtype of the tensors, for a convolution in its shape.

    Raises:
        StageError: A tensor is missing, foreign, or shapes disagree.
    """
    dtype = reduce(torch.promote_types, [part.dtype for part in parts.values()])
    wide = {role: part.double() for role, part in parts.items()}
    try:
        left, values, right, tail = (_loha if "hada_w1_a" in wide else _lokr)(wide, alpha, rank)
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{role} {tuple(part.shape)}" for role, part in sorted(parts.items()))
        raise StageError(
            f"the factors of {name} disagree or are incomplete (got {shapes})",
            where=where,
            hint="LoHa needs hada_w1_a, hada_w1_b, hada_w2_a and hada_w2_b; LoKr lokr_w1 and lokr_w2, each one or a "
            "product _a _b",
        ) from error
    effective_rank = max(1, min(rank, int((values > values[0] * 1e-14 * math.sqrt(len(left) + len(right))).sum())))
    root = values[:effective_rank].sqrt()
    down = (right[:, :effective_rank] * root).T.reshape(effective_rank, *tail)
    up = (left[:, :effective_rank] * root).reshape(len(left), effective_rank, *([1] * (len(tail) - 1)))
    return Factors(down.to(dtype).contiguous(), up.to(dtype).contiguous())


def with_core(down: Tensor, mid: Tensor, up: Tensor) -> Tensor:
    """The A of a Tucker-decomposed LoRA: A'_{i,c,k,l} = sum_j M_{i,j,k,l} A_{j,c}, so that dW = B A'.

    Args:
        down: A, shape (r, in, 1, 1).
        mid: The core M, shape (r, r, k, l).
        up: B, shape (out, r, 1, 1); its dtype counts.

    Returns:
        A', shape (r, in, k, l), computed in float64, in the widest dtype of the three.
    """
    dtype = torch.promote_types(torch.promote_types(down.dtype, mid.dtype), up.dtype)
    return torch.einsum("ijkl,jc->ickl", mid.double(), down.double().flatten(1)).to(dtype)


def _loha(parts: Mapping[str, Tensor], alpha: float | None, keep: int) -> _Singular:
    """Row by row, (A1 B1) o (A2 B2) is the product of all pairs of columns of A with all pairs of rows of B."""
    _only(parts, {*_LOHA, "hada_t1", "hada_t2"})
    rank = parts["hada_w1_b"].shape[0]
    lefts, rights = [], []
    tail: tuple[int, ...] = ()
    for number in "12":
        left, right = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        core = parts.get(f"hada_t{number}")
        if core is not None:
            # W_{p,c,k,l} = sum_ij T_{i,j,k,l} A_{i,p} B_{j,c}
            tail = (right.shape[1], *core.shape[2:])
            left, right = left.T, torch.einsum("ij...,jc->ic...", core, right).flatten(1)
        lefts.append(left)
        rights.append(right)
    if len(parts) == 5:
        raise KeyError("hada_t1 and hada_t2 come together")
    up = (lefts[0][:, :, None] * lefts[1][:, None, :]).flatten(1)
    down = (rights[0][:, None, :] * rights[1][None, :, :]).flatten(0, 1)
    scale = 1.0 if alpha is None else alpha / rank
    left, values, right = _singular(up, down * scale)
    return left[:, :keep], values[:keep], right[:, :keep], tail or (down.shape[1],)


def _lokr(parts: Mapping[str, Tensor], alpha: float | None, keep: int) -> _Singular:
    """The singular values of C (x) D are the products of theirs."""
    _only(parts, {f"lokr_w{n}{end}" for n in "12" for end in ("", "_a", "_b")} | {"lokr_t2"})
    rank = 0
    halves: list[Tensor] = []
    for number in "12":
        whole = parts.get(f"lokr_w{number}")
        if whole is None:
            left, right = parts[f"lokr_w{number}_a"], parts[f"lokr_w{number}_b"]
            rank = right.shape[0]
            core = parts.get("lokr_t2") if number == "2" else None
            whole = left @ right.flatten(1) if core is None else torch.einsum("ij...,ip,jr->pr...", core, left, right)
            if core is None and right.ndim > 2:
                whole = whole.reshape(-1, *right.shape[1:])
        elif f"lokr_w{number}_a" in parts or f"lokr_w{number}_b" in parts:
            raise KeyError("both whole and factored")
        halves.append(whole)
    first, second = halves
    if first.ndim > 2:
        first = first.reshape(first.shape[:2])
    tail = (first.shape[1] * second.shape[1], *second.shape[2:])
    scale = 1.0 if alpha is None or rank == 0 else alpha / rank
    u1, s1, v1 = torch.linalg.svd(first * scale, full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(second.flatten(1), full_matrices=False)
    values, order = torch.outer(s1, s2).flatten().sort(descending=True, stable=True)
    values, order = values[:keep], order[:keep]
    i, j = order // len(s2), order % len(s2)
    left = (u1[:, None, i] * u2[None, :, j]).flatten(0, 1)
    right = (v1.T[:, None, i] * v2.T[None, :, j]).flatten(0, 1)
    return left, values, right, tail


def _singular(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors of B A, through its small core where it has one."""
    if up.shape[1] >= min(up.shape[0], down.shape[1]):
        u, values, v = torch.linalg.svd(up @ down, full_matrices=False)
        return u, values, v.T
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    return left.Q @ u, values, right.Q @ v.T


def _only(parts: Mapping[str, Tensor], known: set[str]) -> None:
    foreign = sorted(set(parts) - known)
    if foreign:
        raise KeyError(f"foreign {foreign}")
