"""`init_adapter` and `base_adapters` in a file: references, paths, mistakes, fingerprints, rehearsals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draft.errors import ConfigErrors, DraftError
from draft.pipeline.identity import identity, settled
from draft.pipeline.kinds.kind import CheckedStage
from draft.pipeline.load import load_pipeline

FILE = """\
name: demo
stages:
  one:
    kind: train
    model: model
    prompts: [a cat]
    rewards: {jpeg: {quality: 50}}
  two:
    kind: train
    model: model
    prompts: [a cat]
    init_adapter: "${out:one.adapter}"
    base_adapters:
      - {file: style.safetensors, weight: 0.7}
      - {file: "${out:one.adapter}"}
    rewards: {jpeg: {quality: 50}}
"""


def _write(path: Path, module: str) -> None:
    names = [f"{module}.lora_{side}.weight" for side in ("down", "up")]
    header = {
        name: {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * len(names)))


@pytest.fixture
def folder(workshop, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workshop.folder)
    workshop.file.write_text(FILE)
    _write(workshop.folder / "style.safetensors", "lora_unet_mid_block_attentions_0_proj_in")
    _write(workshop.folder / "text.safetensors", "lora_te_text_model_encoder_layers_0_mlp_fc1")
    (workshop.folder / "old.pt").write_bytes(b"x")
    (workshop.folder / "broken.safetensors").write_bytes(b"not one")
    return workshop.folder


def _two(folder: Path, *overrides: str) -> CheckedStage:
    return load_pipeline(folder / "demo.yaml", overrides).stages["two"]


def test_references_and_files_are_found_and_the_training_waits_for_its_references(folder: Path) -> None:
    stage = _two(folder)
    assert {file.keys: file.source for file in stage.files} == {
        ("init_adapter",): "${out:one.adapter}",
        ("base_adapters", 0, "from"): str(folder / "style.safetensors"),
        ("base_adapters", 1, "from"): "${out:one.adapter}",
    }
    assert stage.upstream == ("one",)
    assert stage.data["base_adapters"][0]["from"] == str(folder / "style.safetensors")


def test_what_a_stage_is_built_on_is_handed_to_the_training(folder: Path, workshop, monkeypatch) -> None:
    from draft.training import train as module

    given = []
    monkeypatch.setattr(module, "train", lambda settings, **more: given.append(more["adapters"]) or {})
    from draft.pipeline.kinds.train import run

    def learn(job):
        (job.folder / "adapter.safetensors").write_bytes((folder / "style.safetensors").read_bytes())
        (job.folder / "metrics.jsonl").write_text("")
        return run(job)

    workshop.run(executors={"train": learn})
    first, second = given
    assert first.init is None and first.base == ()
    made = folder / "runs" / "demo" / "one" / "adapter.safetensors"
    assert second.init == made
    assert second.base == ((folder / "style.safetensors", 0.7), (made, 1.0))
    assert workshop.plan() == ["one: reused", "two: reused"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("init_adapter=nowhere.safetensors", "no such file (got "),
        ("init_adapter=old.pt", "an adapter must be a .safetensors file (got "),
        ("init_adapter=broken.safetensors", "stages.two.init_adapter: not a safetensors file (got "),
        ("init_adapter=text.safetensors", "stages.two.init_adapter changes text encoders alone"),
        ("init_adapter=${out:one.metrics}", "stages.two.init_adapter must be an output 'adapter'"),
        ("init_adapter=${out:two.adapter}", "stage 'two' refers to itself"),
        ("base_adapters.0.file=text.safetensors", "stages.two.base_adapters.0.from changes text encoders alone"),
        ("base_adapters.0.file=${out:one.adapter}", "base_adapters.1.from is the adapter of base_adapters.0"),
        ("base_adapters.0.weight=.nan", "stages.two.base_adapters.0.weight must be a finite number"),
        ("base_adapters.0.scale=1", "unknown key 'stages.two.base_adapters.0.scale'"),
        ("base_adapters={a: {file: style.safetensors}}", "stages.two.base_adapters must be a list"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_runs(folder: Path, override: str, message: str) -> None:
    with pytest.raises(DraftError) as caught:
        _two(folder, f"stages.two.{override}")
    found = caught.value.errors if isinstance(caught.value, ConfigErrors) else [caught.value]
    assert len(found) == 1, found
    assert message in found[0].what and f"stages.two.{override.partition('=')[0]}"[:20] in str(found[0])


def test_the_fingerprint_sees_contents_weights_and_order_but_no_path(folder: Path) -> None:
    def settings(*overrides: str) -> dict:
        return identity(_two(folder, *overrides), {"one": "x"})["settings"]

    (folder / "same.safetensors").write_bytes((folder / "style.safetensors").read_bytes())
    _write(folder / "other.safetensors", "lora_unet_mid_block_attentions_0_proj_out")
    at = "stages.two.base_adapters.0"
    assert settings() == settings(f"{at}.file=same.safetensors")
    assert settings() != settings(f"{at}.file=other.safetensors")
    assert settings() != settings(f"{at}.weight=0.5")
    assert str(folder) not in json.dumps(settings())
    stage = load_pipeline(folder / "demo.yaml").stages["one"]
    now = identity(stage, {})
    before = {key: value for key, value in now["settings"].items() if key not in ("init_adapter", "base_adapters")}
    assert before != now["settings"]
    assert settled({**now, "settings": before}, stage) == now, "trainings of before there were such keys are reused"


def test_a_rehearsal_refuses_files_of_the_full_size_model_by_name(folder: Path) -> None:
    with pytest.raises(DraftError, match=r"stages\.two\.base_adapters\.0\.from was trained on another model"):
        load_pipeline(folder / "demo.yaml", rehearse=True)
    pipeline = load_pipeline(folder / "demo.yaml", ["stages.two.base_adapters=[]"], rehearse=True)
    assert [(file.keys, file.source) for file in pipeline.stages["two"].files] == [
        (("init_adapter",), "${out:one.adapter}")
    ]
