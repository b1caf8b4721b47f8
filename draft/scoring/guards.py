"""Guards against what can silently go wrong with a reward; their errors name the reward by its label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from draft.diffusion.schedule import Grid, last_step_sensitivity
from draft.errors import DivergedError, StageError
from draft.rewards.parts import without_gradient
from draft.rewards.reward import Term

SMALLEST_SENSITIVITY = 1e-6


def check_terms(terms: Sequence[Term], *, gradient: bool = True) -> None:
    """Refuse a sum of rewards that cannot train.

    Args:
        terms: The terms.
        gradient: Whether the method needs the rewards' gradients.

    Raises:
        StageError: No term has a weight, two share a label, or a weighted one declares that it has no gradient.
    """
    if not any(term.weight for term in terms):
        raise StageError("training needs at least one reward with a weight other than 0")
    labels = [term.label for term in terms]
    for label in labels:
        if labels.count(label) > 1:
            raise StageError(f"two rewards have the label {label!r}")
    for term in terms:
        for inner, reward in without_gradient(term.reward) if term.weight and gradient else ():
            raise StageError(
                f"reward {'.'.join((term.label, *inner))!r}: {reward.name} has no gradient, so it cannot train",
                hint="use it in `evaluate`, or give it weight: 0 to log it",
            )


def check_sensitivity(grid: Grid) -> float:
    """The last step's sensitivity, refused where it is 0.

    Args:
        grid: The sampling grid.

    Returns:
        |d x_T / d out| of the last step.

    Raises:
        StageError: The network's output in the last step does not reach the result.
    """
    value = last_step_sensitivity(grid)
    if value < SMALLEST_SENSITIVITY:
        raise StageError(
            f"the last sampling step does not depend on the network (sensitivity {value:.1g}), so nothing would learn",
            hint="use sampler.spacing: trailing and sampler.final: one",
        )
    return value


def check_scores(label: str, scores: object, batch: int, *, gradient: bool) -> Tensor:
    """Check what a reward returned.

    Args:
        label: The term's label.
        scores: The reward's result.
        batch: Number B of images it was given.
        gradient: Whether it must be connected to them.

    Returns:
        The scores, (B,).

    Raises:
        StageError: Not a tensor of shape (B,), or detached from the images.
    """
    if not isinstance(scores, Tensor):
        raise StageError(
            f"reward {label!r}: must return a tensor of shape ({batch},) (got {type(scores).__name__})", hint=_CHECK
        )
    if tuple(scores.shape) != (batch,):
        raise StageError(
            f"reward {label!r}: must return one score per image, shape ({batch},) (got {tuple(scores.shape)})",
            hint=_CHECK,
        )
    if gradient and not scores.requires_grad:
        raise StageError(f"reward {label!r}: its scores are not connected to the images", hint=_CONNECT)
    return scores


def check_connected(label: str, gradient: Tensor | None) -> Tensor:
    """Check that autograd found a way from a reward's scores to the images.

    Args:
        label: The term's label.
        gradient: d(scores)/d(images), None if there is no way.

    Returns:
        The gradient.

    Raises:
        StageError: There is none.
    """
    if gradient is None:
        raise StageError(f"reward {label!r}: its scores are not connected to the images", hint=_CONNECT)
    return gradient


def check_start(gradients: Mapping[str, float]) -> None:
    """Refuse to start with a reward whose gradient with respect to the images is zero or not finite.

    Args:
        gradients: Norm of the first batch's gradient by the label of each weighted reward.

    Raises:
        StageError: A norm is zero or not finite.
    """
    for label, size in gradients.items():
        if not math.isfinite(size):
            raise StageError(f"reward {label!r}: its gradient with respect to the images is not finite (got {size})")
        if size == 0:
            raise StageError(f"reward {label!r}: its gradient with respect to the images is zero", hint=_CONNECT)


def check_finite(values: Mapping[str, float], update: int) -> None:
    """Stop a training whose figures are no numbers any more, naming the reward and the update.

    Args:
        values: Mean score by reward label.
        update: Updates made so far.

    Raises:
        DivergedError: A score is not finite.
    """
    for label, value in values.items():
        if not math.isfinite(value):
            when = "before the first update" if update == 0 else f"after {update} updates"
            raise DivergedError(
                f"reward {label!r}: its score is not finite {when} (got {value})", hint=_DIVERGED if update else ""
            )


def check_gradient_norm(norm: float, culprits: Sequence[str], update: int) -> None:
    """Stop a training whose LoRA gradient is not finite.

    Args:
        norm: The gradient's norm before clipping.
        culprits: Labels of the rewards whose own gradients are not finite.
        update: Updates made so far.

    Raises:
        DivergedError: The norm is not finite.
    """
    if math.isfinite(norm):
        return
    name = " and ".join(f"reward {label!r}" for label in culprits) or "the sampler"
    raise DivergedError(
        f"the gradient through {name} is not finite after {update} updates (got {norm})", hint=_DIVERGED
    )


_CHECK = "`draft rewards check NAME` tests a reward by itself"
_CONNECT = "compute the score from the images with torch operations; no detach, item, numpy, PIL or rounding on the way"
_DIVERGED = "lower learning_rate, or record fewer steps"
