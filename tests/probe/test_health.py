"""What a probe's numbers say: growth beyond the sensitivities and single batches that stand out speak against a K."""

from __future__ import annotations

import math

from draft.probe.health import GridFigures, Health, recommended, truncations, verdict


def _health(norms: list[list[float]], sensitivities: list[float]) -> Health:
    steps = len(sensitivities)
    found = truncations(norms, [[1.0] * steps for _ in norms], [1.0] * steps, sensitivities)
    grid = GridFigures("a grid", list(range(steps)), sensitivities)
    return Health(grid=grid, truncations=found, terms=[0.0] * steps, adjoints=[0.0] * (steps + 1), norms=norms)


def test_growth_is_measured_against_what_the_steps_reach() -> None:
    health = _health([[2.0, 4.0, 30.0]], [0.1, 0.1, 0.1])
    assert [(each.growth, round(each.beyond, 12)) for each in health.truncations] == [(1, 1), (2, 1), (15, 5)]
    assert recommended(health) == 3
    assert verdict(health) == "the norm grows 15-fold from K = 1 to K = 3, and nothing speaks against any K"


def test_a_chain_that_explodes_is_not_recommended_from_there_on() -> None:
    health = _health([[1.0, 2.0, 40.0, 41.0]] * 3, [0.1, 0.1, 0.1, 0.1])
    assert recommended(health) == 2
    assert verdict(health) == (
        "the norm grows 40-fold from K = 1 to K = 3, 13-fold what the steps' sensitivities account for: "
        "not recommended above K = 2"
    )


def test_one_batch_that_stands_out_speaks_against_k() -> None:
    health = _health([[1.0, 1.0], [1.0, 1.0], [1.0, 6.0]], [0.1, 0.1])
    assert recommended(health) == 1
    assert verdict(health) == "at K = 2 one batch has 6-fold the median's norm: not recommended above K = 1"


def test_a_gradient_that_is_no_number_is_no_recommendation() -> None:
    assert recommended(_health([[1.0, math.nan]], [0.1, 0.1])) == 1
