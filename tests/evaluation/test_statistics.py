"""Intervals that mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from draft.evaluation.statistics import mean_interval, paired_gain

NAN = float("nan")


def test_the_interval_agrees_with_the_normal_one_on_many_values() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = mean_interval(values.tolist(), samples=4000, seed=1)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = mean_interval(generator.normal(1.0, 1.0, 200).tolist(), samples=400, seed=trial)
        hits += interval.low <= 1.0 <= interval.high
    assert 180 <= hits <= 198  # 95 % of 200 is 190, its standard deviation 3


def test_a_seed_gives_the_same_interval_and_leaves_the_global_generator_alone() -> None:
    values = [0.1, 0.5, 0.2, 0.9]
    before = str(np.random.get_state())  # noqa: NPY002
    one, two = (mean_interval(values, samples=200, seed=7) for _ in range(2))
    assert one == two and str(np.random.get_state()) == before  # noqa: NPY002


@pytest.mark.parametrize(
    ("values", "mean", "ends", "count"),
    [
        ([2.0, 2.0, 2.0], 2.0, (2.0, 2.0), 3),
        ([0.0, 0.0], 0.0, (0.0, 0.0), 2),
        ([5.0], 5.0, (NAN, NAN), 1),
        ([], NAN, (NAN, NAN), 0),
        ([NAN, float("inf"), 4.0, 4.0], 4.0, (4.0, 4.0), 2),
    ],
)
def test_degenerate_values_give_no_warning_and_no_lie(
    values: list[float], mean: float, ends: tuple[float, float], count: int
) -> None:
    interval = mean_interval(values, samples=100, seed=0)
    assert [interval.mean, interval.low, interval.high] == pytest.approx([mean, *ends], nan_ok=True)
    assert interval.count == count and interval.significant == (ends[0] > 0)


def test_two_values_are_enough_for_an_interval() -> None:
    interval = mean_interval([0.0, 1.0], samples=200, seed=0)
    assert interval.low <= 0.5 <= interval.high


def test_a_small_steady_gain_is_found_beneath_large_differences_between_prompts() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(0, 10, 60)
    tuned = base + 0.1 + generator.normal(0, 0.05, 60)
    gain = paired_gain(base.tolist(), tuned.tolist(), list(range(60)), samples=500, seed=0)
    assert gain.significant and gain.mean == pytest.approx(0.1, abs=0.03)


def test_more_seeds_of_the_same_prompts_do_not_feign_certainty() -> None:
    generator = np.random.default_rng(0)
    effects = generator.normal(0.2, 1.0, 8)
    tuned = np.repeat(effects, 50) + generator.normal(0, 0.01, 400)
    groups = np.repeat(np.arange(8), 50).tolist()
    gain = paired_gain([0.0] * 400, tuned.tolist(), groups, samples=500, seed=0)
    assert gain.high - gain.low > 0.5
    assert gain.count == 8


def test_one_prompt_alone_resamples_its_images_and_missing_scores_drop_their_pair() -> None:
    gain = paired_gain([0.0, 0.0, NAN, 0.0], [1.0, 2.0, 3.0, NAN], [0, 0, 0, 0], samples=100, seed=0)
    assert gain.mean == 1.5 and gain.count == 2
