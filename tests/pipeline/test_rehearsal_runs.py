"""A rehearsal runs: its results lie apart, it resumes, and a full-size run that cannot start offers it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from draft.errors import ResourceError
from draft.pipeline.kinds.kind import Job
from draft.pipeline.load import load_pipeline


def test_results_lie_apart_and_their_configuration_runs_again_without_rehearse(full) -> None:
    full.file.write_text(full.file.read_text() + "rehearsal: {vars.thing: cat}\n")
    result = full.run(rehearse=True)
    assert result.folder == full.folder / "runs" / "full-rehearsal"
    assert full.ran() == ["train", "mix", "evaluate", "generate"]
    config = full.folder / "copy.yaml"
    shutil.copy(result.folder / "config.yaml", config)
    assert "rehearsal:" not in config.read_text()
    again = full.run(file=config)
    assert (again.folder, full.ran()) == (result.folder, [])
    assert full.run(file=config, rehearse=True).folder == result.folder
    assert full.ran() == []


def test_the_way_to_go_on_is_again_a_rehearsal(full) -> None:
    full.failing["mix"] = ResourceError("too small", needs="more", hint="buy it")
    with pytest.raises(ResourceError) as caught:
        full.run("seed=1", rehearse=True)
    runs = full.folder / "runs"
    assert caught.value.__notes__ == [f"resume: draft run {full.file} seed=1 --rehearse --runs-dir {runs}"]
    assert str(caught.value) == "stage 'mix': too small\n  needs: more\n  hint: buy it", "this is the rehearsal"


@pytest.mark.parametrize(("hint", "text"), [("buy it", "buy it; or try"), ("", "try")])
def test_a_full_size_run_that_cannot_start_says_what_it_needs_and_offers_a_rehearsal(full, hint, text) -> None:
    full.failing["train"] = ResourceError("too small", needs="more", hint=hint)
    with pytest.raises(ResourceError) as caught:
        full.run("seed=1")
    offer = f"draft run {full.file} --rehearse --runs-dir {full.folder / 'runs'}"
    assert str(caught.value) == (
        f"stage 'train': too small\n  needs: more\n  hint: {text} the same pipeline at small scale now: {offer}"
    )


def test_planning_a_rehearsal_imports_no_torch(full) -> None:
    script = (
        "import sys\nfrom draft.pipeline.run import run_pipeline\n"
        "run_pipeline('demo.yaml', rehearse=True, dry_run=True)\n"
        "found = [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


SMALL = """\
name: small
stages:
  train:
    kind: train
    model: CompVis/stable-diffusion-v1-4
    prompts: [a cat, a dog]
    rewards:
      jpeg: {quality: 50}
      clip_score: {weight: 0.1}
  evaluate:
    kind: evaluate
    model: CompVis/stable-diffusion-v1-4
    prompts: [a fox]
    adapters: {trained: {from: "${out:train.adapter}"}}
    rewards:
      clip_score:
      kb: {use: jpeg_size}
rehearsal:
  stages.train.max_steps: 2
  stages.train.batch_size: 1
  stages.train.sampler.num_inference_steps: 2
  stages.evaluate.sampler.num_inference_steps: 2
"""


def test_a_full_size_pipeline_rehearses_to_the_end_offline(workshop) -> None:
    workshop.file.write_text(SMALL)
    result = workshop.run(rehearse=True, executors={})
    assert [stage.action for stage in result.stages] == ["ran", "ran"]
    metrics = (result.folder / "train" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2]
    report = json.loads((result.folder / "evaluate" / "report.json").read_text())
    assert list(report["arms"]) == ["base", "trained"]
    assert (result.folder / "train" / "adapter.safetensors").stat().st_size > 10_000
    recorded = yaml.safe_load(report["config"])
    assert recorded["evaluate"]["sampler"]["num_inference_steps"] == 2
    replacements = load_pipeline(workshop.file, rehearse=True).replacements
    assert recorded["rehearsal"] == {each.key: {"before": each.before, "after": each.after} for each in replacements}
    assert recorded["rehearsal"]["stages.train.max_steps"] == {"before": None, "after": 2}


def test_a_value_from_the_environment_that_a_rehearsal_replaces_is_not_written(full, monkeypatch) -> None:
    monkeypatch.setenv("DRAFT_TEST_MODEL", "owner/secret-model")
    texts: list[str] = []

    def run(job: Job) -> dict[str, float]:
        texts.append(job.config_text)
        return full.executors["train"](job)

    text = full.file.read_text()
    full.file.write_text(text.replace("model: CompVis/stable-diffusion-v1-4", "model: ${oc.env:DRAFT_TEST_MODEL}"))
    full.run(rehearse=True, only="train", executors={**full.executors, "train": run})
    (recorded,) = texts
    assert "secret" not in recorded and "before: ${oc.env:DRAFT_TEST_MODEL}" in recorded
