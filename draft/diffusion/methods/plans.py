"""A method as data: which sampling steps carry gradient, and where the chain is cut."""

from __future__ import annotations

from dataclasses import dataclass

from draft.diffusion.methods.values import Draft, DraftK, DraftLV, Method
from draft.errors import DraftError


@dataclass(frozen=True)
class Plan:
    """Where the gradient flows in a rollout of T steps.

    Full backpropagation is dJ/dtheta = sum_i lam_{i+1}^T dF_i/dtheta with lam_T = dR/dx_T,
    lam_i = (dF_i/dx)^T lam_{i+1}, F_i being step i. A plan says which i are in the sum;
    a cut before step i sets lam_i to zero.

    Args:
        recorded: Per step, whether autograd records the network there.
        cut: Per step, whether its input latent is detached, which ends the chain.
        copies: Re-noised copies of the last step beside the base sample.
    """

    recorded: tuple[bool, ...]
    cut: tuple[bool, ...]
    copies: int = 0

    @property
    def steps(self) -> int:
        """The number T of sampling steps."""
        return len(self.recorded)

    @property
    def recorded_steps(self) -> int:
        """How many steps of the rollout are recorded, re-noised copies not counted."""
        return sum(self.recorded)


def make_plan(method: Method, steps: int) -> Plan:
    """The plan of a method for T sampling steps.

    DRaFT records all steps, DRaFT-K the last K, DRaFT-LV the last one and n re-noised copies of it
    (arXiv 2309.17400).

    Args:
        method: The method's value.
        steps: Number T of sampling steps.

    Returns:
        The plan.

    Raises:
        DraftError: K is larger than T.

    Example:
        >>> make_plan(DraftK(k=2), 4).recorded
        (False, False, True, True)
    """
    match method:
        case Draft():
            return _last(steps, steps)
        case DraftK(k=k):
            if k > steps:
                raise DraftError(
                    f"method.k must be at most the number of sampling steps, {steps} (got {k})",
                    hint="kind: draft records all steps",
                )
            return _last(k, steps)
        case DraftLV(copies=copies):
            return _last(1, steps, copies)


def _last(count: int, steps: int, copies: int = 0) -> Plan:
    first = steps - count
    return Plan(
        recorded=tuple(i >= first for i in range(steps)), cut=tuple(i == first > 0 for i in range(steps)), copies=copies
    )
