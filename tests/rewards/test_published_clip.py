"""The CLIP rewards against what the published code said of a CLIP of ViT-L/14's proportions (`tests/golden`).

OpenAI's own CLIP, LAION's predictor and PickScore's model card were run once, on the weights that are made here again.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

import draft
from draft_rewards._clip import load_clip

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = json.loads((GOLDEN / "clip.json").read_text(encoding="utf-8"))


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


small, photographs = module("clip_small"), module("photographs")
PROMPTS = small.PROMPTS


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save(tmp_path_factory.mktemp("openai"), "quick_gelu")


@pytest.fixture(scope="module")
def laion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save(tmp_path_factory.mktemp("laion"), "gelu")


def image(name: str) -> torch.Tensor:
    picture = photographs.photograph(name)
    assert photographs.digest(picture) == RECORDED["photographs"][name], "another photograph"
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def squares() -> torch.Tensor:
    return torch.cat([image(name) for name in photographs.SQUARES])


def test_the_vectors_are_those_of_openais_own_code(openai: Path, squares: torch.Tensor) -> None:
    clip = load_clip(str(openai), device=torch.device("cpu"), where="clip_score")
    pooled = clip.model.vision_model(pixel_values=clip.preprocessing(squares)).pooler_output
    found = clip.model.visual_projection(pooled)[:, :8]
    torch.testing.assert_close(found, torch.tensor(RECORDED["openai"]["images"]), atol=5e-5, rtol=1e-5)
    wanted = torch.nn.functional.normalize(torch.tensor(RECORDED["openai"]["texts"]), dim=-1)
    texts = torch.stack([clip.text_features(prompt) for prompt in PROMPTS])[:, :8]
    torch.testing.assert_close(torch.nn.functional.normalize(texts, dim=-1), wanted, atol=2e-5, rtol=1e-5)


def test_a_text_is_cut_after_77_tokens_and_still_ends(openai: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(openai)
    found = [tokenizer(prompt, truncation=True, max_length=77)["input_ids"] for prompt in PROMPTS]
    assert found == RECORDED["tokens"]
    assert [len(ids) for ids in found] == [24, 14, 77] and {ids[-1] for ids in found} == {49407}
    clip = load_clip(str(openai), device=torch.device("cpu"), where="clip_score")
    longer = PROMPTS[2].replace("this is never read", "nor is that")
    assert torch.equal(clip.text_features(longer), clip.text_features(PROMPTS[2]))


def test_clip_score_is_a_hundred_times_openais_cosine(openai: Path, laion: Path, squares: torch.Tensor) -> None:
    wanted = 100 * torch.tensor(RECORDED["openai"]["cosines"]).diagonal()
    score = draft.load("clip_score", model=str(openai))
    torch.testing.assert_close(score(squares, PROMPTS), wanted, atol=5e-4, rtol=1e-4)
    # With GELU, which LAION's models have, the same weights say something else.
    other = draft.load("clip_score", model=str(laion))(squares, PROMPTS)
    assert (other - wanted).abs().min() > 0.01


def test_aesthetic_is_laions_predictor_on_openais_vectors(
    openai: Path, laion: Path, squares: torch.Tensor, tmp_path: Path
) -> None:
    wanted = torch.tensor(RECORDED["laion"])
    for name, save in (("head.safetensors", save_file), ("head.pth", torch.save)):
        save(small.head(), tmp_path / name)
        score = draft.load("aesthetic", model=str(openai), head=str(tmp_path / name))
        torch.testing.assert_close(score(squares, [""] * 3), wanted, atol=1e-4, rtol=1e-4)
    other = draft.load("aesthetic", model=str(laion), head=str(tmp_path / "head.pth"))(squares, [""] * 3)
    assert (other - wanted).abs().max() > 0.005


@pytest.mark.parametrize("group", ["squares", "cuts"])
def test_pickscore_is_the_diagonal_of_the_model_cards_scores(laion: Path, group: str) -> None:
    score = draft.load("pickscore", model=str(laion), processor="")
    names = list(photographs.SQUARES if group == "squares" else photographs.CUTS)
    # The card scores all images for one prompt; here each image comes with each prompt.
    for index, name in enumerate(names):
        found = score(image(name).expand(3, -1, -1, -1), PROMPTS)
        wanted = torch.tensor([row[index] for row in RECORDED["pickscore"][group]])
        # Only the cuts are resized, and Pillow rounds what it resizes to 8 bits.
        torch.testing.assert_close(found, wanted, atol=0.15 if group == "cuts" else 1e-3, rtol=1e-4)


def test_the_recorded_scores_tell_images_and_texts_apart() -> None:
    for table in (RECORDED["openai"]["cosines"], *RECORDED["pickscore"].values()):
        assert torch.tensor(table).std(dim=0).min() > 1e-3 and torch.tensor(table).std(dim=1).min() > 1e-3
