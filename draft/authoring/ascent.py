"""Gradient ascent on what a reward sees: what would it have a picture be?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from draft.errors import ConfigError, DraftError
from draft.progress import Progress
from draft.rewards.reward import Score
from draft.types import Images

_LEAST = 1e-30


@dataclass(frozen=True)
class Budget:
    """How long to climb: a number of steps, or seconds.

    Args:
        steps: Steps; None: as many as go into `seconds`.
        seconds: Seconds, where `steps` is None; at least one step is made.

    Raises:
        ConfigError: Not at least 1 step, or more than 0 seconds.
    """

    steps: int | None = None
    seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"must be at least 1 (got {self.steps})", where="command line, --steps")
        if not self.seconds > 0:
            raise ConfigError(f"must be greater than 0 (got {self.seconds:g})", where="command line, --seconds")

    def spent(self, step: int, seconds: float) -> float:
        """The share that is used up, 0 at the start and 1 or more at the end."""
        if self.steps is not None:
            return step / self.steps
        return seconds / self.seconds if step else 0.0


@dataclass(frozen=True)
class Frame:
    """One moment of an ascent.

    Args:
        step: Steps made so far.
        images: Float32 on the CPU, (B, 3, H, W) in [0, 1].
        scores: B scores.
    """

    step: int
    images: Images
    scores: tuple[float, ...]


def climb(
    score: Score,
    prompts: Sequence[str],
    start: Tensor,
    picture: Callable[[Tensor], Images],
    *,
    rate: float,
    budget: Budget,
    bounds: tuple[float, float] | None = None,
    less: bool = False,
    frames: int = 6,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> list[Frame]:
    """Climb a reward: x <- x + rate (1 - s) g / rms(g), g = dr/dx, rms per image, s the spent share of the budget.

    So a step has the length `rate` whatever the reward's scale, and moves most what the reward looks at most, which
    Adam, whose steps are nearly as long everywhere, hides in noise. The falling rate lets pictures settle.

    Args:
        score: The loaded reward.
        prompts: B prompts.
        start: Where to start, (B, ...), on the reward's device; stays as it is.
        picture: From x to images in [0, 1], differentiable: the identity, or a decoder.
        rate: Root mean square of the first step, in units of x.
        budget: When to stop.
        bounds: Least and greatest value of x, kept after every step.
        less: Go down instead of up.
        frames: Most frames returned: the start, the end, and between them those whose scores lie most evenly.
        progress: The reporter.
        clock: The time in seconds; tests give their own.

    Returns:
        At least two frames, the start first.

    Raises:
        DraftError: The scores have no gradient, or are not finite.
    """
    x = start.detach().clone().requires_grad_()
    recorded: list[Frame] = []
    began = clock()
    step, due, spent = 0, 0, 0.0
    while spent < 1:
        images = picture(x)
        scores = score(images, prompts)
        _check(scores, step, "the score")
        if not scores.requires_grad:
            raise DraftError(
                "the scores have no gradient: something on the way detaches the images",
                hint="`draft rewards check NAME` tests a reward by itself",
            )
        if step >= due:  # more of them early, when most happens
            recorded.append(_frame(step, images, scores))
            due = max(step + 1, ceil(1.2 * step))
        (g,) = torch.autograd.grad(scores.sum(), x, materialize_grads=True)
        _check(g, step, "the gradient")
        with torch.no_grad():
            x += (-rate if less else rate) * (1 - spent) * _unit(g)
            if bounds is not None:
                x.clamp_(*bounds)
        before, step = spent, step + 1
        spent = budget.spent(step, clock() - began)
        _report(progress, before, spent, scores)
    with torch.no_grad():
        images = picture(x)
        scores = score(images, prompts)
    _check(scores, step, "the score")
    return _spread_out([*recorded, _frame(step, images, scores)], frames)


def _spread_out(frames: Sequence[Frame], count: int) -> list[Frame]:
    means = [sum(frame.scores) / len(frame.scores) for frame in frames]
    chosen = [0]
    for place in range(1, count - 1):
        target = means[0] + (means[-1] - means[0]) * place / (count - 1)
        later = range(chosen[-1] + 1, len(frames) - 1)
        chosen += [min(later, key=lambda index: abs(means[index] - target))] if later else []
    return [frames[index] for index in (*chosen, -1)]


def _unit(g: Tensor) -> Tensor:
    """Each image's gradient with a root mean square of 1; one that is zero stays zero."""
    flat = g.flatten(1)
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp_min(_LEAST)  # the squares of small numbers vanish
    return (flat / flat.square().mean(dim=1, keepdim=True).sqrt().clamp_min(_LEAST)).view_as(g)


def _frame(step: int, images: Images, scores: Tensor) -> Frame:
    # A copy: the images may be x itself, which the next step changes in place.
    copied = images.detach().float().cpu().clone()
    return Frame(step, copied, tuple((scores.detach().double() + 0.0).cpu().tolist()))  # -0 is 0


def _report(progress: Progress, before: float, spent: float, scores: Tensor) -> None:
    # The counter goes to 100 however many steps there will be.
    percent = int(min(spent, 1) * 100) - int(before * 100)
    if percent:
        progress.advance(percent, {"score": scores.mean().item()})


def _check(values: Tensor, step: int, what: str) -> None:
    if not bool(values.isfinite().all()):
        raise DraftError(
            f"{what} is not finite at step {step}",
            hint="`draft rewards check NAME` tries black, white, noise and odd sizes",
        )
