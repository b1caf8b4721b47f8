"""Results of the version before settings were marked: used again where they fit, else kept aside and named."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from draft.pipeline.cache import read_record
from draft.pipeline.run import run_pipeline
from draft.progress import Silent

DATA = Path(__file__).parent / "data" / "before"
STAGES = ["train", "more", "mix", "thin", "evaluate", "generate", "plain", "compare", "probe", "strip"]


class Listener(Silent):
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what that version read and wrote, with the reward that it used installed."""
    shutil.copytree(DATA, tmp_path / "before")
    monkeypatch.syspath_prepend(str(DATA / "site"))
    monkeypatch.delitem(sys.modules, "glow_plugin", raising=False)
    return tmp_path / "before"


def run(folder: Path, *overrides: str, name: str = "before", **options) -> list[str]:
    listener = Listener()
    run_pipeline(
        folder / f"{name}.yaml",
        overrides,
        runs_dir=folder / "results",
        progress=listener,
        **{"dry_run": True, **options},
    )
    return listener.lines


def reused(name: str) -> str:
    """What a plan says of a stage that is used again; its record is older than the entries of reward packages."""
    if name in ("mix", "thin", "plain"):
        return f"{name}: reused"
    labels = "glow, held" if name == "compare" else "glow"
    note = f"its record has no versions and files of reward packages: those of {labels} are not compared"
    return f"{name}: reused ({note})"


def write(job) -> dict[str, float]:
    for path in job.stage.outputs.values():
        (job.folder / path).write_text("new")
    return {}


def test_every_kind_of_stage_is_used_again_and_nothing_is_touched(folder: Path) -> None:
    assert run(folder) == [reused(name) for name in STAGES]
    before = {path: path.stat().st_mtime_ns for path in (folder / "results" / "before").rglob("*.*")}
    assert run(folder, dry_run=False) == [f"[{n}/10] {reused(name)}" for n, name in enumerate(STAGES, start=1)]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_sources_of_rewards_are_compared_as_that_version_compared_them(folder: Path, monkeypatch) -> None:
    site = folder.parent / "site"
    shutil.copytree(DATA / "site", site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "glow_plugin", raising=False)
    assert run(folder) == [reused(name) for name in STAGES]
    (site / "glow_plugin.py").write_text((site / "glow_plugin.py").read_text() + "\n")
    assert run(folder)[0] == "train: will run (reward source changed: glow)"


def test_inert_settings_may_change_but_not_where_time_is_measured(folder: Path) -> None:
    others = ["device=cpu", "micro_batch_size=0", "gradient_checkpointing=true", "compile=true", "preview.every=1"]
    assert run(folder, *(f"stages.train.{each}" for each in others)) == [reused(name) for name in STAGES]
    assert reused("evaluate") in run(folder, "stages.evaluate.batch_size=1", "stages.evaluate.device=cpu")
    assert run(folder, "stages.compare.device=cpu")[7] == (
        "compare: will run (config changed: device auto -> cpu, methods.lv.device auto -> cpu, "
        "methods.k.device auto -> cpu)"
    )


@pytest.mark.parametrize(
    ("override", "stage", "reason"),
    [
        ("stages.train.learning_rate=1e-3", "train", "config changed: learning_rate 0.0004 -> 0.001"),
        ("stages.more.base_adapters=[]", "more", "config changed: base_adapters [{"),
        ("stages.thin.seed=4", "thin", "seed changed: 3 -> 4"),
        ("stages.evaluate.shown=3", "evaluate", "config changed: shown 12 -> 3"),
        ("stages.evaluate.adapters.mix.weight=2", "evaluate", "config changed: adapters.mix.weight 1.0 -> 2.0"),
        ("stages.generate.method.iterations=4", "generate", "config changed: method.iterations 3 -> 4"),
        ("stages.compare.measure.prompts=[a hen]", "compare", "measure.prompts changed"),
        ("stages.compare.methods.k.method.k=1", "compare", "config changed: methods.k.method.k 2 -> 1"),
        ("stages.probe.adapter.weight=1", "probe", "config changed: adapter.weight 0.5 -> 1.0"),
        ("stages.strip.seeds=[5]", "strip", "config changed: seeds [0, 1, 2] -> [5]"),
    ],
)
def test_what_decides_a_result_is_compared_setting_by_setting(folder: Path, override: str, stage: str, reason) -> None:
    lines = run(folder, override)
    assert lines[STAGES.index(stage)].startswith(f"{stage}: will run ({reason}")
    assert lines[: STAGES.index(stage)] == [reused(name) for name in STAGES[: STAGES.index(stage)]]


def test_what_follows_from_a_stage_that_runs_again_runs_again(folder: Path) -> None:
    assert run(folder, "stages.mix.adapters.x.weight=0.1")[2:] == [
        "mix: will run (config changed: adapters.x.weight -0.2 -> 0.1)",
        "thin: will run (upstream changed: mix)",
        "evaluate: will run (upstream changed: mix)",
        "generate: will run (upstream changed: mix)",
        "plain: reused",
        reused("compare"),
        "probe: will run (upstream changed: mix)",
        "strip: will run (upstream changed: mix)",
    ]


def test_a_stage_that_runs_on_an_earlier_one_is_used_again_by_what_comes_later(folder: Path) -> None:
    shutil.rmtree(folder / "results" / "before" / "strip")
    run(folder, dry_run=False, executors={"strip": write})
    assert run(folder) == [*(reused(name) for name in STAGES[:-1]), "strip: reused"]
    strip, mix = (read_record(folder / "results" / "before" / name) for name in ("strip", "mix"))
    assert strip is not None and mix is not None
    assert strip.identity["upstream"] == {"mix": mix.fingerprint}
    assert "device" not in strip.identity["settings"] and "device" not in mix.identity["settings"]


def test_an_unfinished_run_of_that_version_is_kept_aside_and_named_before_and_when_it_happens(folder: Path) -> None:
    stopped = folder / "results" / "stopped"
    checkpoint = (stopped / "train.partial" / "checkpoints" / "step-00000002.ckpt").read_bytes()
    planned = "has not run; an interrupted run is kept in train.kept-1 (there is no record of what it is a run of)"
    assert run(folder, name="stopped") == [f"train: will run ({planned})"]
    assert (stopped / "train.partial").is_dir()
    lines = run(folder, name="stopped", dry_run=False, executors={"train": write})
    assert lines[:2] == [
        f"[1/1] train: runs ({planned})",
        f"train: the interrupted run is kept in {stopped / 'train.kept-1'}",
    ]
    assert (stopped / "train.kept-1" / "checkpoints" / "step-00000002.ckpt").read_bytes() == checkpoint
    assert json.loads((stopped / "train.kept-1" / "begun.json").read_text())["fingerprint"]
    assert run(folder, name="stopped") == ["train: reused"]
