"""Isolated rewards in pipeline files: checked, fingerprinted, rehearsed, trained for, and ended with their stage."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import ConfigErrors, DraftError
from draft.isolation import consent
from draft.isolation.consent import ConsentError
from draft.isolation.failures import IsolatedError
from draft.isolation.reward import IsolatedReward
from draft.isolation.settings import Isolation
from draft.methods.values import DraftLV
from draft.pipeline.allowed import load_allowed
from draft.pipeline.check import Pipeline
from draft.pipeline.describe import json_schema
from draft.pipeline.isolated import source_files
from draft.pipeline.kinds import KINDS
from draft.pipeline.kinds.kind import Job
from draft.pipeline.load import load_pipeline
from draft.pipeline.run import run_pipeline
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.training.settings import TrainSettings
from draft.training.train import train
from draft.types import Prompts
from draft_cli.app import app

PIPELINE = """\
name: mine
stages:
  train:
    kind: train
    model: model
    prompts: [a cat, a dog]
    max_steps: 2
    rewards:
      shine:
        use: glow
        amount: 1.5
        isolated: {python: env}
"""


def write(job: Job) -> Mapping[str, float]:
    """An executor that learns nothing."""
    for path in job.stage.outputs.values():
        (job.folder / path).write_text("weights")
    return {}


class Heard(Silent):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def folder(tmp_path: Path, room, tiny_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pipeline, what passes for a model, and the environment beside it."""
    tiny_module.save_outline(tmp_path / "model")
    (tmp_path / "env").symlink_to(room.folder)
    (tmp_path / "mine.yaml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAFT_CONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(consent, "_ALLOWED_NOW", set())
    return tmp_path


def load(*overrides: str, **options: Any) -> Pipeline:
    """The pipeline with its environments asked."""
    return load_allowed("mine.yaml", overrides, Silent(), trust=True, build=False, **options)


def run(folder: Path, *overrides: str, **options: Any) -> tuple[str, list[str]]:
    """What became of the stage, and what was said."""
    heard = Heard()
    options = {"runs_dir": folder / "runs", "executors": dict.fromkeys(KINDS, write), "trust": True, **options}
    result = run_pipeline(folder / "mine.yaml", overrides, progress=heard, **options)
    return result["train"].action, heard.lines


def test_the_environment_says_what_is_wrong_and_the_file_where(folder: Path) -> None:
    text = PIPELINE.replace("amount: 1.5", "amount: 5\n        tagret: x").replace("}", ", timeuot: 3}")
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(DraftError, match=r"mine.yaml:13: unknown key 'stages.train.rewards.shine.isolated.timeuot'"):
        load()
    with pytest.raises(ConfigErrors) as raised:
        load("stages.train.rewards.shine.isolated={python: env}")
    assert [str(error).splitlines()[0] for error in raised.value.errors] == [
        "mine.yaml:11: stages.train.rewards.shine.amount must be at most 2 (got 5)",
        "mine.yaml:12: reward 'glow' has no option 'tagret'",
    ]
    (folder / "mine.yaml").write_text(PIPELINE.replace("env}", "evn}"))
    with pytest.raises(
        DraftError, match=r"mine.yaml:12: .*isolated.python must be a Python that is there \(got '.*evn'"
    ):
        load()
    (folder / "mine.yaml").write_text(PIPELINE.replace("glow", "counted").replace("amount: 1.5", "device: cpu"))
    with pytest.raises(DraftError, match="reward 'counted' has no gradient"):
        load()
    (folder / "mine.yaml").write_text(PIPELINE.replace("amount: 1.5", 'target: "{thing}"'))
    with pytest.raises(DraftError, match="names the column 'thing', which the prompts do not have"):
        load()


def test_the_result_depends_on_what_the_reward_is_not_on_where_it_runs(folder: Path, room) -> None:
    assert run(folder)[0] == "ran"
    record = json.loads((folder / "runs/mine/train/stage.json").read_text())
    assert record["identity"]["rewards"]["shine"] == {
        "use": "glow", "weight": 1.0, "amount": 1.5, "target": "{prompt}", "model": "large/weights",
    }  # fmt: skip
    assert record["versions"]["mine-rewards (shine)"] == "4.2"
    assert record["versions"]["torch (shine)"] == importlib.metadata.version("torch")
    package = record["identity"]["packages"]["shine"]
    assert (package["name"], package["version"]) == ("mine-rewards", "4.2")
    again = load_pipeline(folder / "runs/mine/config.yaml")
    assert again.stages["train"].data["rewards"]["shine"]["isolated"] == {"python": str(folder / "env/bin/python")}

    copy = shutil.copytree(room.folder, folder / "copy", symlinks=True)
    elsewhere = "stages.train.rewards.shine.isolated={python: copy, timeout: 7}"
    assert run(folder, elsewhere)[0] == "reused"
    module = next(copy.glob("lib/*/site-packages/mine_rewards.py"))
    module.write_text(module.read_text() + "\n# edited\n")
    assert run(folder, elsewhere)[0] == "reused"
    (module.parent / "mine.pt").write_text("weights")
    assert run(folder, elsewhere)[0] == "reused", "nothing names the file"
    module.write_text(module.read_text() + "\nEDITED = 'mine.pt'\n")
    action, said = run(folder, elsewhere)
    assert action == "ran"
    assert "reward source changed: shine" in said[0]
    (module.parent / "mine.pt").write_text("other weights")
    assert "reward files changed: shine" in run(folder, elsewhere)[1][0]
    info = next(copy.glob("lib/*/site-packages/mine_rewards-*"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-rewards\nVersion: 4.3\n")
    assert "reward package changed: shine (mine-rewards 4.2 -> mine-rewards 4.3)" in run(folder, elsewhere)[1][0]


def test_editors_know_the_keys() -> None:
    _, _, jpeg = json_schema()["$defs"]["TrainStage"]["properties"]["rewards"]["properties"]["jpeg"]["anyOf"]
    isolated = jpeg["properties"]["isolated"]
    assert set(isolated["properties"]) == {"python", "requirements", "timeout", "load_timeout"}
    assert isolated["additionalProperties"] is False
    assert all(entry["description"] for entry in isolated["properties"].values())


def test_a_rehearsal_uses_the_stand_in_that_the_class_declares_there(folder: Path) -> None:
    pipeline = load(rehearse=True)
    (term,) = pipeline.terms
    assert isinstance(term.reward, IsolatedReward)
    assert term.reward.model_dump()["model"] == "emoji/clip"
    assert set(term.reward.isolated.models) == {"model"}
    assert "stages.train.rewards.shine.model" in {each.key for each in pipeline.replacements}


def test_a_reward_made_of_others_is_known_with_its_parts_and_not_rehearsed_without_a_choice(folder: Path) -> None:
    formula = "use: expression\n        formula: a * b\n        of: {a: {use: glow}, b: {use: counted}}"
    text = PIPELINE.replace("use: glow\n        amount: 1.5", formula)
    (folder / "mine.yaml").write_text(text.replace("kind: train", "kind: evaluate").replace("    max_steps: 2\n", ""))
    (term,) = load().terms
    assert not term.reward.differentiable
    assert {keys: file.name for keys, file in source_files(term.reward).items()} == {
        (): "expression.py", ("of", "a"): "mine_rewards.py", ("of", "b"): "mine_rewards.py",
    }  # fmt: skip
    with pytest.raises(DraftError, match="'expression' is made of others in an environment of its own") as raised:
        load(rehearse=True)
    assert "set stages.train.rewards.shine under `rehearsal:`" in raised.value.hint
    chosen = "stages.train.rewards.shine={use: jpeg}"
    assert load(chosen, rehearse=True).terms[0].reward.name == "jpeg"


@pytest.mark.slow
def test_an_environment_of_requirements_is_made_by_the_run_and_then_checked(
    folder: Path, room, cache: Path, wheel
) -> None:
    packages = room.module.parent
    entries = next(packages.glob("mine_rewards-*/entry_points.txt")).read_text()
    wheel(folder, "mine_rewards", {"mine_rewards.py": room.module.read_text()}, entries=entries)
    wheel(folder, "borrowed", {"borrowed.pth": (packages / "borrowed.pth").read_text()})
    wheels = "[./borrowed-1.0-py3-none-any.whl, ./mine_rewards-1.0-py3-none-any.whl]"
    text = PIPELINE.replace("python: env", f"requirements: {wheels}")
    (folder / "mine.yaml").write_text(text.replace("amount: 1.5", "amount: 15"))

    assert load().terms[0].reward.model_dump() == {"options": {"amount": 15}}
    _, said = run(folder, dry_run=True)
    assert "shine.isolated: its environment has not been made, so this reward's options are not checked" in said[0]
    with pytest.raises(DraftError, match="must be at most 2 \\(got 15\\)"):
        run(folder)
    assert not (folder / "runs").exists()
    (folder / "mine.yaml").write_text(text)
    assert run(folder)[0] == "ran"
    assert run(folder)[0] == "reused"


@pytest.mark.slow
def test_a_training_writes_the_same_adapter_byte_for_byte(room, tiny_model: Path, tmp_path: Path) -> None:
    settings = TrainSettings(
        method=DraftLV(copies=1),
        sampler=SamplerSettings(num_inference_steps=2, guidance_scale=2.0),
        lora=LoraSettings(rank=2),
        max_steps=2,
        batch_size=2,
        device="cpu",
    )
    original = room.original()
    pairs: dict[str, list[Reward]] = {
        "here": [original.Glow(), original.Spread()],
        "there": [room.reward("glow"), room.reward("spread")],
    }
    for name, rewards in pairs.items():
        terms = [Term("shine", rewards[0], 1.0), Term("apart", rewards[1], -0.5)]
        prompts, folder = Prompts(["a cat", "a dog", "two birds"]), tmp_path / name
        train(settings, model=str(tiny_model), prompts=prompts, terms=terms, seed=1, folder=folder, progress=Silent())
    here, there = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in pairs)
    assert here == there


def test_a_failure_ends_the_stage_with_the_rewards_name_and_the_way_to_go_on(
    folder: Path, tiny_model: Path, gone: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PIPELINE.replace("[a cat, a dog]", "[exit]").replace("use: glow", "use: faulty").replace("amount: 1.5", "")
    (folder / "mine.yaml").write_text(text)
    started: list[int] = []
    load = IsolatedReward.load
    monkeypatch.setattr(
        IsolatedReward,
        "load",
        lambda self, device: (load(self, device), started.append(self.isolated.workers[0].pid))[0],
    )
    small = ["sampler={num_inference_steps: 2, guidance_scale: 1}", "batch_size=1", f"model={tiny_model}"]
    with pytest.raises(IsolatedError) as raised:
        run(folder, *(f"stages.train.{each}" for each in small), executors={})
    assert str(raised.value) == (
        "stages.train.rewards.shine: the process of reward 'faulty' ended with exit code 7 while scoring\n"
        "  it wrote:\n    about to go"
    )
    assert raised.value.__notes__[0].startswith("resume: draft run")
    assert gone(started[0])


@pytest.fixture
def spy(folder: Path) -> Callable[[], bool]:
    """An environment of a stranger whose Python leaves a trace; whether it did."""
    folder.joinpath("env").unlink()
    program = folder / "env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\ntouch {folder / 'trace'}\nexit 1\n")
    program.chmod(0o755)
    return (folder / "trace").exists


def test_a_check_executes_nothing_that_the_file_names(folder: Path, spy: Callable[[], bool]) -> None:
    result = CliRunner().invoke(app, ["check", "mine.yaml"])
    assert result.exit_code == 0 and not spy()
    assert "options are not checked, which would run" in result.output and "--trust does" in result.output
    load_pipeline("mine.yaml", rehearse=True)
    run(folder, dry_run=True, trust=False)
    assert not spy()


def test_what_has_not_been_allowed_is_shown_in_full_and_not_run(folder: Path, spy: Callable[[], bool]) -> None:
    with pytest.raises(ConsentError) as raised:
        run(folder, trust=False)
    program = folder / "env/bin/python"
    assert f"stages.train.rewards.shine.isolated:\n    runs {program}" in str(raised.value)
    assert "add --trust" in raised.value.hint and not spy() and not (folder / "runs").exists()
    with pytest.raises(DraftError, match="ended with exit code 1"):
        run(folder, trust=True)
    assert spy()


def test_a_consent_is_remembered_for_one_interpreter_as_it_is(folder: Path, monkeypatch) -> None:
    action, said = run(folder)
    assert action == "ran" and said[0].startswith("allowed from now on:\n  stages.train.rewards.shine.isolated:")
    monkeypatch.setattr(consent, "_ALLOWED_NOW", set())  # a later process
    assert run(folder, trust=False) == ("reused", ["[1/1] train: reused"])
    other = shutil.copytree(folder / "env", folder / "other", symlinks=False)
    with pytest.raises(ConsentError):
        run(folder, "stages.train.rewards.shine.isolated.python=other", trust=False)
    folder.joinpath("env").unlink()
    other.rename(folder / "env")
    (folder / "env/bin/python").write_bytes(b"#!/bin/sh\n")
    with pytest.raises(ConsentError):
        run(folder, trust=False)


def test_requirements_are_allowed_line_by_line_with_the_content_of_files(folder: Path, monkeypatch) -> None:
    long = f"package @ https://host/{'x' * 700}/end.whl"
    (folder / "wanted.txt").write_text(f"# comment\n{long}\nlast==1\n")
    monkeypatch.setattr("draft.pipeline.isolated.build_environment", lambda *args, **options: pytest.fail("built"))
    swap = "stages.train.rewards.shine.isolated={requirements: wanted.txt}"
    with pytest.raises(ConsentError) as raised:
        run(folder, swap, trust=False)
    shown = str(raised.value).replace("\n    ", "")
    assert long in shown and "last==1" in shown and "installs with pip" in shown
    wanted = Isolation(requirements=str(folder / "wanted.txt"))
    consent.allow({"r": wanted}, trust=True, say=lambda text: None)
    assert consent.all_allowed({"r": wanted})
    (folder / "wanted.txt").write_text("other\n")
    monkeypatch.setattr(consent, "_ALLOWED_NOW", set())
    assert not consent.all_allowed({"r": wanted})
