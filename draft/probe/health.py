"""The result of a probe as plain numbers, and the K up to which it recommends training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

FACTOR = 5.0
"""Our rule of thumb: the most that a norm may grow beyond its reach, and that one batch may exceed the median by."""


@dataclass(frozen=True)
class GridFigures:
    """A sampling grid and the sensitivity of its steps to the network's output.

    Args:
        label: What it is called.
        times: The time t_i of each step.
        sensitivities: |d x_{i+1} / d out_i| of each step.
    """

    label: str
    times: Sequence[float]
    sensitivities: Sequence[float]


@dataclass(frozen=True)
class Truncation:
    """The gradient of the last K steps.

    Args:
        k: K.
        norm: |g_K|, mean over the batches.
        least: Its least value over the batches.
        greatest: Its greatest.
        growth: `norm` over that of K = 1.
        beyond: `growth` over the growth of the sum of the K steps' sensitivities, which a chain would have whose steps
            all passed the gradient on as it is.
        outlier: `greatest` over the median of the batches.
        cosine: cos(g_K, g_T), mean over the batches.
        agreement: |mean over batches of g_K| / mean over batches of |g_K|.
    """

    k: int
    norm: float
    least: float
    greatest: float
    growth: float
    beyond: float
    outlier: float
    cosine: float
    agreement: float


@dataclass(frozen=True)
class Health:
    """The gradient of a chain of T steps.

    Args:
        grid: The sampler's.
        truncations: For K = 1..T.
        terms: |lam_{i+1}^T dF_i/dtheta| of each step i, mean over the batches, T numbers.
        adjoints: |lam_i| for i = 0..T, mean over the batches.
        norms: |g_K| of each batch, for K = 1..T.
    """

    grid: GridFigures
    truncations: Sequence[Truncation]
    terms: Sequence[float]
    adjoints: Sequence[float]
    norms: Sequence[Sequence[float]]

    @property
    def batches(self) -> int:
        """The number of batches."""
        return len(self.norms)

    @property
    def steps(self) -> int:
        """The number T of steps."""
        return len(self.truncations)


def truncations(
    norms: Sequence[Sequence[float]],
    cosines: Sequence[Sequence[float]],
    agreement: Sequence[float],
    sensitivities: Sequence[float],
) -> list[Truncation]:
    """Sum up what was measured for each K.

    Args:
        norms: |g_K| of each batch, for K = 1..T.
        cosines: cos(g_K, g_T) of each batch, for K = 1..T.
        agreement: For K = 1..T.
        sensitivities: Of the T steps, the last one not 0.

    Returns:
        One value for each K.
    """
    summed: list[Truncation] = []
    reach = 0.0
    for k, (sizes, directions) in enumerate(zip(zip(*norms, strict=True), zip(*cosines, strict=True), strict=True), 1):
        reach += sensitivities[-k] / sensitivities[-1]
        norm = fmean(sizes)
        growth = _ratio(norm, summed[0].norm if summed else norm)
        summed.append(
            Truncation(
                k=k,
                norm=norm,
                least=min(sizes),
                greatest=max(sizes),
                growth=growth,
                beyond=growth / reach,
                outlier=_ratio(max(sizes), median(sizes)),
                cosine=fmean(directions),
                agreement=agreement[k - 1],
            )
        )
    return summed


def objection(truncation: Truncation) -> str:
    """Why K is not recommended, in words; empty where nothing speaks against it."""
    if not truncation.beyond <= FACTOR:  # not a number is no recommendation either
        return (
            f"the norm grows {_times(truncation.growth)} from K = 1 to K = {truncation.k}, "
            f"{_times(truncation.beyond)} what the steps' sensitivities account for"
        )
    if not truncation.outlier <= FACTOR:
        return f"at K = {truncation.k} one batch has {_times(truncation.outlier)} the median's norm"
    return ""


def recommended(health: Health) -> int:
    """The largest K up to which nothing speaks against any; 0 where something does against K = 1."""
    for truncation in health.truncations:
        if objection(truncation):
            return truncation.k - 1
    return health.steps


def verdict(health: Health) -> str:
    """The result of a probe in one sentence.

    Args:
        health: The measured gradient.

    Returns:
        A sentence without a full stop.
    """
    last, limit = health.truncations[-1], recommended(health)
    if limit == health.steps:
        return f"the norm grows {_times(last.growth)} from K = 1 to K = {last.k}, and nothing speaks against any K"
    worst = max(
        (truncation for truncation in health.truncations if objection(truncation)),
        key=lambda truncation: max(truncation.beyond, truncation.outlier),
    )
    return f"{objection(worst)}: not recommended above K = {limit}"


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")


def _times(factor: float) -> str:
    return f"{factor:.0f}-fold" if factor >= 9.95 else f"{factor:.2g}-fold"
