"""A small pipeline on a folder that passes for a model, and executors that write without learning anything."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from draft.pipeline.kinds import KINDS
from draft.pipeline.kinds.kind import Executor, Job
from draft.pipeline.run import RunResult, run_pipeline
from draft.progress import Silent

PIPELINE = """\
name: demo
seed: 3
vars:
  model: model
  rate: 1e-4
stages:
  train:
    kind: train
    model: ${vars.model}
    prompts: [a cat, a dog]
    learning_rate: ${vars.rate}
    rewards:
      jpeg: {quality: 50}
  mix:
    kind: mix
    adapters:
      a: {from: "${out:train.adapter}", weight: 0.7}
  evaluate:
    kind: evaluate
    model: ${vars.model}
    prompts: {file: held.txt}
    adapters:
      mix: {from: "${out:mix.adapter}"}
    rewards:
      kb: {use: jpeg_size, quality: 50}
    curves:
      train: ${out:train.metrics}
"""
FULL = Path(__file__).with_name("full.yaml")


class Listener(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class Workshop:
    """A folder with a pipeline, and a record of what was run in it."""

    folder: Path
    jobs: list[Job] = field(default_factory=list)
    failing: dict[str, BaseException] = field(default_factory=dict)
    content: str = "weights"

    @property
    def file(self) -> Path:
        return self.folder / "demo.yaml"

    @property
    def runs(self) -> Path:
        return self.folder / "runs" / "demo"

    def ran(self) -> list[str]:
        """The stages run since the last call."""
        names = [job.stage.name for job in self.jobs]
        self.jobs.clear()
        return names

    def execute(self, job: Job) -> Mapping[str, float]:
        self.jobs.append(job)
        if job.stage.name in self.failing:
            (job.folder / "half").write_text("half")
            raise self.failing[job.stage.name]
        for name, path in job.stage.outputs.items():
            target = job.folder / path
            if name == "images":
                target.mkdir(exist_ok=True)
                target = target / "0.png"
            target.write_text(f"{self.content} {json.dumps(sorted(map(str, job.files)))}")
        return {"figure": 1.5}

    @property
    def executors(self) -> dict[str, Executor]:
        return dict.fromkeys(KINDS, self.execute)

    def run(self, *overrides: str, **options) -> RunResult:
        options = {"runs_dir": self.folder / "runs", "executors": self.executors, **options}
        return run_pipeline(options.pop("file", self.file), overrides, **options)

    def said(self, *overrides: str, **options) -> list[str]:
        """What a run says, line by line."""
        listener = Listener()
        self.run(*overrides, progress=listener, **options)
        return listener.lines

    def plan(self, *overrides: str, **options) -> list[str]:
        """What a dry run says it would do, stage by stage."""
        return self.said(*overrides, dry_run=True, **options)


@pytest.fixture
def workshop(tmp_path: Path, tiny_module: ModuleType) -> Workshop:
    tiny_module.save_outline(tmp_path / "model")
    (tmp_path / "held.txt").write_text("# held out\n\na fox\na cow\n")
    (tmp_path / "demo.yaml").write_text(PIPELINE)
    return Workshop(tmp_path)


@pytest.fixture
def full(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """The full-size pipeline in its folder, and that folder the current one."""
    monkeypatch.chdir(workshop.folder)
    monkeypatch.setattr("draft.pipeline.kinds.train.find_spec", lambda module: module == "tensorboard")
    shutil.copy(FULL, workshop.file)
    return workshop


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Install a reward distribution for one test; returns the module's file."""

    def install(body: str = "return lambda images, prompts: images.mean(dim=(1, 2, 3))") -> Path:
        site = tmp_path / "site"
        info = site / "glow_plugin-1.2.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: glow-plugin\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("[draft]\nglow = glow_plugin\n")
        module = site / "glow_plugin.py"
        module.write_text(
            "import draft\n\n\nclass Glow(draft.Reward):\n"
            '    """How much an image glows."""\n\n    name = "glow"\n'
            "    amount: float = draft.Field(1.0, ge=0, le=2)\n"
            '    target: str = "{thing}"\n\n'
            f"    def load(self, device):\n        {body}\n\n\n"
            "@draft.hookimpl\ndef draft_rewards():\n    return [Glow]\n"
        )
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, "glow_plugin", raising=False)
        return module

    return install
