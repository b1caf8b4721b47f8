"""`clip_score` against transformers' own preprocessing and forward pass, on a tiny CLIP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

import draft
from draft.testing import check_reward
from draft_rewards._clip import Preprocessing, load_clip, parse_preprocessing

try:
    from transformers import CLIPImageProcessorPil
except ImportError:
    from transformers import CLIPImageProcessor as CLIPImageProcessorPil

SIZES = [(24, 24), (64, 64), (61, 37), (40, 97), (300, 225), (20, 18), (24, 50), (16, 90)]


def levels(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth random picture in whole 8-bit levels, which both sides see exactly alike: uint8 (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[0]
    return (fine * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_preprocessing_equals_the_image_processor_of_transformers(tiny_clip: Path, height: int, width: int) -> None:
    processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    ours = parse_preprocessing(json.loads((tiny_clip / "preprocessor_config.json").read_text()))
    image = levels(height, width)
    theirs = torch.as_tensor(processor(images=[image.permute(1, 2, 0).numpy()], return_tensors="pt")["pixel_values"])
    mine = ours(image[None].float() / 255)
    assert mine.shape == theirs.shape
    # Pillow rounds to 8 bits after each of its two resizing passes: at most about one and a half levels apart.
    assert ((mine - theirs).abs() * torch.tensor(ours.std).view(1, 3, 1, 1)).max() * 255 < 1.6


def test_no_resizing_is_exact(tiny_clip: Path) -> None:
    processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    ours = parse_preprocessing(json.loads((tiny_clip / "preprocessor_config.json").read_text()))
    image = levels(24, 24)
    theirs = torch.as_tensor(processor(images=[image.permute(1, 2, 0).numpy()], return_tensors="pt")["pixel_values"])
    torch.testing.assert_close(ours(image[None].float() / 255), theirs.float(), atol=2e-6, rtol=1e-5)


def test_the_score_is_a_hundred_times_the_cosine_of_the_models_own_forward_pass(tiny_clip: Path) -> None:
    model, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), AutoTokenizer.from_pretrained(tiny_clip)
    processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    prompts = ["a cat", "a red car and a very long caption that has to be cut somewhere", "two birds"]
    images = torch.stack([levels(24, 24, seed) for seed in range(3)])
    pixels = torch.as_tensor(
        processor(images=[image.permute(1, 2, 0).numpy() for image in images], return_tensors="pt")["pixel_values"]
    ).float()
    tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=pixels, **tokens)
        wanted = 100 * torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    score = draft.load("clip_score", model=str(tiny_clip))
    torch.testing.assert_close(score(images.float() / 255, prompts), wanted, atol=1e-3, rtol=1e-4)
    assert wanted.std() > 0.1, "the tiny model must tell images apart, or this test says nothing"


def test_clip_score_keeps_the_contract(tiny_clip: Path) -> None:
    from draft_rewards.clip_score import ClipScore

    check_reward(ClipScore(model=str(tiny_clip)), size=(40, 56))


def test_text_may_be_fixed_or_a_column(tiny_clip: Path) -> None:
    images = torch.stack([levels(24, 24, seed) for seed in range(2)]).float() / 255
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
    assert "draft models" in raised.value.hint


def test_missing_weights_are_refused_and_not_drawn_at_random(tiny_clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(draft.DraftError, match="lack 1 of CLIP's tensors, e.g. 'visual_projection.weight'"):
        draft.load("clip_score", model=str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(draft.DraftError, match="cannot load the CLIP model"):
        draft.load("clip_score", model=str(folder))


def test_the_text_vector_does_not_depend_on_the_batch(tiny_clip: Path) -> None:
    clip = load_clip(str(tiny_clip), device=torch.device("cpu"))
    assert torch.equal(clip.text_features("a cat"), clip.text_features("a cat"))
    assert not torch.allclose(clip.text_features("a cat"), clip.text_features("a dog"), atol=1e-3)


def test_preprocessing_is_read_in_the_old_form_and_in_the_new_one() -> None:
    old = parse_preprocessing({"size": 224, "crop_size": 224, "resample": 3})
    new = parse_preprocessing({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}})
    assert old == new == Preprocessing()
    fixed = parse_preprocessing({"size": {"height": 64, "width": 48}, "do_center_crop": False, "do_normalize": False})
    assert (fixed.shortest_edge, fixed.resized, fixed.cropped, fixed.std) == (0, (64, 48), (0, 0), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="resample"):
        parse_preprocessing({"resample": 0})
