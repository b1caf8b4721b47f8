"""Two methods that Draft does not have, each in one file, go everywhere that its own go, by joining one list."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from draft.methods.values import METHODS
from draft_cli.app import main

FILE = """\
name: foreign
stages:
  train:
    kind: train
    model: model
    prompts: [a cat, a dog, two birds]
    method: {kind: KIND, reach: 3}
    sampler: {num_inference_steps: 3, guidance_scale: 1}
    lora: {rank: 2}
    batch_size: 1
    learning_rate: 1e-2
    max_steps: 5
    checkpoint: {every: 2}
    rewards: {jpeg: {quality: 50}}
"""


@pytest.fixture(params=["Alternate", "Evolution"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A method's value, in the list of methods; its module is importable by name, as an installed package's is."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("foreign")))
    value = getattr(importlib.import_module(f"foreign_{request.param.lower()}"), request.param)
    METHODS.append(value)
    yield value
    METHODS.remove(value)


@pytest.fixture
def file(method: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.yaml").write_text(FILE.replace("KIND", method.kind))
    return tmp_path / "foreign.yaml"


@pytest.fixture
def draft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Call `draft` with words in this process; returns exit code and everything printed."""

    def draft(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["draft", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), "".join(capsys.readouterr())

    return draft


def _adapter(folder: Path) -> bytes:
    return (folder / "train" / "adapter.safetensors").read_bytes()


def test_it_is_checked_with_its_options_its_traits_and_its_own_problems(draft, file: Path, method: Any) -> None:
    assert draft("check", "foreign.yaml")[0] == 0
    code, text = draft("check", "foreign.yaml", "stages.train.method.rech=2", "stages.train.method.kind=no")
    assert code == 2 and "unknown method 'no'\n  hint: the kinds are draft, draft_k, " in text
    assert f", dpg, {method.kind}\n" in text
    code, text = draft("check", "foreign.yaml", "stages.train.method.rech=2")
    assert code == 2 and "unknown key 'stages.train.method.rech'\n  hint: did you mean 'reach'?" in text
    code, text = draft("check", "foreign.yaml", "stages.train.method.reach=0")
    assert code == 2 and "stages.train.method.reach must be at least 1 (got 0)" in text
    code, text = draft("check", "foreign.yaml", "stages.train.method.reach=4")
    assert code == 2 and "stages.train.method.reach must be at most sampler.num_inference_steps" in text
    code, text = draft("check", "foreign.yaml", "stages.train.rollout_reuse=2")
    assert code == 2 and f"stages.train.rollout_reuse must be 1 for {method.kind} (got 2)" in text
    schema = json.loads(draft("schema")[1])
    assert "reach" in schema["$defs"][type(method()).__name__]["properties"]


def test_it_trains_resumes_and_is_reproduced_byte_for_byte(
    draft, file: Path, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = draft("run", "foreign.yaml")
    assert code == 0, text
    whole = _adapter(Path("runs/foreign"))
    rows = [json.loads(line) for line in Path("runs/foreign/train/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and all(row["grad_norm"] > 0 for row in rows)
    assert draft("run", "foreign.yaml")[1].count("reused") == 1

    from draft.training import train

    append = train.append_metrics

    def killed(path: Path, row: Any) -> None:
        append(path, row)
        if row["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "append_metrics", killed)
        code, text = draft("run", "foreign.yaml", "--runs-dir", "other")
    assert code == 130 and "resume: draft run foreign.yaml" in text
    code, text = draft("run", "foreign.yaml", "--runs-dir", "other")
    assert code == 0 and "going on after update 2" in text
    assert _adapter(Path("other/foreign")) == whole

    code, text = draft("reproduce", "runs/foreign/train/adapter.safetensors", "--model", "model", "-o", "again.yaml")
    assert code == 0, text
    assert yaml.safe_load(Path("again.yaml").read_text())["stages"]["train"]["method"] == {
        "kind": method.kind,
        **{key: value for key, value in vars(method(reach=3)).items() if key != "kind"},
    }
    code, text = draft("run", "again.yaml", "--runs-dir", "again")
    assert code == 0, text
    (again,) = Path("again").iterdir()
    assert _adapter(again) == whole


def test_it_is_rehearsed_with_no_more_steps_than_a_rehearsal_samples(draft, file: Path, method: Any) -> None:
    file.write_text(file.read_text().replace("reach: 3", "reach: 12").replace("steps: 3", "steps: 12"))
    code, text = draft("run", "foreign.yaml", "--rehearse", "stages.train.max_steps=2")
    assert code == 0, text
    config = yaml.safe_load(Path("runs/foreign-rehearsal/config.yaml").read_text())["stages"]["train"]
    assert config["sampler"]["num_inference_steps"] == config["method"]["reach"] == 10 and config["model"] == "emoji"
    assert Path("runs/foreign-rehearsal/train/adapter.safetensors").is_file()
