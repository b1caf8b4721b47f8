"""A run reuses what still holds, and says why it runs the rest."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from draft.errors import DraftError, DraftWarning, StageError
from draft.pipeline.cache import read_record
from draft.pipeline.kinds import KINDS
from draft.pipeline.kinds.kind import Job
from draft.pipeline.load import load_pipeline


def test_stages_run_in_order_with_what_they_need(workshop) -> None:
    result = workshop.run()
    train, mix, evaluate = workshop.jobs
    assert [job.stage.name for job in workshop.jobs] == ["train", "mix", "evaluate"]
    assert list(train.stage.prompts) == ["a cat", "a dog"]
    assert (train.stage.seed, train.stage.model) == (3, str(workshop.folder / "model"))
    assert train.stage.config.learning_rate == 1e-4
    assert [term.label for term in train.stage.terms] == ["jpeg"]
    assert mix.adapters() == {"a": (workshop.runs / "train" / "adapter.safetensors", 0.7)}
    assert list(evaluate.stage.prompts) == ["a fox", "a cow"]
    assert evaluate.files["curves", "train"] == workshop.runs / "train" / "metrics.jsonl"
    assert "kind: evaluate" in evaluate.config_text
    assert [stage.action for stage in result.stages] == ["ran", "ran", "ran"]
    assert result["mix"].outputs == {"adapter": workshop.runs / "mix" / "adapter.safetensors"}
    assert result["mix"].metrics == {"figure": 1.5}
    assert sorted(path.name for path in workshop.runs.iterdir()) == [".lock", "config.yaml", "evaluate", "mix", "train"]


def test_what_an_adapter_says_about_itself_has_no_path_and_no_time(workshop) -> None:
    workshop.run()
    text = json.dumps(dict(workshop.jobs[0].metadata))
    assert str(workshop.folder) not in text
    assert workshop.jobs[0].metadata["draft.model"] == "model"
    first = dict(workshop.jobs[0].metadata)
    workshop.jobs.clear()
    workshop.run(force=True)
    assert dict(workshop.jobs[0].metadata) == first


def test_a_second_run_reuses_everything_and_touches_nothing(workshop) -> None:
    workshop.run()
    workshop.ran()
    before = {path: path.stat().st_mtime_ns for path in workshop.runs.rglob("*.safetensors")}
    result = workshop.run()
    assert workshop.ran() == []
    assert [stage.action for stage in result.stages] == ["reused"] * 3
    assert result["train"].metrics == {"figure": 1.5}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert workshop.plan() == ["train: reused", "mix: reused", "evaluate: reused"]


def test_a_dry_run_writes_nothing_and_says_why(workshop) -> None:
    assert workshop.plan() == [
        "train: will run (has not run)",
        "mix: will run (has not run; upstream runs: train)",
        "evaluate: will run (has not run; upstream runs: mix, train)",
    ]
    assert not (workshop.folder / "runs").exists()


CHANGES = {
    "vars.rate=2e-4": [
        "train: will run (config changed: learning_rate 0.0001 -> 0.0002)",
        "mix: will",
        "evaluate: will",
    ],
    "stages.mix.adapters.a.weight=0.5": [
        "train: reused",
        "mix: will run (config changed: adapters.a.weight 0.7 -> 0.5)",
        "evaluate: will run (upstream changed: mix)",
    ],
    "seed=4": [
        "train: will run (seed changed: 3 -> 4)",
        "mix: will run (upstream changed: train)",
        "evaluate: will run (seed changed: 3 -> 4; upstream changed: mix, train)",
    ],
    "stages.evaluate.shown=3": ["train: reused", "mix: reused", "evaluate: will run (config changed: shown 12 -> 3)"],
    "stages.train.rewards.jpeg.weight=2": ["train: will run (rewards changed: jpeg.weight 1.0 -> 2.0)", "mix", "eval"],
    "stages.train.prompts=[a cat]": ["train: will run (prompts changed)", "mix", "evaluate"],
    "stages.train.checkpoint.every=7": ["train: reused", "mix: reused", "evaluate: reused"],
    "stages.train.method={kind: draft_k, k: 2}": [
        "train: will run (config changed: method.kind draft_lv -> draft_k, method.copies 2 -> nothing, "
        "method.k nothing -> 2)",
        "mix",
        "evaluate",
    ],
}


@pytest.mark.parametrize("override", CHANGES)
def test_only_what_depends_on_a_change_runs_again_and_says_what_changed(workshop, override: str) -> None:
    workshop.run()
    for said, expected in zip(workshop.plan(override), CHANGES[override], strict=True):
        assert said.startswith(expected)


def test_changed_files_are_noticed(workshop) -> None:
    workshop.run()
    (workshop.folder / "held.txt").write_text("a bee\n")
    assert workshop.plan()[2] == "evaluate: will run (prompts changed)"
    (workshop.folder / "model" / "unet" / "config.json").write_text("{}")
    assert workshop.plan()[0] == "train: will run (model changed)"
    assert workshop.plan()[2] == "evaluate: will run (prompts changed; model changed; upstream changed: mix, train)"


def test_a_missing_or_changed_output_runs_its_stage_again(workshop) -> None:
    workshop.run()
    adapter = workshop.runs / "train" / "adapter.safetensors"
    content = adapter.read_text()
    os.utime(adapter, (1, 1))
    assert workshop.plan()[0] == "train: reused"
    adapter.write_text(content.replace("w", "W"))
    assert workshop.plan()[0] == "train: will run (output changed: adapter.safetensors)"
    adapter.unlink()
    assert workshop.plan()[0] == "train: will run (output missing: adapter.safetensors)"
    (workshop.runs / "train" / "stage.json").write_text("{")
    assert workshop.plan()[0] == "train: will run (no usable record)"


def test_a_stage_whose_input_was_made_anew_with_other_content_runs_again(workshop) -> None:
    workshop.run()
    workshop.content = "other weights"
    workshop.run(only="train", force=True)
    assert workshop.plan()[1] == "mix: will run (upstream changed: train.adapter)"


def test_an_edited_reward_is_not_reused(workshop, plugin) -> None:
    module = plugin()
    workshop.file.write_text(workshop.file.read_text().replace("jpeg: {quality: 50}", "glow: {target: shiny}"))
    workshop.run()
    assert workshop.plan()[0] == "train: reused"
    module.write_text(module.read_text() + "\n# another line\n")
    assert workshop.plan()[0] == "train: reused"
    module.write_text(module.read_text() + "\nANOTHER = 1\n")
    assert workshop.plan()[0] == "train: will run (reward source changed: glow)"


def test_a_retrained_model_of_a_reward_is_noticed(workshop) -> None:
    clip = workshop.folder / "clip"
    clip.mkdir()
    (clip / "model.safetensors").write_text("one")
    text = workshop.file.read_text().replace("jpeg: {quality: 50}", f"clip_score: {{model: {clip}}}")
    workshop.file.write_text(text)
    workshop.run()
    assert workshop.plan()[0] == "train: reused"
    (clip / "model.safetensors").write_text("two")
    assert workshop.plan()[0] == "train: will run (reward model changed: clip_score.model)"


def test_a_forced_run_runs_everything_and_from_runs_the_rest(workshop) -> None:
    workshop.run()
    workshop.ran()
    workshop.run(force=True)
    assert workshop.ran() == ["train", "mix", "evaluate"]
    workshop.run(from_stage="mix")
    assert workshop.ran() == ["mix", "evaluate"]
    assert workshop.plan(from_stage="mix")[1] == "mix: will run (forced)"


def test_only_runs_one_stage_and_needs_what_it_refers_to(workshop) -> None:
    with pytest.raises(StageError) as caught:
        workshop.run(only="mix")
    assert str(caught.value) == (
        "command line, --only: stage 'mix' needs 'train', which must run first (has not run)\n"
        "  hint: drop --only, or run --only train first"
    )
    assert not workshop.runs.exists()
    result = workshop.run(only="train")
    assert [stage.action for stage in result.stages] == ["ran", "left out", "left out"]
    workshop.run(only="mix")
    assert workshop.ran() == ["train", "mix"]


@pytest.mark.parametrize(("option", "key"), [("--from", "from_stage"), ("--only", "only")])
def test_an_unknown_stage_on_the_command_line_is_told(workshop, option: str, key: str) -> None:
    with pytest.raises(DraftError) as caught:
        workshop.run(**{key: "trian"})
    assert str(caught.value) == f"command line, {option}: unknown stage 'trian'\n  hint: did you mean 'train'?"


def test_the_resolved_configuration_runs_again_from_anywhere_and_reuses_everything(
    workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = workshop.file.read_text().replace("[a cat, a dog]", "['a ${cat}', 'no', '???', '\\${x}', '12:30']")
    workshop.file.write_text(text.replace("learning_rate:", "sampler: {negative_prompt: '\\${x}'}\n    learning_rate:"))
    workshop.run("stages.train.max_steps=7")
    first = workshop.jobs[0].stage
    assert list(first.prompts) == ["a ${cat}", "no", "???", "\\${x}", "12:30"]
    assert first.config.sampler.negative_prompt == "${x}"
    workshop.ran()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    copy = elsewhere / "copy.yaml"
    copy.write_text((workshop.runs / "config.yaml").read_text())
    workshop.run(file=copy)
    assert workshop.ran() == []
    assert (workshop.runs / "config.yaml").read_text() == copy.read_text()
    assert "vars" not in copy.read_text()
    again = load_pipeline(copy).stages["train"]
    assert replace(again.config, model="") == replace(first.config, model="")
    assert (again.prompts, again.model) == (first.prompts, first.model)


def test_a_path_on_the_command_line_is_meant_from_where_one_stands(workshop, tmp_path, monkeypatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.csv").write_text("prompt,thing\na fox,fox\n")
    monkeypatch.chdir(here)
    pipeline = load_pipeline(workshop.file, ["stages.evaluate.prompts.file=mine.csv"])
    assert pipeline.stages["evaluate"].prompts.column("thing") == ["fox"]


def test_what_a_stage_warned_of_is_in_its_record_also_after_an_interruption(workshop) -> None:
    executed = workshop.execute

    def execute(job: Job) -> Mapping[str, float]:
        if job.stage.name == "train":
            for text in ("the cat\nsleeps", "the cat\nsleeps", *(() if workshop.failing else ("the dog barks",))):
                warnings.warn(text, DraftWarning, stacklevel=1)
            warnings.warn("not of Draft", UserWarning, stacklevel=1)
        return executed(job)

    def run() -> list[str]:
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("default")
            workshop.run(executors=dict.fromkeys(KINDS, execute))
        return [str(each.message) for each in shown]

    workshop.failing["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert (workshop.runs / "train.partial" / "warnings.txt").read_text() == "the cat sleeps\n"
    workshop.failing.clear()
    assert run() == ["the cat\nsleeps", "the dog barks", "not of Draft"]
    record = json.loads((workshop.runs / "train" / "stage.json").read_text())
    assert record["warnings"] == ["the cat sleeps", "the dog barks"]
    assert not (workshop.runs / "train" / "warnings.txt").exists()
    assert json.loads((workshop.runs / "mix" / "stage.json").read_text())["warnings"] == []
    found = read_record(workshop.runs / "train")
    assert found is not None and found.warnings == ("the cat sleeps", "the dog barks")
    workshop.ran()
    workshop.run()
    assert workshop.ran() == []
