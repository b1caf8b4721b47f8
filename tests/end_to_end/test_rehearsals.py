"""Every shipped pipeline runs on the embedded models through the command line: all of it, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from draft.pipeline.load import load_pipeline

PIPELINES = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))


def rehearse(folder: Path, file: Path, *overrides: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "draft", "run", str(file), "--rehearse", *overrides],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rehearsal on the embedded models" in done.stdout
    return folder / "runs" / f"{file.stem}-rehearsal"


def without_an_hour(file: Path) -> list[str]:
    """Overrides for the stages that take longest: all of what they do stays, but less of it."""
    stages = load_pipeline(file, rehearse=True).stages
    return [f"stages.{name}.{setting}" for name, stage in stages.items() for setting in less(stage.config)]


def less(stage: Any) -> tuple[str, ...]:
    """Every method of a comparison with one rate, seed and little to measure; two pictures of a method; few updates."""
    if stage.kind == "compare":
        budget = "budget={updates: 2, evaluations: 12, seconds: 4}"
        return "learning_rates=[1e-3]", "seeds=[0]", budget, "measure.prompts=[a cat, a red apple]", "curve.prompts=2"
    if stage.kind == "generate" and stage.method is not None:
        return ("prompts=[a cat and a dog, a red apple]",)
    if stage.kind == "train" and stage.method.kind == "ddpo":
        return "batch_size=4", "max_steps=4"
    if stage.kind == "train":
        return (f"max_steps={stage.max_steps // 4}",)
    return ()


@pytest.mark.slow
@pytest.mark.parametrize("file", PIPELINES, ids=lambda path: path.stem)
def test_a_shipped_pipeline_is_rehearsed_whole(file: Path, tmp_path: Path) -> None:
    runs = rehearse(tmp_path, file, *without_an_hour(file))
    for name, stage in load_pipeline(file, rehearse=True).stages.items():
        for output in stage.outputs.values():
            assert (runs / name / output).exists(), (name, output)


@pytest.mark.slow
def test_ddpo_lowers_a_score_without_gradient(tmp_path: Path) -> None:
    """The size of Pillow's file on prompts that no update saw, drawn without noise: the interval is below zero."""
    file = next(path for path in PIPELINES if path.stem == "black_box")
    fewer = "stages.train.learning_rate=6e-3", "stages.train.max_steps=16", "stages.evaluate.images_per_prompt=1"
    runs = rehearse(tmp_path, file, *fewer)
    report = json.loads((runs / "evaluate" / "report.json").read_text(encoding="utf-8"))
    assert report["arms"]["ddpo"]["kilobytes"]["gain"]["high"] < 0
