"""Merging that thins out each input's change first: TIES, DARE and magnitude pruning, on the dense dW of one module.

These rules look at single entries of dW, so they cannot be had from the factors: thinned A and B multiply to something
else. One module is dense at a time, and what comes out is cut to a rank again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from draft.adapters.changes import Change, Whole, dense, inputs_of
from draft.adapters.factors import Factors


def merge(terms: Sequence[tuple[Change, float, str]], *, method: str, density: float, seed: int, name: str) -> Whole:
    """Merge one module's changes by a method.

    Args:
        terms: For every input that has the module its change, its weight, and what tells the input from others.
        method: `magnitude`, `dare` or `ties`.
        density: The share of entries to keep, above 0 and at most 1.
        seed: For `dare`.
        name: The module's path, for `dare`.

    Returns:
        The dense merged change.
    """

    def thinned(change: Change, key: str) -> Tensor:
        matrix = dense(change)
        if method == "dare":
            return drop(matrix, density, generator=mask_generator(seed, name, key))
        return trim(matrix, density)

    changes = [(thinned(change, key), weight) for change, weight, key in terms]
    return Whole(elect(changes) if method == "ties" else weighted_sum(changes), inputs_of(terms[0][0]))


def trim(change: Tensor, density: float) -> Tensor:
    """Keep the largest entries of a change and set the others to 0.

    Args:
        change: dW, shape (out, in).
        density: The share to keep; at least one entry stays, and entries of equal size stay together.

    Returns:
        The thinned change.
    """
    count = max(1, round(density * change.numel()))
    if count == change.numel():
        return change
    size = change.abs()
    threshold = size.flatten().kthvalue(change.numel() - count + 1).values
    return torch.where(size >= threshold, change, 0.0)


def drop(change: Tensor, density: float, *, generator: torch.Generator) -> Tensor:
    """Keep each entry with a probability and scale it up: DARE (arXiv 2311.03099, eq. 3-4, p = 1 - density).

    dW' = m * dW / density with m ~ Bernoulli(density) for each entry, whose expectation is dW.

    Args:
        change: dW, shape (out, in).
        density: The probability.
        generator: Where m comes from.

    Returns:
        The thinned change.
    """
    mask = torch.rand(change.shape, generator=generator, dtype=torch.float64) < density
    return torch.where(mask, change / density, 0.0)


def weighted_sum(changes: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Add changes times their weights.

    Args:
        changes: Changes of one shape with weights.

    Returns:
        sum_i w_i dW_i.
    """
    total = torch.zeros_like(changes[0][0])
    for change, weight in changes:
        total.add_(change, alpha=weight)
    return total


def elect(changes: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Add, entry by entry, the changes that agree with the elected sign: TIES (arXiv 2306.01708, section 3).

    With the trimmed changes T_i and v_i = w_i T_i the elected sign is that of sum_i v_i, P the inputs whose v_i has it,
    and the entry is

        dW = (sum_i |w_i|) * (sum_{i in P} v_i) / (sum_{i in P} |w_i|).

    Args:
        changes: Trimmed changes of one shape with weights.

    Returns:
        The merged change. Where all agree it is sum_i w_i T_i.

    Note:
        The paper takes the mean over P times a factor lambda; this is it for weights lambda / n. Weights that differ
        weigh the mean, and their sum is the strength, as everywhere in a mix.
    """
    sign = weighted_sum(changes).sign_()
    total, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for change, weight in changes:
        agrees = ((change * weight).sign() == sign) & (sign != 0)
        total.add_(torch.where(agrees, change, 0.0), alpha=weight)
        share.add_(agrees, alpha=abs(weight))
    strength = sum(abs(weight) for _, weight in changes)
    return torch.where(share > 0, total * strength / share, 0.0)


def cut(merged: Whole, rank: int) -> tuple[Factors, float, float]:
    """Cut a dense change to the best of a rank by the eigenvectors of its smaller Gram matrix.

    With the first eigenvectors V of W^T W the best approximation is (W V) V^T. It is balanced: column j of W V has
    the norm s_j, and sqrt(s_j) goes on either side.

    Args:
        merged: W.
        rank: The largest rank.

    Returns:
        Factors in float64 with scale 1, one row of zeros where W is 0; the norm of what the cut lost, and that of W.
    """
    wide = merged.matrix.shape[0] < merged.matrix.shape[1]
    matrix = merged.matrix.T if wide else merged.matrix
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    # Eigenvalues rise; those that are rounding are no directions of W.
    useful = int((values > values[-1].clamp(min=0) * 1e-15 * len(values)).sum())
    vectors = vectors[:, -max(1, min(rank, useful)) :].flip(1)
    images = matrix @ vectors
    norms = torch.linalg.norm(images, dim=0)
    left = torch.where(norms > 0, images / norms.sqrt(), 0.0)
    right = vectors * norms.sqrt()
    up, down = (right, left) if wide else (left, right)
    effective_rank = up.shape[1]
    factors = Factors(
        down.T.reshape(effective_rank, *merged.inputs).contiguous(),
        up.reshape(len(up), effective_rank, *([1] * (len(merged.inputs) - 1))).contiguous(),
    )
    lost = float(torch.linalg.norm(merged.matrix - factors.up.flatten(1) @ factors.down.flatten(1)))
    return factors, lost, float(torch.linalg.norm(merged.matrix))


def mask_generator(seed: int, name: str, key: str) -> torch.Generator:
    """A generator of its own for every module of every input, so that neither order nor company changes a mask.

    Args:
        seed: The mix's seed.
        name: The module's path.
        key: What tells the input from others, such as its sha256.

    Returns:
        A seeded generator on the CPU.
    """
    digest = hashlib.sha256(f"{seed}\0{name}\0{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
