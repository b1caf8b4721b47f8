"""What methods draw from a rollout's steps: bounds, frequencies, budgets."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from draft.diffusion.settings import SamplerSettings
from draft.methods.random_steps import draw_active, draw_pair, split_budget
from draft.methods.values import DirectAlign, FlowBPBridge, FlowBPLagrange, FlowBPSparse, LeapAlign, Method
from draft.methods.values.steps import tail_length
from draft.training.settings import TrainSettings

DRAWS = 4000


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_uniform_pairs_are_all_alike() -> None:
    source = generator()
    counts = Counter(draw_pair(2, 7, source) for _ in range(DRAWS))
    assert set(counts) == {(k, j) for k in range(2, 7) for j in range(k + 1, 7)}
    assert all(abs(count - DRAWS / 10) < 5 * (DRAWS / 10) ** 0.5 for count in counts.values())


def test_uniform_pairs_with_a_late_j_have_j_uniform_there_and_k_anywhere_before_it() -> None:
    source = generator()
    pairs = [draw_pair(1, 10, source, j_last=3) for _ in range(DRAWS)]
    late = Counter(j for _, j in pairs)
    assert set(late) == {7, 8, 9} and all(abs(count - DRAWS / 3) < 5 * (DRAWS / 3) ** 0.5 for count in late.values())
    assert {k for k, j in pairs if j == 7} == set(range(1, 7))


@pytest.mark.parametrize(
    ("first", "steps", "j_last"), [(0, 25, None), (0, 25, 10), (7, 25, 10), (0, 3, None), (2, 5, 1)]
)
def test_dirichlet_pairs_stay_in_bounds_and_follow_their_shares(first: int, steps: int, j_last: int | None) -> None:
    source = generator()
    pairs = [
        draw_pair(first, steps, source, pairs="dirichlet", shares=(2.5, 6.0, 2.0), j_last=j_last) for _ in range(1000)
    ]
    assert all(first <= k < j < steps for k, j in pairs)
    if j_last is not None:
        assert all(j >= steps - max(j_last, 2) for _, j in pairs)
    if (first, steps, j_last) == (0, 25, None):
        gap = sum(j - k for k, j in pairs) / len(pairs)
        before = sum(k + 1 for k, _ in pairs) / len(pairs)
        assert gap == pytest.approx(25 * 6 / 10.5, rel=0.05) and before == pytest.approx(25 * 2 / 10.5, rel=0.1)


def test_late_bias_is_a_power_of_the_step() -> None:
    source = generator()
    for bias, origin in ((0.0, 0), (2.0, 0), (2.0, 3)):
        counts = Counter(draw_active(1, 3, 8, bias, source, origin=origin)[0] for _ in range(DRAWS))
        chances = {i: (i - origin + 1) ** bias for i in range(3, 8)}
        for i, chance in chances.items():
            expected = DRAWS * chance / sum(chances.values())
            assert abs(counts[i] - expected) < 5 * expected**0.5 + 1
    assert draw_active(0, 3, 3, 1.0, source, origin=3) == []
    assert draw_active(5, 3, 8, 4.0, source, origin=0) == [3, 4, 5, 6, 7]
    assert all(len(set(draw_active(3, 0, 8, 2.0, source, origin=0))) == 3 for _ in range(50))


def test_a_budget_is_shared_by_length_with_at_least_one_on_each_side() -> None:
    assert split_budget(5, 10, 15) == (2, 3)
    assert split_budget(5, 1, 24) == (1, 4)
    assert split_budget(5, 24, 1) == (4, 1)
    assert split_budget(2, 24, 1) == (1, 1)
    for before in range(1, 6):
        for after in range(1, 6):
            for count in range(2, before + after + 1):
                first, second = split_budget(count, before, after)
                assert first + second == count and 1 <= first <= before and 1 <= second <= after


def test_a_tail_is_rounded_up_without_the_rounding_of_floats() -> None:
    assert [tail_length(0.28, 25), tail_length(0.7, 25), tail_length(0.4, 25), tail_length(1.0, 7)] == [7, 18, 10, 7]


@pytest.mark.parametrize(
    ("method", "steps", "message"),
    [
        (FlowBPSparse(k=6), 5, "k must be at most sampler.num_inference_steps, 5 (got 6)"),
        (FlowBPSparse(k=6, tail=0.5), 10, "k must be at most 5, the 5 steps of method.tail (got 6)"),
        (FlowBPBridge(k=5), 4, "k must be at most sampler.num_inference_steps, 4 (got 5)"),
        (LeapAlign(), 1, "pairs 'uniform' needs at least 2 steps to draw from (got 1)"),
        (FlowBPLagrange(), 2, "pairs 'dirichlet' needs at least 3 steps to draw from (got 2)"),
        (FlowBPLagrange(j_tail=0.05), 20, "j_tail must leave at least 2 of 20 steps for 'dirichlet' pairs (got 0.05)"),
        (DirectAlign(levels=(0.5, 0.1)), 9, "levels must rise, noisier level first (got [0.5, 0.1])"),
        (DirectAlign(positive=("Real",)), 9, "negative must have words where the other side has (got none)"),
        (DirectAlign(negative=("Flat",)), 9, "positive must have words where the other side has (got none)"),
        (LeapAlign(), 2, None),
        (FlowBPBridge(k=2), 2, None),
        (FlowBPSparse(k=1), 1, None),
        (DirectAlign(), 1, None),
    ],
)
def test_what_a_rollout_does_not_have_is_named(method: Method, steps: int, message: str | None) -> None:
    settings = TrainSettings(method=method, sampler=SamplerSettings(num_inference_steps=steps))
    assert [each.what for each in method.problems(settings)] == ([f"method.{message}"] if message else [])
