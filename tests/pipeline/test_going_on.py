"""Through the whole pipeline: a killed or finished training goes on, further or as a branch, and nothing is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from draft.adapters.files.header import read_header
from draft.errors import ConfigError, DivergedError, StageError
from draft.pipeline.reproduce import reproduce
from draft.pipeline.run import RunResult, run_pipeline
from draft.progress import Silent

PIPELINE = """
name: demo
stages:
  train:
    kind: train
    model: {model}
    prompts: [a cat, a dog, two birds]
    method: {{kind: draft_k, k: 1}}
    sampler: {{num_inference_steps: 2, guidance_scale: 1.0}}
    lora: {{rank: 2}}
    learning_rate: 0.01
    max_steps: 6
    batch_size: 2
    micro_batch_size: 0
    device: cpu
    checkpoint: {{every: 2, keep: 9}}
    rewards: {{symmetry: {{}}}}
  mix:
    kind: mix
    adapters: {{trained: {{from: "${{out:train.adapter}}"}}}}
"""


class Listener(Silent):
    """A reporter that remembers what it heard, and interrupts after some updates."""

    def __init__(self, after: int | None) -> None:
        self.left, self.heard = 10**6 if after is None else after, []

    def say(self, text: str) -> None:
        self.heard.append(text)

    def advance(self, count: int, figures: Any = None) -> None:
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt


class Runs:
    """A pipeline with its results and what the last run said."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.file, self.folder, self.heard = folder / "demo.yaml", folder / "runs", [""]
        self.file.write_text(PIPELINE.format(model=model))

    def __call__(
        self, *overrides: str, stop: int | None = None, into: str = "runs", **options: Any
    ) -> RunResult | None:
        listener = Listener(stop)
        self.heard = listener.heard
        where = self.folder.with_name(into)
        if stop is None:
            return run_pipeline(self.file, overrides, runs_dir=where, progress=listener, **options)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(self.file, overrides, runs_dir=where, progress=listener, **options)
        return None

    def stage(self, name: str = "train", into: str = "runs") -> Path:
        return self.folder.with_name(into) / "demo" / name

    def adapter(self, into: str = "runs") -> bytes:
        return (self.stage(into=into) / "adapter.safetensors").read_bytes()

    def names(self) -> set[str]:
        return {path.name for path in (self.folder / "demo").iterdir() if path.is_dir()}


@pytest.fixture
def runs(tmp_path: Path, tiny_model: Path) -> Runs:
    return Runs(tmp_path, tiny_model)


INERT = [
    "device=auto", "compile=true", "gradient_checkpointing=true", "micro_batch_size=1", "preview={every: 3, count: 1}",
    "checkpoint.every=3", "checkpoint.keep=1", "text_encoder=resident",
]  # fmt: skip


@pytest.mark.parametrize("change", [change for change in INERT if not change.startswith("compile")])
def test_a_killed_training_goes_on_with_any_inert_setting_changed(runs: Runs, change: str) -> None:
    runs(stop=4)
    runs(f"stages.train.{change}", dry_run=True)
    assert any(text.startswith("train: will continue (was interrupted") for text in runs.heard)
    runs(f"stages.train.{change}")
    assert "going on after update 4" in runs.heard
    assert runs.names() == {"train", "mix"}


@pytest.mark.slow
def test_a_killed_training_goes_on_compiled(runs: Runs) -> None:
    runs(stop=4)
    runs("stages.train.compile=true")
    assert "going on after update 4" in runs.heard


@pytest.mark.parametrize("stop", [4, None], ids=["unfinished", "finished"])
def test_a_larger_max_steps_goes_on_to_the_same_bytes_as_if_asked_for_at_first(runs: Runs, stop: int | None) -> None:
    longer = "stages.train.max_steps=9"
    runs(longer, into="at_once")
    runs(stop=stop)
    before = None if stop else runs.adapter()
    runs(longer, dry_run=True)
    expected = "goes on with" if stop else "goes on from the finished one:"
    assert any(f"{expected} max_steps 6 -> 9" in text for text in runs.heard if text.startswith("train: will continue"))
    runs(longer, stop=1)  # killed again on the way
    assert before is None or runs.adapter() == before, "a finished adapter stays until the longer one is complete"
    result = runs(longer)
    assert result is not None and [stage.action for stage in result.stages] == ["ran", "ran"]
    assert runs.adapter() == runs.adapter("at_once")
    assert runs.names() == {"train", "mix"}


@pytest.mark.parametrize("file", ["adapter.safetensors", "metrics.jsonl"])
def test_a_damaged_result_is_written_again_from_the_last_state_without_an_update(runs: Runs, file: str) -> None:
    runs()
    whole = [(runs.stage() / name).read_bytes() for name in ("adapter.safetensors", "metrics.jsonl")]
    path = runs.stage() / file
    state, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    runs(verify=True, dry_run=True)
    assert f"train: will continue (output changed: {file}; written again from its last state)" in runs.heard
    runs(verify=True)
    assert "going on after update 6" in runs.heard
    assert [(runs.stage() / name).read_bytes() for name in ("adapter.safetensors", "metrics.jsonl")] == whole
    assert runs.names() == {"train", "mix"}
    runs(verify=True)
    assert runs.heard[0] == "[1/2] train: reused (its files were read and are intact)"


def test_a_lost_preview_is_reported_and_nothing_is_trained_for_it(runs: Runs) -> None:
    previews = "stages.train.preview={every: 3, count: 1}"
    runs(previews)
    (runs.stage() / "previews" / "step-000003.png").unlink()
    runs(previews)
    assert runs.heard[0] == "[1/2] train: reused (output missing: previews/step-000003.png)"


