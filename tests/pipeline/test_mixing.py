"""The stage kind `mix`: its keys reach the mixture, and what contradicts is found before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import read_adapter, write_adapter
from draft.adapters.files.header import read_header
from draft.errors import DraftError
from draft.files import sha256
from draft.pipeline.load import load_pipeline
from draft.pipeline.reproduce import reproduce
from draft.pipeline.run import run_pipeline

NAME = "unet.mid_block.attentions.0.proj_in"


def write_pipeline(folder: Path, **options: object) -> Path:
    for seed, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(seed)
        factors = Factors(torch.randn(4, 6, generator=generator), torch.randn(5, 4, generator=generator))
        write_adapter(Adapter({NAME: factors}), folder / f"{name}.safetensors")
    adapters = {"a": {"from": "a.safetensors", "weight": 0.7}, "b": {"from": "b.safetensors", "weight": 0.3}}
    stages = {"both": {"kind": "mix", "adapters": adapters, **options}}
    path = folder / "mix.yaml"
    path.write_text(json.dumps({"name": "mix", "seed": 7, "stages": stages}).replace("Infinity", ".inf"))
    return path


def test_the_options_of_a_mix_are_keys_of_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"method": "dare", "density": 0.5, "rank": 3, "dtype": "fp16", "blocks": {"mid_block": 0.5}}
    file = write_pipeline(tmp_path, **options, verify="full", format="diffusers")
    run_pipeline(file, runs_dir=tmp_path / "runs")
    adapter = read_adapter(tmp_path / "runs" / "mix" / "both" / "adapter.safetensors")
    recipe = json.loads(adapter.metadata["draft.recipe"])
    assert {name: recipe[name] for name in options} == options
    assert recipe["seed"] == 7, "the file's seed"
    assert adapter.modules[NAME].rank <= 3 and adapter.modules[NAME].down.dtype == torch.float16
    assert json.dumps(adapter.metadata).count(str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "energy": 0.5}, "stages.both: rank, energy and max_error exclude each other"),
        ({"method": "ties"}, "stages.both: the method ties needs a rank"),
        ({"density": 0.5}, "stages.both: density is for the methods ties, dare and magnitude"),
        ({"max_error": 1.5}, "max_error"),
        ({"blocks": {"up": float("inf")}}, "stages.both.blocks: a factor must be a finite number (got inf)"),
        ({"methd": "ties"}, "methd"),
    ],
)
def test_what_contradicts_in_a_mix_is_found_before_anything_runs(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DraftError) as error:
        load_pipeline(write_pipeline(tmp_path, **options))
    texts = [str(each) for each in getattr(error.value, "errors", [error.value])]
    assert any(message in text for text in texts), texts


def test_an_input_of_a_mix_has_a_strength_for_text_encoders_and_for_blocks_that_a_reproduction_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, up = "text_encoder.text_model.encoder.layers.0.mlp.fc1", "unet.up_blocks.1.attentions.0.proj_in"
    file = write_pipeline(tmp_path)
    one = Factors(torch.eye(4, 6), torch.ones(5, 4))
    write_adapter(Adapter({NAME: one, up: one, text: one}), tmp_path / "a.safetensors")
    a = {"from": "a.safetensors", "weight": 0.7, "text_encoder": 0.25, "blocks": {"up_blocks.*": -2.0}}
    file.write_text(json.dumps({"name": "mix", "stages": {"both": {"kind": "mix", "adapters": {"a": a}}}}))
    run_pipeline(file, runs_dir=tmp_path / "runs")
    path = tmp_path / "runs" / "mix" / "both" / "adapter.safetensors"
    for name, weight in ((NAME, 0.7), (up, -1.4), (text, 0.25)):
        factors = read_adapter(path).modules[name]
        torch.testing.assert_close(factors.up @ factors.down, weight * one.up @ one.down)
    digest = sha256(tmp_path / "a.safetensors")
    again = reproduce(read_header(path).metadata, name="again", input_files={digest: str(tmp_path / "a.safetensors")})
    assert again.stages["both"]["adapters"] == {"a": {**a, "from": str(tmp_path / "a.safetensors")}}
    (tmp_path / "again.yaml").write_text(again.text())
    run_pipeline(tmp_path / "again.yaml", runs_dir=tmp_path / "runs")
    made = tmp_path / "runs" / "again" / "both" / "adapter.safetensors"
    assert made.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text_encoder": "x"}, "stages.both.adapters.a.text_encoder"),
        ({"blocks": {"up": float("inf")}}, "stages.both.adapters.a.blocks: a factor must be a finite number (got inf)"),
        ({"block": {"up": 1}}, "block"),
    ],
)
def test_a_broken_strength_of_an_input_is_found_before_anything_runs(
    tmp_path: Path, entry: dict[str, object], message: str
) -> None:
    adapters = {"a": {"from": "a.safetensors", **entry}}
    with pytest.raises(DraftError) as error:
        load_pipeline(write_pipeline(tmp_path, adapters=adapters))
    texts = [str(each) for each in getattr(error.value, "errors", [error.value])]
    assert any(message in text for text in texts), texts
