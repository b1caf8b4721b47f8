"""What is said of the trainings: means and spreads, ranks, remarks, tables and curves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from draft.comparison.plot import make_line
from draft.comparison.record import Point, TrainingRecord
from draft.comparison.results import Comparison, MethodResult, json_text, memory, per_update, remarks, spread
from draft.comparison.settings import AXES, BudgetSettings, ComparisonSettings, MethodConfig
from draft.comparison.table import cell, markdown, tables
from draft.methods.values import DraftLV

SETTINGS = ComparisonSettings(seeds=(0, 1), budget=BudgetSettings(updates=4, evaluations=8, seconds=2.0, cap=3.0))


def point(updates: float, reward: float, *, pace: float = 0.5) -> Point:
    spending = {"updates": updates, "evaluations": 2 * updates, "seconds": pace * updates}
    return Point(spending=spending, figures={"reward": reward, "judge": reward / 10, "jpeg": reward})


def training(*rewards: float, rate: float = 1e-3, pace: float = 0.5, **own: Any) -> TrainingRecord:
    """A training whose curve has a point every second update and that spends all budgets with the last one."""
    curve = tuple(point(2.0 * (i + 1), reward, pace=pace) for i, reward in enumerate(rewards))
    options = {"curve": curve, "spending": curve[-1].spending, "spent": dict.fromkeys(AXES, curve[-1]), "memory": 100}
    return TrainingRecord(rate=rate, seed=0, **{**options, **own})


def result(
    *runs: TrainingRecord, rate: float | None = 1e-3, tried: dict[float, TrainingRecord] | None = None
) -> MethodResult:
    config = MethodConfig(method=DraftLV(), learning_rates=(1e-3,))
    return MethodResult(config=config, rate=rate, tried=tried or {}, runs=runs)


def comparison(**methods: MethodResult) -> Comparison:
    base = {"reward": 1.0, "judge": 0.1, "jpeg": 1.0}
    return Comparison(
        title="a",
        model="m",
        settings=SETTINGS,
        weights={"jpeg": 1.0},
        images=4,
        start={"reward": 1.5},
        base=base,
        methods=methods,
    )


def test_a_score_is_the_mean_over_seeds_with_their_standard_deviation() -> None:
    found = spread(result(training(1, 2), training(1, 4)), "seconds", "reward")
    assert (found.mean, found.deviation, found.count) == (3.0, pytest.approx(math.sqrt(2)), 2)
    assert cell(found) == "3.000 ± 1.414"


def test_failed_trainings_count_neither_in_means_nor_in_costs() -> None:
    one = result(training(1, 2, pace=0.5), training(1, 9, pace=9.0, memory=999, failure="it broke"))
    assert spread(one, "updates", "judge").mean == 0.2
    assert cell(spread(one, "updates", "reward")) == "2.000"
    assert (per_update(one, "seconds").mean, per_update(one, "evaluations").mean, memory(one)) == (0.5, 2.0, 100)
    assert remarks(one, SETTINGS) == ["1 of 2 trainings failed: it broke"]


def test_methods_stand_in_the_order_of_their_reward_for_the_same_seconds_and_failed_ones_last() -> None:
    lost = result(rate=None, tried={1e-3: training(1, failure="it broke"), 1e-2: training(1, failure="it broke")})
    found = comparison(lost=lost, low=result(training(2.0)), high=result(training(3.0)))
    assert found.ranked == ["high", "low", "lost"]
    first = tables(found)[0]
    assert [row[0] for row in first.rows] == ["high", "low", "lost", "base"]
    assert first.rows[2][1:4] == ["–", "–", "–"]
    assert first.rows[2][-1] == "failed with every learning rate: it broke"
    assert all(len(row) == len(table.columns) for table in tables(found) for row in table.rows)


def test_a_learning_rate_at_the_edge_of_its_search_is_remarked() -> None:
    tried = {rate: training(1, rate=rate) for rate in (1e-4, 1e-3, 1e-2)}
    said = [remarks(result(training(1, 2), rate=rate, tried=tried), SETTINGS) for rate in tried]
    edge = "its learning rate is the {} that was tried"
    assert said == [[edge.format("smallest")], [], [edge.format("largest")]]


def test_a_budget_that_was_not_spent_is_remarked_and_has_no_figure() -> None:
    slow = training(1.0, spent={"seconds": point(2, 1.0)})
    assert remarks(result(slow), SETTINGS) == ["4 updates not spent within 6 s", "8 evaluations not spent within 6 s"]
    assert math.isnan(spread(result(slow), "updates", "reward").mean)


def test_a_curve_joins_the_seeds_as_far_as_all_of_them_go() -> None:
    one = result(training(2, 4, 9, pace=0.5), training(3, 8, pace=1.5), training(0, failure="it broke"))
    line = make_line(one, "seconds", start=1.5)
    assert list(line.x) == [0.0, 2.0, 4.0]
    assert list(line.mean) == [1.5, 2.5, 6.0]
    assert (list(line.low), list(line.high)) == ([1.5, 2, 4], [1.5, 3, 8])
    assert list(make_line(one, "evaluations", start=1.5).x) == [0.0, 4.0, 8.0]


def test_the_markdown_holds_every_table_and_keeps_its_columns_apart() -> None:
    broken = result(rate=None, tried={1e-3: training(1, failure="got a|b")})
    text = markdown(comparison(lv=result(training(2), tried={1e-3: training(2)}), broken=broken))
    assert text.count("**") == 2 * 6, "reward, costs, three budgets, the search"
    assert "got a\\|b" in text
    for line in text.splitlines():
        if line.startswith("| broken") and "got" in line:
            assert line.replace("\\|", "").count("|") == 6
    assert "| lv | 2.000 * |" in text
    assert text.endswith("|\n")


def test_numbers_that_are_none_are_null_in_the_json() -> None:
    data = json.loads(json_text(comparison(lv=result(training(2.0)))))
    assert data["methods"]["lv"]["at"]["updates"]["reward"] == {"mean": 2.0, "deviation": None, "count": 1}
    assert data["base"] == {"reward": 1.0, "judge": 0.1, "jpeg": 1.0}


def test_a_single_reward_is_not_shown_twice() -> None:
    assert comparison(lv=result(training(2.0))).labels == ["reward", "judge"]
    halved = replace(comparison(lv=result(training(2.0))), weights={"jpeg": 0.5})
    assert halved.labels == ["reward", "judge", "jpeg"]
