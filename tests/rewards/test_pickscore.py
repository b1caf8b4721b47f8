"""`pickscore` against the code of its model card, on a tiny CLIP."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

import draft
from draft.testing import check_reward
from draft_rewards.pickscore import Pickscore


@pytest.mark.parametrize(("height", "width", "close"), [(24, 24, 1e-4), (61, 37, 0.02), (9, 131, 0.02), (131, 9, 0.02)])
def test_the_score_is_that_of_the_model_card(
    tiny: ModuleType, tiny_clip: Path, height: int, width: int, close: float
) -> None:
    model, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), AutoTokenizer.from_pretrained(tiny_clip)
    processor = tiny.published("CLIP").from_pretrained(tiny_clip)
    prompts = ["a cat", "a red car and a very long caption that has to be cut somewhere", "two birds"]
    images = [tiny.levels(height, width, seed) for seed in range(3)]
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        seen = model.vision_model(pixel_values=tiny.pixels(processor, images)).pooler_output
        said = model.text_model(**tokens).pooler_output
        image_embs, text_embs = model.visual_projection(seen), model.text_projection(said)
        image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
        text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
        wanted = (model.logit_scale.exp() * (text_embs @ image_embs.T)).diagonal()
    score = draft.load("pickscore", model=str(tiny_clip), processor="")
    torch.testing.assert_close(score(torch.stack(images).float() / 255, prompts), wanted, atol=close, rtol=close)
    assert wanted.std() > 1e-3


@pytest.mark.parametrize("text", ["{prompt}", "a nice picture"])
def test_pickscore_keeps_the_contract(tiny_clip: Path, text: str) -> None:
    check_reward(Pickscore(model=str(tiny_clip), processor="", text=text), size=(40, 56))


def test_text_may_be_a_column(tiny: ModuleType, tiny_clip: Path) -> None:
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(2)]).float() / 255
    options: dict[str, Any] = {"model": str(tiny_clip), "processor": ""}
    wanted = draft.load("pickscore", **options)(images, ["dog", "fox"])
    column = draft.load("pickscore", text="{animal}", **options)
    torch.testing.assert_close(column(images, draft.Prompts(["x", "y"], {"animal": ["dog", "fox"]})), wanted)


def test_tokenizer_and_preprocessing_may_lie_elsewhere(tiny: ModuleType, tiny_clip: Path, tmp_path: Path) -> None:
    model, processor = shutil.copytree(tiny_clip, tmp_path / "model"), tmp_path / "processor"
    processor.mkdir()
    for file in model.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.rename(processor / file.name)
    images = torch.stack([tiny.levels(40, 24, seed) for seed in range(2)]).float() / 255
    apart = draft.load("pickscore", model=str(model), processor=str(processor))
    together = draft.load("pickscore", model=str(tiny_clip), processor="")
    torch.testing.assert_close(apart(images, ["dog", "fox"]), together(images, ["dog", "fox"]))


def test_missing_parts_are_clear_errors(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(draft.DraftError, match="cannot load the CLIP model") as raised:
        draft.load("pickscore", model=str(tmp_path / "nothing"))
    assert raised.value.where == "pickscore"
    with pytest.raises(draft.DraftError, match="cannot load the CLIP processor"):
        draft.load("pickscore", model=str(tiny_clip), processor=str(tmp_path / "nothing"))


def test_each_text_is_encoded_once(tiny: ModuleType, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from draft_rewards._clip import Clip

    seen: list[str] = []
    original = Clip.text_features
    monkeypatch.setattr(Clip, "text_features", lambda self, text: seen.append(text) or original(self, text))
    score = draft.load("pickscore", model=str(tiny_clip), processor="")
    images = tiny.levels(24, 24)[None].expand(3, -1, -1, -1).float() / 255
    for _ in range(2):
        score(images, ["dog", "fox", "dog"])
    assert seen == ["dog", "fox"]
