"""The singular values of a module's change, and how many of them matter."""

from __future__ import annotations

import torch
from torch import Tensor

from draft.adapters.changes import Change, Dora, Whole
from draft.adapters.structured import Structured


def spectrum(change: Change) -> Tensor:
    """The singular values of a module's change, largest first.

    With B = Q_B R_B and A^T = Q_A R_A they are those of the small matrix s R_B R_A^T. Those of C (x) D are the products
    of theirs.

    Args:
        change: A module's change.

    Returns:
        As many values as the rank or, if that is smaller, the change's smaller side, in float64.
    """
    if isinstance(change, Structured):
        singular = change.singular(lambda values: 1)
        if singular is not None:
            return singular[1]
        change = change.low_rank() or Whole(change.dense(), change.inputs)
    if isinstance(change, Dora):
        change = Whole(change.dense(), change.inputs)
    if isinstance(change, Whole):
        short = change.matrix if change.matrix.shape[0] <= change.matrix.shape[1] else change.matrix.T
        return torch.linalg.eigvalsh(short @ short.T).flip(0).clamp_min(0).sqrt()
    down = torch.linalg.qr(change.down.double().flatten(1).T, mode="r").R
    up = torch.linalg.qr(change.up.double().flatten(1), mode="r").R
    return torch.linalg.svdvals(up @ down.T) * abs(change.scale)


def rank_of_energy(values: Tensor, share: float) -> int:
    """The smallest rank whose best approximation keeps a share of ||dW||_F^2.

    Args:
        values: Singular values, largest first.
        share: Above 0, at most 1.

    Returns:
        The rank; 0 where the change is 0.
    """
    energy = values.square()
    total = float(energy.sum())
    if total == 0:
        return 0
    # The last digits of the sum must not cost a rank.
    return int((energy.cumsum(0) < share * total * (1 - 1e-12)).sum()) + 1
