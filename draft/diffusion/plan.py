"""A gradient plan as data: which sampling steps carry gradient, where the chain is cut, where the rollout ends."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from draft.diffusion.settings import Frozen


@dataclass(frozen=True)
class Plan:
    """Where the gradient flows in a rollout of T steps.

    Full backpropagation is dJ/dtheta = sum_i lam_{i+1}^T dF_i/dtheta with lam_T = dR/dx_T,
    lam_i = (dF_i/dx)^T lam_{i+1}, F_i being step i. A plan says which i are in the sum;
    a cut before step i sets lam_i to zero, and without Jacobians lam_i is a number times dR/dx0.

    Args:
        recorded: Per step, whether autograd records the network there; elsewhere its output is a constant.
        cut: Per step, whether its input latent is detached, which ends the chain.
        copies: Re-noised copies of the last step beside the base sample.
        stop: The last step made, whose one-step prediction of the clean latent is the sample; None: all steps are.
        jacobians: Whether the chain runs through the network; without, along the straight path alone.
        frozen: What is held fixed on the straight path.

    Raises:
        ValueError: It stops at a step that does not exist.
    """

    recorded: tuple[bool, ...]
    cut: tuple[bool, ...]
    copies: int = 0
    stop: int | None = None
    jacobians: bool = True
    frozen: Frozen = "auto"

    def __post_init__(self) -> None:
        if self.stop is not None and not 0 <= self.stop < self.steps:
            raise ValueError(f"a plan of {self.steps} steps cannot stop at step {self.stop}")

    @property
    def steps(self) -> int:
        """The number T of sampling steps."""
        return len(self.recorded)

    @property
    def recorded_steps(self) -> int:
        """How many steps of the rollout are recorded, re-noised copies not counted."""
        return sum(self.recorded)


def last_steps(count: int, steps: int, *, copies: int = 0) -> Plan:
    """Record the last steps and cut the chain before them.

    Args:
        count: How many, 1..T.
        steps: Number T of sampling steps.
        copies: Re-noised copies of the last step.

    Returns:
        The plan.

    Raises:
        ValueError: There are fewer steps.

    Example:
        >>> last_steps(2, 4).recorded
        (False, False, True, True)
    """
    if not 0 < count <= steps:
        raise ValueError(f"a plan of {steps} steps cannot record {count}")
    first = steps - count
    return Plan(recorded=at_steps(range(first, steps), steps), cut=at_steps({first} - {0}, steps), copies=copies)


def at_steps(chosen: Collection[int], steps: int) -> tuple[bool, ...]:
    """Whether each of T steps is among the chosen ones."""
    return tuple(i in chosen for i in range(steps))
