"""The stage kind `mix`: its keys reach the mixture, and what contradicts is found before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import read_adapter, write_adapter
from draft.errors import DraftError
from draft.pipeline.load import load_pipeline
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
