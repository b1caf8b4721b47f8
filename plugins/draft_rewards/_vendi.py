"""The Vendi score of a batch, one number per image, with a gradient that survives equal images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = 1e-12
"""Eigenvalues of a density matrix up to this are 0 but for rounding."""


def vendi(vectors: Tensor) -> Tensor:
    """The Vendi score of n unit vectors, shared out among them.

    V = exp(H) with H = -sum_k l_k log l_k and l the eigenvalues of rho = F F^T / n (Friedman and Dieng, arXiv
    2210.02410): 1 where all vectors are equal, n where all are orthogonal. Vector i gets v_i = V (1 + n h_i - H), h_i =
    -(rho log rho)_ii. Their mean is V, as the h_i add up to H, and v_i - V is V's influence function: what one more
    vector like i would add, times n.

    Args:
        vectors: F, float (n, d), each of length 1.

    Returns:
        (n,) of their dtype, with gradient; the mean is the score.
    """
    # A small matrix, many eigenvalues near 0: double precision, which some accelerators do not have.
    features = vectors.cpu().double()
    count = len(features)
    diagonal = entropy(features @ features.T / count).diagonal()
    total = diagonal.sum()
    return (total.exp() * (1 + count * diagonal - total)).to(vectors)


def entropy(rho: Tensor) -> Tensor:
    """The matrix -rho log rho, whose trace is the von Neumann entropy.

    With rho = U diag(l) U^T and f(l) = -l log l, f(0) = 0, it is U diag(f(l)) U^T. When rho changes by E, it changes by
    U (D * (U^T E U)) U^T, with D_ij = (f(l_i) - f(l_j)) / (l_i - l_j), and f'(l_i) where the two are equal (Daleckii
    and Krein). Autograd through eigenvectors divides by l_i - l_j and is not finite there.

    Args:
        rho: Float64 (n, n), symmetric, no eigenvalue below 0.

    Returns:
        Float64 (n, n), symmetric.

    Note:
        f' is infinite at 0, and D_ij is set to 0 where both eigenvalues are 0: the vectors behind rho have no part in
        those directions, so that their gradient is the same whatever stands there.
    """
    import torch

    values, vectors = torch.linalg.eigh(rho.detach())
    values = torch.where(values > _NOTHING, values, 0.0)
    matrix = vectors @ torch.diag(torch.special.entr(values)) @ vectors.T
    # How the matrix changes with rho, to first order: all of the gradient, and 0 at rho itself.
    change = vectors @ (divided_differences(values) * (vectors.T @ rho @ vectors)) @ vectors.T
    return matrix + (change - change.detach())


def divided_differences(values: Tensor) -> Tensor:
    """D_ij = (f(a) - f(b)) / (a - b) for f(x) = -x log x, without cancellation.

    With b the larger of the two and d = a - b, D = -log b - a log1p(d / b) / d, and -log b - 1 for d = 0.

    Args:
        values: Float (n,), at least 0.

    Returns:
        Float (n, n); 0 where both values are 0.
    """
    import torch

    small, large = torch.minimum(values[:, None], values), torch.maximum(values[:, None], values)
    safe = torch.where(large > 0, large, 1.0)
    ratio = (small - large) / safe
    # a log1p(d / b) / d is (a / b) log1p(r) / r with r = d / b; at r = -1 it is 0, at r = 0 it is 1.
    inside = torch.where((ratio < 0) & (ratio > -1), ratio, -0.5)
    slope = torch.where(ratio == 0, 1.0, small / safe * torch.log1p(inside) / inside)
    slope = torch.where(ratio <= -1, 0.0, slope)
    return torch.where(large > 0, -safe.log() - slope, 0.0)
