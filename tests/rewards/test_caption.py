"""`caption` against transformers' own processor, forward pass and loss, on a tiny BLIP."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

import draft
from draft.testing import check_reward
from draft_rewards._blip import Blip
from draft_rewards.caption import Caption

PROMPTS = ["a cat", "two birds in a tree, and a fox!", ""]


@pytest.fixture(scope="session")
def captioner(tiny: ModuleType, tiny_blip: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip.save_blip(tmp_path_factory.mktemp("captioner"), partial(tiny.published, "Blip"))


def published(tiny: ModuleType, folder: Path, image: torch.Tensor, prefix: str, text: str) -> tuple[float, int]:
    """Transformers' loss of a caption as BLIP's own training asks for it, and how many tokens it is the mean of."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.BlipProcessor(tiny.published("Blip").from_pretrained(folder), tokenizer)
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    inputs = processor(images=tiny.pictures([image]), text=prefix + text, return_tensors="pt")
    ids = inputs["input_ids"]
    ids[:, 0] = model.config.text_config.bos_token_id
    labels = ids.clone()
    labels[:, : len(tokenizer(prefix).input_ids) - 1] = -100
    with torch.no_grad():
        loss = model(pixel_values=inputs["pixel_values"], input_ids=ids, labels=labels).loss
    return loss.item(), int((labels[:, 1:] != -100).sum())


@pytest.mark.parametrize("prefix", ["a picture of ", ""])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_score_is_minus_the_published_loss_one_by_one_though_scored_as_a_batch(
    tiny: ModuleType, captioner: Path, prefix: str, reduction: str
) -> None:
    images = [tiny.levels(24, 24, seed) for seed in range(3)]
    losses = [published(tiny, captioner, *pair) for pair in zip(images, [prefix] * 3, PROMPTS, strict=True)]
    wanted = torch.tensor([-loss * (count if reduction == "sum" else 1) for loss, count in losses])
    score = draft.load("caption", model=str(captioner), prefix=prefix, reduction=reduction)
    torch.testing.assert_close(score(torch.stack(images).float() / 255, PROMPTS), wanted, atol=1e-4, rtol=1e-4)
    assert [count for _, count in losses][2] == 1, "of an empty prompt [SEP] alone counts"


@pytest.mark.parametrize(("height", "width"), [(61, 37), (9, 131), (131, 9), (200, 300)])
def test_images_of_any_shape_score_as_published(tiny: ModuleType, captioner: Path, height: int, width: int) -> None:
    image = tiny.levels(height, width)
    wanted = -published(tiny, captioner, image, "a picture of ", "a cat")[0]
    found = draft.load("caption", model=str(captioner))(image[None].float() / 255, ["a cat"])
    # Pillow rounds resized images to 8 bits.
    assert found.item() == pytest.approx(wanted, abs=0.03)


def test_the_sum_is_the_logarithm_of_what_a_decoder_multiplies_token_by_token(
    tiny: ModuleType, captioner: Path
) -> None:
    image = tiny.levels(24, 24)[None].float() / 255
    model = transformers.BlipForConditionalGeneration.from_pretrained(captioner).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(captioner)
    words = tokenizer("a cat, two", add_special_tokens=False)["input_ids"]
    pixels = tiny.pixels(tiny.published("Blip").from_pretrained(captioner), [tiny.levels(24, 24)])
    product, written = 1.0, [model.config.text_config.bos_token_id]
    with torch.no_grad():
        for token in [*words, tokenizer.sep_token_id]:
            logits = model(pixel_values=pixels, input_ids=torch.tensor([written])).logits[0, -1]
            product *= logits.double().softmax(-1)[token].item()
            written.append(token)
    score = draft.load("caption", model=str(captioner), prefix="", reduction="sum")
    assert score(image, ["a cat, two"]).exp().item() == pytest.approx(product, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "prefix": "", "text": "a nice cat"}])
def test_caption_keeps_the_contract(captioner: Path, options: dict[str, Any]) -> None:
    check_reward(Caption(model=str(captioner), **options), size=(40, 56))


def test_the_captioner_tells_images_and_captions_apart(tiny: ModuleType, captioner: Path) -> None:
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(4)]).float() / 255
    score = draft.load("caption", model=str(captioner), prefix="")
    assert score(images, ["a cat"] * 4).std() > 1e-3
    assert (score(images, ["a cat"] * 4) - score(images, ["a dog"] * 4)).abs().min() > 1e-3


def test_a_caption_longer_than_the_decoder_is_cut_and_still_ends(captioner: Path, tiny_blip: ModuleType) -> None:
    network = transformers.BlipForConditionalGeneration.from_pretrained(captioner)
    blip = Blip(network, transformers.AutoTokenizer.from_pretrained(captioner), None)  # type: ignore[arg-type]
    line = blip.line("a fox " * 60, before="a picture of ")
    assert len(line.ids) == tiny_blip.POSITIONS and line.ids[-1] == 3
    assert line.prefix_length == 4 and line.counted == tiny_blip.POSITIONS - 4


def test_text_may_be_a_column_and_each_is_read_once(
    tiny: ModuleType, captioner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = Blip.line
    monkeypatch.setattr(Blip, "line", lambda self, text, **more: seen.append(text) or original(self, text, **more))
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(3)]).float() / 255
    wanted = draft.load("caption", model=str(captioner))(images, ["dog", "fox", "dog"])
    column = draft.load("caption", model=str(captioner), text="{animal}")
    prompts = draft.Prompts(["x", "y", "z"], {"animal": ["dog", "fox", "dog"]})
    for _ in range(2):
        torch.testing.assert_close(column(images, prompts), wanted)
    assert seen == ["dog", "fox"] * 2


def test_another_kind_of_model_and_missing_files_are_clear_errors(
    captioner: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(draft.DraftError, match="its model_type must be blip .got 'clip'") as raised:
        draft.load("caption", model=str(tiny_clip))
    assert raised.value.where == "caption"
    with pytest.raises(draft.DraftError, match="cannot load the BLIP captioner"):
        draft.load("caption", model=str(tmp_path / "nothing"))
    folder = shutil.copytree(captioner, tmp_path / "blip")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "LevitImageProcessor"}))
    with pytest.raises(draft.DraftError, match="its image processor must be one of"):
        draft.load("caption", model=str(folder))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(draft.DraftError, match="has no preprocessor_config.json"):
        draft.load("caption", model=str(folder))


def test_missing_weights_are_refused_and_not_drawn_at_random(captioner: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(captioner, tmp_path / "blip")
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(draft.DraftError, match="lack 1 of BlipForConditionalGeneration's tensors"):
        draft.load("caption", model=str(folder))
