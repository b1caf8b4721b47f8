"""Guards against what can silently go wrong with a reward; their errors name the reward by its label."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from draft.diffusion.schedule import Grid, last_step_sensitivity
from draft.errors import DivergedError, DraftWarning, StageError
from draft.rewards.parts import without_gradient
from draft.rewards.reward import Term
from draft.scoring.evidence import Broken

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


def check_start(label: str, size: float, broken: Callable[[], Broken | None]) -> None:
    """Refuse to start with a reward whose gradient with respect to the images is zero or not finite.

    Args:
        label: The term's label.
        size: Norm of the first batch's gradient.
        broken: Finds the images with respect to which it is not finite.

    Raises:
        StageError: The norm is zero or not finite.
    """
    if not math.isfinite(size):
        found = broken()
        raise _with_images(
            StageError(
                f"reward {label!r}: its gradient with respect to the images is not finite (got {size})"
                f"{found.named() if found else ''}",
                hint=_SLOPE if found and found.finite else "",
            ),
            found,
        )
    if size == 0:
        raise StageError(f"reward {label!r}: its gradient with respect to the images is zero", hint=_CONNECT)


def broken_score_error(label: str, value: float, update: int, found: Broken | None) -> DivergedError:
    """The error for a score that is no number any more.

    Args:
        label: The term's label.
        value: Its mean score.
        update: Updates made so far.
        found: The images for which it is not finite; None: it is not known which.

    Returns:
        The error, with a hint that fits what is to blame.
    """
    what = f"reward {label!r}: its score is not finite {_when(update)} (got {value}){found.named() if found else ''}"
    if found is None or not found.finite:
        hint = _DIVERGED if update else "the images are not finite either: look at the model and its precision"
        return _with_images(DivergedError(what, hint=hint if found or update else ""), found)
    error = DivergedError(what, hint=_SOME if found.others else _NONE)
    error.by_reward = True
    return _with_images(error, found)


def warn_unscored(label: str, value: float, update: int, found: Broken | None) -> None:
    """Warn of a reward of weight 0 whose score is not finite; it trains nothing.

    Args:
        label: The term's label.
        value: Its mean score.
        update: Updates made so far.
        found: The images for which it is not finite; None: it is not known which.
    """
    named = found.named() if found else ""
    text = f"reward {label!r} of weight 0: its score is not finite {_when(update)} (got {value}){named}"
    warnings.warn(f"{text}; the training goes on", DraftWarning, stacklevel=2)


def gradient_error(norm: float, culprits: Sequence[str], update: int, found: Broken | None) -> DivergedError:
    """The error for a LoRA gradient that is not finite.

    Args:
        norm: The gradient's norm before clipping.
        culprits: Labels of the rewards whose own gradients are not finite.
        update: Updates made so far.
        found: The images with respect to which the first one's is not finite; None: it is not known which.

    Returns:
        The error, with a hint that fits what is to blame.
    """
    name = " and ".join(f"reward {label!r}" for label in culprits) or "the sampler"
    what = f"the gradient through {name} is not finite after {update} updates (got {norm})"
    error = DivergedError(f"{what}{found.named() if found else ''}", hint=_DIVERGED)
    if found is not None and found.finite:
        error.hint, error.by_reward = _SLOPE, True
    return _with_images(error, found)


Error = TypeVar("Error", bound=StageError)


def _with_images(error: Error, found: Broken | None) -> Error:
    if found is not None:
        error.images = tuple(zip(found.labels, found.images, strict=True))
    return error


def _when(update: int) -> str:
    return "before the first update" if update == 0 else f"after {update} updates"


_CHECK = "`draft rewards check NAME` tests a reward by itself"
_CONNECT = "compute the score from the images with torch operations; no detach, item, numpy, PIL or rounding on the way"
_DIVERGED = "lower learning_rate, or record fewer steps"
_SOME = (
    "the images are finite, and the reward scores others: look at these, and let it return a finite score for every "
    "image and prompt, or leave such prompts out"
)
_NONE = "the images are finite, and the reward has no score for any of them: `draft rewards check NAME` tests it alone"
_SLOPE = "the images are finite: a root or a logarithm at 0 has no derivative; `draft rewards check NAME` looks for it"
