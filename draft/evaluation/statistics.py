"""Means and paired bootstrap intervals of scores."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Args:
        mean: The mean of the values, NaN without any.
        low: Lower end; NaN where fewer than two values are there.
        high: Upper end.
        count: Values behind it.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return bool(self.low > 0 or self.high < 0)


def mean_interval(values: Sequence[float], *, samples: int, seed: int) -> Interval:
    """The mean of `values` and its 95 % bootstrap interval.

    Bias-corrected and accelerated (Efron 1987, J. Am. Stat. Assoc. 82:171); the plain percentiles where that
    correction is undefined, and the mean itself where all values are equal.

    Args:
        values: Independent values; those that are not finite are left out.
        samples: Resamples.
        seed: Seed of the resampling.

    Returns:
        The interval.

    Example:
        >>> mean_interval([1.0, 1.0, 1.0], samples=100, seed=0)
        Interval(mean=1.0, low=1.0, high=1.0, count=3)
    """
    data = np.asarray([value for value in values if np.isfinite(value)], dtype=np.float64)
    if data.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    if np.ptp(data) <= 1e-12 * np.abs(data).max():
        return Interval(mean, mean, mean, int(data.size))
    low = high = float("nan")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            result = bootstrap(
                (data,), np.mean, n_resamples=samples, batch=500, method=method, rng=np.random.default_rng(seed)
            )
        low, high = (float(end) for end in result.confidence_interval)
        if np.isfinite(low) and np.isfinite(high):
            break
    return Interval(mean, low, high, int(data.size))


def paired_gain(
    base: Sequence[float], tuned: Sequence[float], groups: Sequence[int], *, samples: int, seed: int
) -> Interval:
    """The mean of `tuned - base`, image by image, and its 95 % bootstrap interval.

    Images of one prompt are not independent, so their differences are averaged first and the prompts are resampled;
    with a single prompt the images are.

    Args:
        base: Scores of the base model, one per image.
        tuned: Scores on the same prompts and seeds.
        groups: The prompt of each image, as a number.
        samples: Resamples.
        seed: Seed of the resampling.

    Returns:
        The interval of the mean difference; pairs with a score that is not finite are left out.

    Raises:
        ValueError: The three lengths differ.

    Example:
        >>> paired_gain([0.0, 0.0], [1.0, 1.0], [0, 1], samples=100, seed=0).mean
        1.0
    """
    differences: dict[int, list[float]] = {}
    for before, after, group in zip(base, tuned, groups, strict=True):
        if np.isfinite(before) and np.isfinite(after):
            differences.setdefault(group, []).append(after - before)
    if len(differences) == 1:
        (values,) = differences.values()
    else:
        values = [float(np.mean(group)) for group in differences.values()]
    return mean_interval(values, samples=samples, seed=seed)
