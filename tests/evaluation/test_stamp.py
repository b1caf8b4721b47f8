"""The copies of the adapters that an evaluation leaves: the same tensors, and the figures in the header."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from draft.adapters.files.container import copy_tensors
from draft.adapters.files.formats import read_adapter, write_adapter
from draft.adapters.mixture import mix_files
from draft.diffusion.settings import SamplerSettings
from draft.errors import StageError
from draft.evaluation.evaluate import evaluate
from draft.evaluation.settings import EvaluateSettings
from draft.evaluation.stamp import STAMP
from draft.pipeline.cache import StageRecord, damage, record_outputs
from draft.pipeline.kinds import KINDS
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.types import Prompts

SAMPLER = SamplerSettings(num_inference_steps=1, guidance_scale=1.0)
SETTINGS = EvaluateSettings(sampler=SAMPLER, images_per_prompt=2, batch_size=4, bootstrap_samples=100)


class Bright(Reward):
    """How bright an image is, 0 (black) to 1 (white); NaN for the prompt `dark`."""

    name = "bright"

    def load(self, device: torch.device) -> Callable[[torch.Tensor, Sequence[str]], torch.Tensor]:
        hidden = float("nan")
        return lambda images, prompts: torch.tensor(
            [hidden if p == "dark" else i.mean().item() for i, p in zip(images, prompts, strict=True)]
        )


def stamped(adapters: dict[str, tuple[Path, float]], model: Path, folder: Path) -> Path:
    evaluate(
        SETTINGS,
        model=str(model),
        adapters=adapters,
        prompts=Prompts(["cat", "dog", "dark"]),
        terms=[Term("light", Bright())],
        seed=3,
        folder=folder,
        progress=Silent(),
    )
    return folder / "adapters"


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@pytest.fixture(scope="module")
def given(tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    """One adapter in every format; the peft folder's alpha is twice its rank and stands in its configuration alone."""
    root = tmp_path_factory.mktemp("given")
    adapter = read_adapter(tiny_adapter)
    write_adapter(adapter, root / "diffusers.safetensors", format="diffusers", metadata={"draft.config": "{}"})
    write_adapter(adapter, root / "peft", format="peft")
    config = json.loads((root / "peft" / "adapter_config.json").read_text())
    (root / "peft" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8}))
    return {
        "kohya": (tiny_adapter, 1.0),
        "diffusers": (root / "diffusers.safetensors", 0.5),
        "a.b/c": (root / "peft", -1.0),
    }


