"""Random steps of a rollout: one, a pair, several with a bias."""

from __future__ import annotations

import numpy as np
import torch


def uniform(low: int, high: int, generator: torch.Generator) -> int:
    """One of low .. high, both included, each with the same chance."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def draw_pair(
    first: int,
    steps: int,
    generator: torch.Generator,
    *,
    pairs: str = "uniform",
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0),
    j_last: int | None = None,
) -> tuple[int, int]:
    """Two steps k < j.

    `uniform`: two distinct ones; with `j_last`, j uniform among the last ones and k uniform before it. `dirichlet`: (a,
    b, c) ~ Dir(shares) parts of the n = T - first steps, rounded, each at least 1, what is above `j_last` going from a
    to c; then k = first + c - 1 and j = k + b, as in FlowBP's code (jk_sampling.py).

    Args:
        first: First step to draw from.
        steps: Number T of steps.
        generator: Of the draws, on the CPU.
        pairs: `uniform` or `dirichlet`.
        shares: Concentrations of `dirichlet`: after j, between, before k.
        j_last: j is among this many of the last steps; None: anywhere.

    Returns:
        (k, j), first <= k < j < T.
    """
    count = steps - first
    near = min(j_last or count, count)
    if pairs == "uniform":
        if near == count:
            k, j = sorted((first + torch.randperm(count, generator=generator)[:2]).tolist())
            return k, j
        j = uniform(max(steps - near, first + 1), steps - 1, generator)
        return uniform(first, j - 1, generator), j
    # numpy has the Dirichlet distribution with a generator of its own; the seed comes from ours.
    seed = int(torch.randint(2**31, (), generator=generator))
    parts = np.random.default_rng(seed).dirichlet(shares)
    lengths = [max(1, round(part * count)) for part in parts.tolist()]
    lengths[lengths.index(max(lengths))] += count - sum(lengths)
    after, between, before = lengths
    over = max(0, after - max(1, near - 1))
    k = first + before + over - 1
    return k, k + between


def draw_active(
    count: int, first: int, stop: int, bias: float, generator: torch.Generator, *, origin: int
) -> list[int]:
    """Distinct steps of first .. stop - 1, step i with a probability proportional to (i - origin + 1)^bias.

    Args:
        count: How many, at most stop - first.
        first: First step to draw from.
        stop: Where they end.
        bias: 0: all alike; above 0: late ones more often.
        generator: Of the draws, on the CPU.
        origin: The step that counts as 0.

    Returns:
        The steps, rising.
    """
    if count == 0:
        return []
    chances = torch.arange(first - origin + 1, stop - origin + 1, dtype=torch.float64).pow(bias)
    chosen = torch.multinomial(chances, count, replacement=False, generator=generator)
    return sorted((chosen + first).tolist())


def split_budget(count: int, before: int, after: int) -> tuple[int, int]:
    """Share out steps with gradient by the length of two sides, at least one each.

    Args:
        count: How many, at least 2 and at most before + after.
        before: Steps of the first side, at least 1.
        after: Steps of the second side, at least 1.

    Returns:
        How many on each.
    """
    first = min(max(round(count * before / (before + after)), 1, count - after), before, count - 1)
    return first, count - first