def test_a_smaller_max_steps_trains_anew_and_keeps_the_finished_one_and_its_state(runs: Runs) -> None:
    runs()
    adapter = runs.adapter()
    runs("stages.train.max_steps=3")
    kept = runs.stage("train.kept-1")
    assert (kept / "adapter.safetensors").read_bytes() == adapter
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["step-00000006.ckpt"]
    runs("stages.train.max_steps=3", into="at_once")
    assert runs.adapter() == runs.adapter("at_once")


def test_what_does_not_fit_is_kept_aside_and_a_dry_run_says_so_before(runs: Runs) -> None:
    runs(stop=4)
    change = "stages.train.learning_rate=0.02"
    runs(change, dry_run=True)
    assert any("an interrupted run is kept in train.kept-1" in text for text in runs.heard)
    runs(change)
    kept = runs.stage("train.kept-1") / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["step-00000002.ckpt", "step-00000004.ckpt"]
    assert not any("going on" in text for text in runs.heard)


def continued(runs: Runs) -> list[dict[str, Any]]:
    events = json.loads(read_header(runs.stage() / "adapter.safetensors").metadata["draft.continued"])
    assert isinstance(events, list)
    return events


def test_a_killed_training_branches_when_asked_and_the_branch_is_recorded_and_used_again(runs: Runs) -> None:
    runs(stop=5)
    slower = "stages.train.learning_rate=0.005"
    runs(slower, branch_from="2", dry_run=True)
    assert any("branches from update 2; what is there is kept in train.kept-1" in text for text in runs.heard)
    runs(slower, branch_from="2", stop=3)
    assert "branches after update 2: learning_rate 0.01 -> 0.005" in runs.heard
    runs(slower, branch_from="2")
    assert "going on after update 4" in runs.heard
    assert [(event["update"], event["changed"]) for event in continued(runs)] == [
        (2, {"learning_rate": ["0.01", "0.005"]})
    ]
    assert runs.names() == {"train", "mix", "train.kept-1"}
    rows = [json.loads(line) for line in (runs.stage() / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [0.01, 0.01, 0.005, 0.005, 0.005, 0.005]
    for options in ({}, {"branch_from": "train:2"}):
        result = runs(slower, **options)
        assert result is not None and [stage.action for stage in result.stages] == ["reused", "reused"]


def test_a_finished_training_branches_into_a_longer_one_with_other_settings(runs: Runs) -> None:
    runs()
    adapter = runs.adapter()
    runs("stages.train.max_steps=8", "stages.train.rewards.symmetry.weight=2", branch_from="6")
    assert continued(runs)[0]["update"] == 6
    assert (runs.stage("train.kept-1") / "adapter.safetensors").read_bytes() == adapter


def test_a_branched_adapter_is_not_made_again_from_its_header(runs: Runs) -> None:
    runs(stop=5)
    runs("stages.train.learning_rate=0.005", branch_from="2")
    metadata = read_header(runs.stage() / "adapter.safetensors").metadata
    with pytest.raises(StageError, match="branched from a checkpoint after update 2"):
        reproduce(metadata, name="again")


def test_an_interrupted_branch_does_not_go_on_by_itself(runs: Runs) -> None:
    runs(stop=5)
    slower = "stages.train.learning_rate=0.005"
    runs(slower, branch_from="2", stop=3)
    runs(slower)
    assert not any("going on" in text or "branches after" in text for text in runs.heard)
    assert runs.names() == {"train", "mix", "train.kept-1", "train.kept-2"}


@pytest.mark.parametrize(
    ("text", "overrides", "error", "message"),
    [
        ("two", (), ConfigError, r"must be an update, or STAGE:UPDATE \(got 'two'\)"),
        ("mix:2", (), ConfigError, "stage 'mix' cannot branch"),
        ("trian:2", (), ConfigError, "stage 'trian' cannot branch"),
        ("2", (), ConfigError, "no stage that can branch would run"),
        ("train:6", (), ConfigError, "is finished with these settings, so there is nothing to branch for"),
        ("3", ("stages.train.learning_rate=0.005",), StageError, "there is no checkpoint after update 3"),
        (
            "6",
            ("stages.train.learning_rate=0.005",),
            ConfigError,
            r"stages.train.max_steps must be more than the 6 updates that the branch begins after \(got 6\)",
        ),
    ],
)
def test_a_branch_that_cannot_be_is_refused_before_anything_is_written(
    runs: Runs, text: str, overrides: tuple[str, ...], error: type[Exception], message: str
) -> None:
    runs()
    before = {path: path.stat().st_mtime_ns for path in runs.folder.rglob("*")}
    with pytest.raises(error, match=message):
        runs(*overrides, branch_from=text)
    assert {path: path.stat().st_mtime_ns for path in runs.folder.rglob("*")} == before


@pytest.mark.parametrize("by_reward", [False, True])
def test_a_training_that_diverges_names_the_command_that_branches(runs: Runs, by_reward: bool) -> None:
    def diverge(job: Any) -> Any:
        error = DivergedError("the gradient is not finite")
        error.checkpoint, error.by_reward = 4, by_reward
        raise error

    with pytest.raises(DivergedError) as caught:
        runs("stages.train.batch_size=3", executors={"train": diverge})
    # Smaller steps do not mend a reward.
    begin, slower = ("branch, once the reward is mended", "") if by_reward else ("branch", "learning_rate=0.005 ")
    assert caught.value.__notes__ == [
        f"{begin}: draft run {runs.file} stages.train.batch_size=3 {'stages.train.' if slower else ''}{slower}"
        f"--runs-dir {runs.folder} --branch-from train:4"
    ]
