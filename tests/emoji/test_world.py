"""The shipped models: whole, small enough, loaded by their libraries' own code, and free of the known silent traps."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import draft
from draft.rewards.extensions import named_models
from draft.tokenizer import tokenizer_class
from draft_emoji import WEIGHTS
from draft_emoji.recipe.preference import degrade
from draft_emoji.scenes import Composer
from draft_emoji.vocabulary import concepts, entries

MEGABYTE = 1_000_000
PARTS = ("clip", "judge", "owlvit", "resnet", "convnext", "preference", "aesthetic")

written_by_5 = pytest.mark.skipif(
    int(importlib.metadata.version("transformers").partition(".")[0]) < 5,
    reason="version 5 of transformers wrote the embedded model; of version 4, Draft can read it, diffusers cannot",
)


def test_every_shipped_file_is_the_one_in_the_manifest_and_small_enough() -> None:
    manifest = json.loads((WEIGHTS / "manifest.json").read_text())
    files = {
        str(path.relative_to(WEIGHTS)): path.read_bytes()
        for path in WEIGHTS.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "figures.json")
    }
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == {
        name: row["sha256"] for name, row in manifest["files"].items()
    }
    assert max(map(len, files.values())) <= 15 * MEGABYTE
    assert sum(map(len, files.values())) <= 40 * MEGABYTE
    assert (WEIGHTS.parent / "sprites.webp").stat().st_size <= 3 * MEGABYTE


def test_the_named_models_are_folders_with_a_configuration() -> None:
    models = named_models()
    embedded = ["emoji", *(f"emoji/{part}" for part in PARTS)]
    assert set(embedded) <= set(models)
    for name in embedded:
        assert list(models[name].path.glob("*.json"))
        assert draft.model_path(name) == str(models[name].path)


@written_by_5
def test_the_pipeline_loads_in_diffusers_with_every_key() -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    folder = WEIGHTS / "text_to_image"
    _, report = UNet2DConditionModel.from_pretrained(folder / "unet", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat", num_inference_steps=2, guidance_scale=3.0, output_type="np").images[0]
    assert image.shape == (64, 64, 3)


def test_the_tokenizer_ends_with_the_highest_id_and_knows_every_word_whole() -> None:
    from transformers import CLIPTextConfig

    folder = WEIGHTS / "text_to_image"
    tokenizer = tokenizer_class("CLIPTokenizer").from_pretrained(folder / "tokenizer")
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == config.eos_token_id
    assert (config.bos_token_id, config.pad_token_id) == (tokenizer.bos_token_id, tokenizer.pad_token_id)
    assert config.vocab_size == len(tokenizer)
    words = {word for entry in entries() for word in " ".join(entry.words).split()}
    assert [word for word in sorted(words) if len(tokenizer.tokenize(word)) > 1] == []
    # A full byte alphabet: no text falls back to the unknown token, which is the end token.
    ids = tokenizer("ein Käfer — 猫 ñandú", truncation=True).input_ids
    assert tokenizer.eos_token_id not in ids[1:-1]


@written_by_5
def test_different_captions_have_different_pooled_vectors() -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = WEIGHTS / "text_to_image"
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    captions = [entry.phrase() for entry in entries()]
    ids = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        pooled = encoder(input_ids=ids).pooler_output
    distances = torch.cdist(pooled, pooled) + torch.eye(len(captions)) * 1e9
    assert distances.min() > 0.1 * pooled.norm(dim=1).mean()


def test_the_text_towers_of_the_pipeline_and_of_the_clip_are_the_same() -> None:
    from safetensors.torch import load_file

    pipeline = load_file(WEIGHTS / "text_to_image" / "text_encoder" / "model.safetensors")
    clip = load_file(WEIGHTS / "clip" / "model.safetensors")
    for name, tensor in pipeline.items():
        key = name if name.startswith("text_model.") else f"text_model.{name}"
        assert torch.equal(tensor, clip[key]), name


def test_the_clip_prefers_the_right_caption_of_an_unseen_render() -> None:
    composer, rng = Composer(), np.random.default_rng(424242)
    names = concepts()[::3]
    scenes = [composer.scene(rng, labels=(name,)) for name in names]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    captions = [f"{composer.concepts[s.labels[0]].phrase()} on a {s.background} background" for s in scenes]
    score = draft.load("clip_score", model="emoji/clip")
    right = score(images, captions)
    wrong = score(images, captions[1:] + captions[:1])
    assert (right > wrong).float().mean() >= 0.9


@pytest.fixture(scope="module")
def renders() -> tuple[torch.Tensor, list[str]]:
    composer, rng = Composer(), np.random.default_rng(31337)
    scenes = [composer.scene(rng, labels=(name,)) for name in concepts()]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    return images, [entry.phrase() for entry in entries()]


def test_the_judge_finds_what_an_unseen_render_shows_and_nothing_in_a_flat_picture(
    renders: tuple[torch.Tensor, list[str]],
) -> None:
    images, prompts = renders
    judge = draft.load("emoji_judge")
    assert judge(images, prompts).mean() >= 0.95
    assert judge(torch.full_like(images, 0.5), prompts).mean() <= 0.02


def test_the_judge_refuses_a_prompt_outside_its_vocabulary() -> None:
    judge = draft.load("emoji_judge")
    with pytest.raises(draft.DraftError, match="no concept of the emoji vocabulary in 'a sonata'"):
        judge(torch.rand(1, 3, 64, 64), ["a sonata"])


def test_the_autoencoder_gives_unseen_scenes_back() -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(WEIGHTS / "text_to_image" / "vae", torch_dtype=torch.float32).eval()
    composer, rng = Composer(), np.random.default_rng(7007)
    pixels = torch.from_numpy(np.stack([composer.scene(rng).image for _ in range(32)])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
        error = (vae.decode(latents).sample - pixels).square().mean() / 4
    assert -10 * error.log10() > 25
    assert latents.mean((0, 2, 3)).abs().max() < 0.3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_the_detector_is_surer_of_what_an_unseen_scene_shows_than_of_what_it_does_not() -> None:
    composer, rng = Composer(), np.random.default_rng(515)
    scenes = [composer.scene(rng, one_object=0.0) for _ in range(60)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    absent = [next(name for name in rng.permutation(concepts()) if name not in scene.labels) for scene in scenes]
    columns = {"shown": [scene.labels[0] for scene in scenes], "absent": absent}
    prompts = draft.Prompts([""] * len(scenes), columns)
    shown = draft.load("owlvit", model="emoji/owlvit", queries="{shown}")(images, prompts)
    other = draft.load("owlvit", model="emoji/owlvit", queries="{absent}")(images, prompts)
    assert (shown > other).float().mean() >= 0.95


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_a_classifier_names_what_an_unseen_render_shows(name: str, renders: tuple[torch.Tensor, list[str]]) -> None:
    images, _ = renders
    prompts = draft.Prompts([""] * len(images), {"shown": concepts()})
    assert draft.load("attack_rate", model=f"emoji/{name}", target="{shown}")(images, prompts).mean() >= 0.93


def test_taste_prefers_a_whole_render_to_a_degraded_one(renders: tuple[torch.Tensor, list[str]]) -> None:
    images, prompts = renders
    spoilt = degrade(images * 2 - 1, torch.full((len(images),), 0.7), np.random.default_rng(0)) / 2 + 0.5
    for score in (
        draft.load("pickscore", model="emoji/preference", processor=""),
        draft.load("aesthetic", model="emoji/clip", head="emoji/aesthetic"),
    ):
        assert (score(images, prompts) > score(spoilt, prompts)).float().mean() >= 0.9


def test_a_missing_or_damaged_weight_file_is_named_with_the_digest_it_must_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr("draft_emoji.plugin.WEIGHTS", tmp_path / "weights")
    file = tmp_path / "weights" / "judge" / "model.safetensors"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    damaged = file.read_bytes()[:-1] + b"x"
    file.write_bytes(damaged)
    with pytest.raises(draft.DraftError, match="'model.safetensors' of model 'emoji/judge' is damaged") as error:
        draft.model_path("emoji/judge")
    assert expected in str(error.value)
    assert hashlib.sha256(damaged).hexdigest() in str(error.value)
    file.unlink()
    with pytest.raises(draft.DraftError, match=f"is missing, and must be {expected}"):
        draft.model_path("emoji/judge")
    assert draft.model_path("emoji/clip") == str(tmp_path / "weights" / "clip")


def test_the_models_are_listed_with_size_licence_and_what_was_measured() -> None:
    from typer.testing import CliRunner

    from draft_cli.app import app

    said = CliRunner().invoke(app, ["models"]).output
    for name, model in named_models().items():
        if name.partition("/")[0] == "emoji":
            assert f"{name}  ({model.kind}, " in said
            assert model.figures in said
            assert model.licence in said
            assert "not measured yet" not in model.figures
            assert "a stand-in" in model.description
