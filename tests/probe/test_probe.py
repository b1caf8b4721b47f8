"""A probe through the pipeline on a tiny model: what it writes, and that its numbers are those of a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draft.errors import ConfigErrors, DraftError
from draft.pipeline.load import load_pipeline
from draft.pipeline.run import run_pipeline

FILE = """
name: demo
seed: 3
stages:
  train:
    kind: train
    model: model
    prompts: [a cat, a dog]
    method: {kind: draft_k, k: 2}
    sampler: {num_inference_steps: 4, guidance_scale: 2.0}
    lora: {rank: 2}
    batch_size: 2
    max_steps: 1
    max_grad_norm: 0
    rewards: {jpeg: {quality: 50, weight: 100}}
  probe:
    kind: probe
    model: model
    prompts: [a cat, a dog]
    sampler: {num_inference_steps: 4, guidance_scale: 2.0}
    lora: {rank: 2}
    batch_size: 2
    batches: 2
    grids: [{spacing: leading}, {num_inference_steps: 2, final: first_alpha}]
    rewards: {jpeg: {quality: 50, weight: 100}}
  again:
    kind: probe
    model: model
    prompts: [a cat, a dog]
    sampler: {num_inference_steps: 3, guidance_scale: 2.0, eta: 0.5}
    adapter: {from: "${out:train.adapter}", weight: 0.5}
    cfg_gradient: detached
    batch_size: 2
    batches: 1
    rewards: {jpeg: {quality: 50, weight: 100}}
"""


@pytest.fixture
def file(tiny_model: Path, tmp_path: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "demo.yaml").write_text(FILE)
    return tmp_path / "demo.yaml"


def test_the_first_batch_is_that_of_a_training_and_everything_is_written(file: Path) -> None:
    result = run_pipeline(file, ["stages.probe.batches=1"], runs_dir=file.parent / "runs")
    first = json.loads((result["train"].outputs["metrics"]).read_text().splitlines()[0])
    found = json.loads(result["probe"].outputs["results"].read_text())
    by_k = {each["k"]: each["norm"] for each in found["k"]}
    assert by_k[2] == pytest.approx(first["grad_norm"], rel=1e-4)
    assert result["probe"].metrics["norm_1"] == by_k[1] and result["probe"].metrics["norm_all"] == by_k[4]
    table = result["probe"].outputs["table"].read_text()
    assert "4 steps, leading, final one" in table and "2 steps, trailing, final first_alpha" in table
    assert "<svg" in result["probe"].outputs["report"].read_text()
    adapted = json.loads(result["again"].outputs["results"].read_text())
    assert len(adapted["k"]) == 3 and all(each["norm"] > 0 for each in adapted["k"])
    again = run_pipeline(file, ["stages.probe.batches=1"], runs_dir=file.parent / "runs")
    assert [stage.action for stage in again.stages] == ["reused"] * 3


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        (
            ("    cfg_gradient: detached\n", "    lora: {rank: 2}\n"),
            "demo.yaml:32: stages.again.lora describes a fresh LoRA, and stages.again.adapter is probed instead of one",
        ),
        (
            ('from: "${out:train.adapter}"', 'from: "${out:probe.table}"'),
            "demo.yaml:31: stages.again.adapter.from must be an output 'adapter' (got '${out:probe.table}')",
        ),
        (
            ("{spacing: leading}", "{spacing: leading, steps: 3}"),
            "demo.yaml:24: unknown key 'stages.probe.grids.0.steps'",
        ),
        (
            ("batches: 2\n    grids", "batches: 2\n    cfg_gradient: off\n    grids"),
            "demo.yaml:24: stages.probe.cfg_gradient must be 'both' or 'detached'",
        ),
        (
            ("jpeg: {quality: 50, weight: 100}}\n  again", "jpeg_size: {}}\n  again"),
            "demo.yaml:25: reward 'jpeg_size' has no gradient, so it cannot be probed",
        ),
    ],
    ids=["both adapters", "wrong output", "unknown grid key", "no guidance", "no gradient"],
)
def test_a_mistake_is_told_with_its_line(file: Path, swap: tuple[str, str], message: str) -> None:
    assert swap[0] in FILE
    file.write_text(FILE.replace(*swap))
    with pytest.raises(DraftError) as caught:
        load_pipeline(file, [])
    found = caught.value.errors if isinstance(caught.value, ConfigErrors) else [caught.value]
    assert len(found) == 1 and message in str(found[0])
