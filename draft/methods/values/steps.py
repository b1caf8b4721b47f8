"""What several methods ask of the number of sampling steps, each checked here alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from draft.errors import Problem
from draft.methods.values.protocol import TrainingSettings

Pairs = Literal["uniform", "dirichlet"]
"""How the steps k < j are drawn: two distinct ones, or by shares of the rollout before, between and after them."""

FROM_ROLLOUT = "the cached rollout is the deterministic sampler's path, along which it leaps"
"""Why methods that draw from a cached rollout have no fresh noise."""


def too_many_steps(key: str, count: int, settings: TrainingSettings) -> Iterator[Problem]:
    """Find an option that asks for more steps than the sampler has.

    Args:
        key: The method's option.
        count: How many steps it asks for.
        settings: The training's.

    Yields:
        The problem, if there is one.
    """
    steps = settings.sampler.num_inference_steps
    if count > steps:
        what = f"method.{key} must be at most sampler.num_inference_steps, {steps} (got {count})"
        yield Problem(("method", key), what)


def too_many_active(k: int, tail: float, settings: TrainingSettings) -> Iterator[Problem]:
    """Find a number of steps with gradient that the sampler, or the tail they are drawn from, does not have.

    Args:
        k: The number.
        tail: Share of the steps, counted from the end, that are drawn from.
        settings: The training's.

    Yields:
        The problem, if there is one.
    """
    steps = settings.sampler.num_inference_steps
    length = tail_length(tail, steps)
    if length < k <= steps:
        what = f"method.k must be at most {length}, the {length} steps of method.tail (got {k})"
        yield Problem(("method", "k"), what)
    yield from too_many_steps("k", k, settings)


def pair_problems(pairs: Pairs, tail: float, j_tail: float, settings: TrainingSettings) -> Iterator[Problem]:
    """Find what leaves too few steps to draw k < j from.

    Args:
        pairs: How they are drawn.
        tail: Share of the steps, counted from the end, that both are drawn from.
        j_tail: Share of the steps, counted from the end, that j is drawn from.
        settings: The training's.

    Yields:
        The first problem, if there is one.
    """
    steps, least = settings.sampler.num_inference_steps, fewest_steps(pairs)
    length = tail_length(tail, steps)
    if length < least:
        what = f"method.pairs {pairs!r} needs at least {least} steps to draw from (got {length})"
        yield Problem(("method", "pairs"), what)
    elif tail_length(j_tail, steps) < least - 1:
        must = f"must leave at least {least - 1} of {steps} steps for {pairs!r} pairs"
        yield Problem(
            ("method", "j_tail"), f"method.j_tail {must} (got {j_tail:g})", f"at least {(least - 1) / steps:.2g}"
        )


def fewest_steps(pairs: Pairs) -> int:
    """How many steps k < j need to be drawn from."""
    return 3 if pairs == "dirichlet" else 2


def tail_length(tail: float, steps: int) -> int:
    """How many of the last steps a share means: ceil(tail T)."""
    return math.ceil(tail * steps - 1e-9)  # 0.28 * 25 is 7.000000000000001
