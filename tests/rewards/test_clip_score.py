"""`clip_score` against transformers' own preprocessing and forward pass, on a tiny CLIP."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

import draft
from draft.testing import check_reward
from draft_rewards._clip import load_clip


def test_the_score_is_a_hundred_times_the_cosine_of_the_models_own_forward_pass(
    tiny: ModuleType, tiny_clip: Path
) -> None:
    model, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), AutoTokenizer.from_pretrained(tiny_clip)
    processor = tiny.published("CLIP").from_pretrained(tiny_clip)
    prompts = ["a cat", "a red car and a very long caption that has to be cut somewhere", "two birds"]
    images = [tiny.levels(24, 24, seed) for seed in range(3)]
    tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=tiny.pixels(processor, images), **tokens)
        wanted = 100 * torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    score = draft.load("clip_score", model=str(tiny_clip))
    torch.testing.assert_close(score(torch.stack(images).float() / 255, prompts), wanted, atol=1e-3, rtol=1e-4)
    assert wanted.std() > 0.1, "the tiny model must tell images apart, or this test says nothing"


def test_clip_score_keeps_the_contract(tiny_clip: Path) -> None:
    from draft_rewards.clip_score import ClipScore

    check_reward(ClipScore(model=str(tiny_clip)), size=(40, 56))


def test_text_may_be_fixed_or_a_column(tiny: ModuleType, tiny_clip: Path) -> None:
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(2)]).float() / 255
    by_prompt = draft.load("clip_score", model=str(tiny_clip))(images, ["dog", "fox"])
    column = draft.load("clip_score", model=str(tiny_clip), text="{animal}")
    torch.testing.assert_close(column(images, draft.Prompts(["x", "y"], {"animal": ["dog", "fox"]})), by_prompt)
    fixed = draft.load("clip_score", model=str(tiny_clip), text="dog")
    torch.testing.assert_close(fixed(images, ["x", "y"])[0], by_prompt[0])
    with pytest.raises(draft.DraftError, match="no column 'animal'"):
        column(images, ["x", "y"])


def test_a_model_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(draft.DraftError, match="cannot load the CLIP model") as raised:
        draft.load("clip_score", model=str(tmp_path / "nothing"))
    assert raised.value.where == "clip_score"
    assert "draft models" in raised.value.hint


def test_missing_weights_are_refused_and_not_drawn_at_random(tiny_clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(draft.DraftError, match="lack 1 of CLIPModel's tensors, e.g. 'visual_projection.weight'"):
        draft.load("clip_score", model=str(folder))
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(draft.DraftError, match="cannot load the CLIP model"):
        draft.load("clip_score", model=str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(draft.DraftError, match="cannot load the CLIP model"):
        draft.load("clip_score", model=str(folder))


def test_the_text_vector_does_not_depend_on_the_batch(tiny_clip: Path) -> None:
    clip = load_clip(str(tiny_clip), device=torch.device("cpu"), where="clip_score")
    assert torch.equal(clip.text_features("a cat"), clip.text_features("a cat"))
    assert not torch.allclose(clip.text_features("a cat"), clip.text_features("a dog"), atol=1e-3)


def test_a_clip_without_a_preprocessing_file_gets_openais_at_its_own_size(tiny_clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    clip = load_clip(str(folder), device=torch.device("cpu"), where="clip_score")
    assert (clip.preprocessing.shortest_edge, clip.preprocessing.cropped) == (24, (24, 24))
