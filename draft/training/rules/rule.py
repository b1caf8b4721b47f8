"""What a rule is, and which method has which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from draft.methods.values import DDPO, DPG, AdjointMatching, BestOfN, Method, VGGFlow
from draft.training.run import Run
from draft.training.update import Descent


class Rule(Protocol):
    """Makes updates; what it keeps between them goes into checkpoints."""

    def update(self, run: Run, step: int) -> Descent:
        """Make one update: rollouts, rewards, gradients, one or more steps of the optimiser.

        Args:
            run: The training.
            step: Updates made so far.

        Returns:
            What was done.
        """
        ...

    def state(self) -> Mapping[str, Any]:
        """Everything it remembers: tensors, numbers, strings, and lists and mappings of them."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        ...


class Memoryless:
    """The state of a rule that remembers nothing between updates."""

    def state(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""


def make_rule(method: Method, run: Run) -> Rule:
    """The rule of a method.

    Args:
        method: The method's value.
        run: The training, before its first update.

    Returns:
        The rule.

    Raises:
        DraftError: The method does not fit the sampling grid.
    """
    from draft.training.rules.adjoint_matching import AdjointRegression
    from draft.training.rules.backpropagation import Backpropagation
    from draft.training.rules.best_of_n import Imitation
    from draft.training.rules.ddpo import PolicyGradient
    from draft.training.rules.dpg import CriticGradient
    from draft.training.rules.vgg_flow import VelocityRegression

    match method:
        case AdjointMatching():
            return AdjointRegression(method, run)
        case VGGFlow():
            return VelocityRegression(method, run)
        case DDPO():
            return PolicyGradient(method, run)
        case BestOfN():
            return Imitation(method, run)
        case DPG():
            return CriticGradient(method, run)
    return Backpropagation(method, run)
