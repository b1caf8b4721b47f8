"""A change added to weights and rounded to their dtype, and what of it survived that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.errors import StageError

# Numbers of a tensor that are taken at once, so that float64 costs little memory.
_CHUNK = 2**18


@dataclass
class Tally:
    """What became of changes that were added and rounded, as sums over their entries.

    Args:
        size: ||dW||^2.
        missed: ||W' - (W + dW)||^2, where W' is what was written.
        along: <W' - round(W), dW>; round(W) is W unless the dtype is another one.
    """

    size: float = 0.0
    missed: float = 0.0
    along: float = 0.0

    @property
    def share(self) -> float:
        """<W' - round(W), dW> / ||dW||^2: 1 where the change has its strength, 0 where nothing of it is left."""
        return self.along / self.size if self.size else 1.0

    @property
    def error(self) -> float:
        """||W' - (W + dW)|| / ||dW||."""
        return math.sqrt(self.missed / self.size) if self.size else 0.0


def add_rounded(weight: Tensor, change: Tensor, written: Tensor, tally: Tally, *, where: str) -> None:
    """Add a change to a weight in float64, round once, and tally what became of it; some rows at a time.

    Args:
        weight: W, shape (out, ...).
        change: dW in float64, shape (out, in k k).
        written: W', filled here; its dtype is what is rounded to.
        tally: Grows by what was added.
        where: The file and the module, for errors.

    Raises:
        StageError: A weight is not finite, before or after.
    """
    weight, written = weight.flatten(1), written.view(len(written), -1)
    rows = max(1, _CHUNK // max(1, weight.shape[1]))
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        before, added = weight[part].double(), change[part]
        exact = before + added
        rounded = weight[part].to(written.dtype).double()
        written[part] = exact
        got = written[part].double()
        if not torch.isfinite(got).all():
            kind = str(written.dtype).removeprefix("torch.")
            cause = "has" if not torch.isfinite(before).all() else f"would have, in {kind},"
            hint = "" if cause == "has" else "--dtype bf16 or fp32 has room for it"
            raise StageError(f"a weight {cause} values that are not finite", where=where, hint=hint)
        tally.size += float(added.square().sum())
        tally.missed += float((got - exact).square().sum())
        tally.along += float(((got - rounded) * added).sum())
