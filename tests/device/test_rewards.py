"""Every reward that ships with Draft trains or measures on an accelerator, and finds what it finds on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from draft.rewards.discovery import DISTRIBUTION, reward_entries
from draft.rewards.loading import find_reward

OPTIONS: dict[str, dict[str, Any]] = {
    "attack_rate": {"target": "cat"},
    "adversarial": {"target": "cat"},
    "expression": {"formula": "a + max(b, -0.5)", "of": {"a": {"use": "rotation"}, "b": {"use": "symmetry"}}},
}
"""What a reward needs besides its stand-in."""
KINDS = {entry.name: find_reward(entry.name) for entry in reward_entries() if entry.dist == DISTRIBUTION}
METRICS = sorted(name for name, kind in KINDS.items() if kind.differentiable is False)
"""Rewards that can only measure; the others are trained for."""
TRAINED = sorted(set(KINDS) - set(METRICS))


def terms(names: list[str]) -> dict[str, dict[str, Any]]:
    """Rewards on the embedded models."""
    return {name: {**(KINDS[name].stand_in or {}), **OPTIONS.get(name, {})} for name in names}


@pytest.fixture(scope="module")
def folders(module_bench: Any) -> tuple[Path, Path]:
    """Where each reward has been trained for or measured: on the CPU, and there."""
    stages = {
        "train": module_bench.stage(
            "train", rewards=terms(TRAINED), method={"kind": "draft_k", "k": 1}, micro_batch_size=0
        ),
        "evaluate": module_bench.stage("evaluate", rewards=terms(METRICS), images_per_prompt=1),
    }
    return module_bench.run_on_both(stages)


@pytest.mark.parametrize("name", TRAINED)
def test_a_reward_scores_in_a_training_as_on_the_cpu(folders: tuple[Path, Path], metrics: Any, name: str) -> None:
    (expected,), (row,) = (metrics(folder / "train") for folder in folders)
    assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5)


def test_the_gradient_of_all_rewards_is_that_of_the_cpu(folders: tuple[Path, Path], metrics: Any) -> None:
    (expected,), (row,) = (metrics(folder / "train") for folder in folders)
    assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert row["grad_norm"] > 0


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_measures_as_on_the_cpu(folders: tuple[Path, Path], name: str) -> None:
    expected, found = (
        json.loads((folder / "evaluate" / "report.json").read_text(encoding="utf-8"))["arms"]["base"][name]
        for folder in folders
    )
    assert found["mean"] == pytest.approx(expected["mean"], rel=1e-4, abs=1e-5)
