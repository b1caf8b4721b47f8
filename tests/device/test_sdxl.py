"""Stable Diffusion XL on an accelerator: everything that its file computes is where the model is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def family_model(load_module: Callable[[Path], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of the models that the other tests of this folder run with."""
    tiny = load_module(Path(__file__).parents[1] / "tiny_xl.py")
    means = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.1, 1.2, 1.3, 1.4]}
    return tiny.save_tiny_xl(tmp_path_factory.mktemp("xl") / "model", vae=means)


@pytest.mark.parametrize(
    "settings", [{"gradient_checkpointing": True}, {"mixed_precision": "bf16", "resolution": [16, 24]}], ids=str
)
def test_a_training_and_an_evaluation_go_as_on_the_cpu(bench: Any, metrics: Any, settings: dict[str, Any]) -> None:
    evaluated = {key: value for key, value in settings.items() if key != "gradient_checkpointing"}
    stages = {
        "train": bench.stage("train", **settings),
        "evaluate": bench.stage(
            "evaluate",
            adapters={"trained": {"from": "${out:train.adapter}"}},
            rewards={"symmetry": None},
            images_per_prompt=1,
            **evaluated,
        ),
    }
    folders = bench.run_on_both(stages)
    for expected, row in zip(*(metrics(folder / "train") for folder in folders), strict=True):
        assert row == pytest.approx(expected, rel=2e-3, abs=1e-5)
    assert all((folder / "evaluate" / "report.html").is_file() for folder in folders)
