"""`emoji_xl`: the embedded model in Stable Diffusion XL's format draws what the embedded model draws."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import draft
from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.generate import generate_images
from draft.diffusion.settings import SamplerSettings
from draft.errors import DraftError
from draft.pipeline.load import load_pipeline
from draft.pipeline.run import run_pipeline
from draft_emoji import xl
from draft_emoji.recipe.evaluate import single_prompts
from draft_emoji.recipe.judge import load_judge, rank

PIPELINE = """
name: small
seed: 0
stages:
  train:
    kind: train
    model: emoji_xl
    prompts: [a cat]
    method: {kind: draft_k, k: 1}
    sampler: {num_inference_steps: 2, guidance_scale: 2.0}
    max_steps: 1
    batch_size: 1
    rewards: {jpeg: {quality: 50}}
  evaluate:
    kind: evaluate
    model: MODEL
    prompts: [a cat]
    sampler: {num_inference_steps: 2, guidance_scale: 2.0}
    images_per_prompt: 1
    adapters: {small: {from: "${out:train.adapter}"}}
    rewards: {jpeg: {quality: 50}}
"""

written_by_5 = pytest.mark.skipif(
    int(importlib.metadata.version("transformers").partition(".")[0]) < 5,
    reason="version 5 of transformers wrote the embedded model; of version 4, Draft can read it, diffusers cannot",
)


@pytest.fixture(scope="module")
def models() -> dict[str, TextToImage]:
    names = ("emoji", "emoji_xl")
    return {
        name: load_text_to_image(draft.model_path(name), device=torch.device("cpu"), dtype=torch.float32)
        for name in names
    }


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "small.yaml"
    file.write_text(PIPELINE.replace("MODEL", "emoji_xl"), encoding="utf-8")
    return file


def drawn(model: TextToImage, prompts: list[str], seeds: list[int], sampler: SamplerSettings) -> Tensor:
    return torch.cat(list(generate_images(model, prompts, seeds, sampler, batch_size=32)))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("negative", ["", "a dog"])
def test_it_draws_the_same_pictures(models: dict[str, TextToImage], guidance: float, negative: str) -> None:
    prompts = ["a cat", "a pizza next to an owl on a red background", "a photo of a ewe", ""]
    sampler = SamplerSettings(num_inference_steps=6, guidance_scale=guidance, negative_prompt=negative)
    small, large = (drawn(model, prompts, [1, 2, 3, 4], sampler) for model in models.values())
    assert models["emoji_xl"].family.name == "sdxl"
    torch.testing.assert_close(large, small, rtol=0.0, atol=1e-4)


@pytest.mark.slow
def test_the_judge_finds_as_much_in_its_pictures(models: dict[str, TextToImage]) -> None:
    prompts, seeds, wanted = (row[::3] for row in single_prompts(1))
    judge = load_judge(Path(draft.model_path("emoji/judge")))
    sampler = SamplerSettings(num_inference_steps=15, guidance_scale=3.0)
    found = {}
    for name, model in models.items():
        found[name] = rank(judge, drawn(model, prompts, seeds, sampler) * 2 - 1, wanted)[0]
    assert found["emoji_xl"] == pytest.approx(found["emoji"], abs=0.03)
    assert found["emoji_xl"] > 0.9


@written_by_5
def test_it_loads_in_diffusers_with_every_key() -> None:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    folder = Path(draft.model_path("emoji_xl"))
    _, report = UNet2DConditionModel.from_pretrained(folder / "unet", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a cat", num_inference_steps=1, output_type="np").images[0].shape == (64, 64, 3)


def test_a_perceptron_that_cannot_return_its_input_is_refused() -> None:
    config = {"num_hidden_layers": 1, "hidden_size": 4, "intermediate_size": 7, "hidden_act": "gelu"}
    with pytest.raises(ValueError, match="a perceptron of 7 gelu on 4 cannot return its input"):
        xl.text_towers({}, config)


def test_another_recipe_or_other_weights_have_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = xl.place()
    assert before == xl.place()
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(xl, "WEIGHTS", tmp_path)
    assert xl.place() != before


def test_checking_and_planning_neither_make_it_nor_import_torch(pipeline: Path, tmp_path: Path) -> None:
    for arguments in (["check", str(pipeline)], ["run", str(pipeline), "--dry-run"], ["models"]):
        script = f"import sys; sys.argv[1:] = {arguments!r}; from draft_cli.app import main; main()"
        code = f"import atexit, sys; atexit.register(lambda: print('torch:', 'torch' in sys.modules)); {script}"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "torch: False" in done.stdout
    assert not (tmp_path / "cache").exists()


def test_a_finished_stage_is_reused_whether_the_model_is_there_or_not(pipeline: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"runs_dir": tmp_path / "runs"}
    first = run_pipeline(pipeline, **options)
    assert [stage.action for stage in first.stages] == ["ran", "ran"]
    assert (first["evaluate"].outputs["report"]).is_file()
    record = json.loads((first.folder / "train" / "stage.json").read_text(encoding="utf-8"))
    assert record["identity"]["model"] == f"derived:{xl.place()}"
    for folder in (tmp_path / "cache" / "models").iterdir():
        folder.rename(tmp_path / f"gone-{folder.name}")
    assert [stage.action for stage in run_pipeline(pipeline, **options).stages] == ["reused", "reused"]


def test_an_adapter_of_another_family_is_refused(pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(PIPELINE.replace("MODEL", "emoji"), encoding="utf-8")
    assert load_pipeline(file).stages
    with pytest.raises(DraftError, match="another family of models, sdxl; this model is sd"):
        run_pipeline(file, runs_dir=tmp_path / "runs")


def test_its_weights_are_emojis_and_nothing_is_stored_twice_in_the_package() -> None:
    from safetensors.numpy import load_file

    small, large = (
        load_file(Path(draft.model_path(name)) / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("emoji", "emoji_xl")
    )
    changed = {name for name, tensor in small.items() if not np.array_equal(tensor, large[name])}
    assert changed == {name for name in small if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))}
    assert not any(large[name].any() for name in large.keys() - small.keys())
