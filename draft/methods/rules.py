"""Which rule makes a method's updates: that of its module, or backpropagation of its plan or surrogate."""

from __future__ import annotations

from draft.methods.backpropagation import Backpropagation
from draft.methods.modules import mathematics
from draft.methods.run import Rule, TrainingRun
from draft.methods.values.protocol import MethodValue


def make_rule(method: MethodValue, run: TrainingRun) -> Rule:
    """The rule of a method.

    Args:
        method: The method's value.
        run: The training, before its first update.

    Returns:
        The rule.

    Raises:
        DraftError: The method does not fit the model's grid.
    """
    rule = getattr(mathematics(method), "Rule", None)
    return Backpropagation(method, run) if rule is None else rule(method, run)