@pytest.fixture(scope="module")
def copies(tiny_model: Path, given: dict[str, tuple[Path, float]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stamped(given, tiny_model, tmp_path_factory.mktemp("stamped"))


def test_every_adapter_gets_a_copy_with_its_tensors_and_its_own_header(
    copies: Path, given: dict[str, tuple[Path, float]]
) -> None:
    assert sorted(file.stem for file in copies.iterdir()) == ["a.b_c", "diffusers", "kohya"]
    for label in ("kohya", "diffusers"):
        before, after = contents(given[label][0]), contents(copies / f"{label}.safetensors")
        assert list(before[0]) == list(after[0])
        for name, tensor in before[0].items():
            assert torch.equal(tensor, after[0][name]) and tensor.dtype == after[0][name].dtype
        assert {name: value for name, value in after[1].items() if name != STAMP} == before[1]


def test_a_copy_is_read_like_the_adapter_it_was_made_of(copies: Path, given: dict[str, tuple[Path, float]]) -> None:
    for label, name in (("kohya", "kohya"), ("diffusers", "diffusers"), ("a.b/c", "a.b_c")):
        before, after = read_adapter(given[label][0]), read_adapter(copies / f"{name}.safetensors")
        assert before.modules.keys() == after.modules.keys()
        for module, factors in before.modules.items():
            assert torch.equal(factors.down, after.modules[module].down)
            assert torch.equal(factors.up, after.modules[module].up)
            assert factors.scale == after.modules[module].scale == (2.0 if label == "a.b/c" else 1.0)


def test_the_stamp_says_what_was_found_and_how(copies: Path, tiny_model: Path) -> None:
    report = json.loads((copies.parent / "report.json").read_text())["arms"]
    for label, weight in (("kohya", 1.0), ("diffusers", 0.5), ("a.b/c", -1.0)):
        stamp: dict[str, Any] = json.loads(contents(copies / f"{label.replace('/', '_')}.safetensors")[1][STAMP])
        assert (stamp["model"], stamp["weight"]) == ("model", weight)
        assert (stamp["prompts"], stamp["images"], stamp["first_seed"]) == (3, 6, 3)
        assert stamp["settings"]["sampler.num_inference_steps"] == 1 and "device" not in stamp["settings"]
        light = stamp["rewards"]["light"]
        assert light["use"] == "bright"
        assert light["base"] == report["base"]["light"]["mean"]["mean"]
        assert light["tuned"] == report[label]["light"]["mean"]["mean"]
        gain = report[label]["light"]["gain"]
        assert light["gain"] == {key: gain[key] for key in ("mean", "low", "high", "count")}
        assert light["gain"]["count"] == 2 and light["gain"]["low"] <= light["gain"]["mean"] <= light["gain"]["high"]


def test_a_repeated_evaluation_writes_the_same_bytes_and_no_place(
    copies: Path, given: dict[str, tuple[Path, float]], tiny_model: Path, tmp_path: Path
) -> None:
    again = stamped(given, tiny_model, tmp_path)
    for file in copies.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
        text = json.dumps(contents(file)[1])
        assert str(tiny_model.parent) not in text and str(copies) not in text
        assert os.uname().nodename not in text.split('"')


def test_the_same_stamp_in_another_process_gives_the_same_bytes(copies: Path, tmp_path: Path) -> None:
    source = copies / "kohya.safetensors"
    script = (
        "import sys; from pathlib import Path; from draft.adapters.files.stamp import stamp_adapter;"
        "stamp_adapter(Path(sys.argv[1]), Path(sys.argv[2]), metadata={'b': '1', 'a': 'ü'})"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", script, str(source), str(tmp_path / name)], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() != source.read_bytes()
    assert contents(tmp_path / "one")[1]["a"] == "ü"


def test_a_stamped_copy_can_be_evaluated_and_stamped_again(copies: Path, tiny_model: Path, tmp_path: Path) -> None:
    file = stamped({"again": (copies / "kohya.safetensors", 2.0)}, tiny_model, tmp_path) / "again.safetensors"
    assert json.loads(contents(file)[1][STAMP])["weight"] == 2.0


def test_a_mix_does_not_inherit_the_figures_of_what_went_into_it(copies: Path, tmp_path: Path) -> None:
    mix_files([(copies / "kohya.safetensors", 0.5)], tmp_path / "mix.safetensors")
    assert STAMP not in contents(tmp_path / "mix.safetensors")[1]


def test_without_adapters_the_declared_folder_is_there_and_empty(tiny_model: Path, tmp_path: Path) -> None:
    assert list(stamped({}, tiny_model, tmp_path).iterdir()) == []
    assert all((tmp_path / path).exists() for path in KINDS["evaluate"].outputs.values())
    record = StageRecord("e", "f", {}, record_outputs(tmp_path, KINDS["evaluate"].outputs), {})
    assert record.outputs["adapters"] == () and damage(record, tmp_path) == ""


def test_a_touched_copy_is_noticed(copies: Path, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    copy = tmp_path / "adapters" / "kohya.safetensors"
    copy.write_bytes((copies / "kohya.safetensors").read_bytes())
    record = StageRecord("e", "f", {}, record_outputs(tmp_path, {"adapters": "adapters"}), {})
    copy_tensors(copy, copy, metadata={STAMP: "{}"})
    assert damage(record, tmp_path) == "output changed: adapters/kohya.safetensors"


def test_copying_keeps_any_dtype_and_refuses_what_is_no_safetensors_file(tmp_path: Path) -> None:
    save_file({"b": torch.arange(3), "a": torch.ones(1, dtype=torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    copy_tensors(tmp_path / "x.safetensors", tmp_path / "y.safetensors", metadata={"note": "new"})
    tensors, header = contents(tmp_path / "y.safetensors")
    assert torch.equal(tensors["b"], torch.arange(3)) and tensors["a"].dtype == torch.float8_e4m3fn
    assert header == {"note": "new"}
    (tmp_path / "bad.safetensors").write_bytes((8).to_bytes(8, "little") + b"{nonsens" + b"\0" * 8)
    with pytest.raises(StageError, match="not an intact safetensors file"):
        copy_tensors(tmp_path / "bad.safetensors", tmp_path / "z.safetensors", metadata={})
    assert not (tmp_path / "z.safetensors").exists()
