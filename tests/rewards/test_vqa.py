"""`vqa` against transformers' own processors, forward passes, losses and generation, on tiny models of each family."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import draft
from draft.testing import check_reward
from draft_rewards._blip import Blip, question_start
from draft_rewards._vlm import filled
from draft_rewards.vqa import Vqa

PROMPTS = ["a cat", "two birds in a tree, and a fox", "a"]
QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'


@pytest.fixture(scope="session", params=["[ENC]", "[CLS]"])
def answering(
    request: pytest.FixtureRequest, tiny: ModuleType, tiny_blip: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """A BLIP with [ENC] behind [DEC], as published, and one without; and the token that starts its questions."""
    folder, extra = tmp_path_factory.mktemp("answering"), 2 if request.param == "[ENC]" else 1
    tiny_blip.save_blip(folder, partial(tiny.published, "Blip"), answers=True, extra=extra)
    return folder, len(tiny_blip.words()) + 1 if extra == 2 else tiny_blip.words().index("[CLS]")


@pytest.fixture(scope="session", params=["PaliGemma", "PaliGemma 2"])
def paligemma(
    request: pytest.FixtureRequest, tiny: ModuleType, tiny_blip: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("paligemma")
    return tiny_blip.save_paligemma(folder, partial(tiny.published, "Siglip"), second=request.param == "PaliGemma 2")


def blip_published(tiny: ModuleType, folder: Path, start: int, image: torch.Tensor, asked: str, said: str) -> float:
    """Transformers' loss of an answer, summed; the first tokens are those of BLIP's own training."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.BlipProcessor(tiny.published("Blip").from_pretrained(folder), tokenizer)
    model = transformers.BlipForQuestionAnswering.from_pretrained(folder).eval()
    inputs = processor(images=tiny.pictures([image]), text=asked, return_tensors="pt")
    inputs["input_ids"][:, 0] = start
    labels = tokenizer(said, return_tensors="pt").input_ids
    labels[:, 0] = model.decoder_start_token_id
    with torch.no_grad():
        loss = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"], labels=labels).loss
    return loss.item() * (labels.shape[1] - 1)


def paligemma_published(tiny: ModuleType, folder: Path, image: torch.Tensor, asked: str, said: str) -> Any:
    """The processor's inputs for a question and, where there is one, its answer; and the model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tiny.BEFORE_5:
        # Its processor insists on the class; a bos is the processor's to add.
        tokenizer = transformers.GemmaTokenizerFast(tokenizer_object=tokenizer._tokenizer, add_bos_token=False)
    images = tiny.published("Siglip").from_pretrained(folder)
    images.image_seq_length = 9
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    inputs = processor(text=f"<image>{asked}", images=tiny.pictures([image]), suffix=said or None, return_tensors="pt")
    return inputs, transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder).eval()


@pytest.mark.parametrize("answer", ["yes", "two cats"])
def test_a_blip_scores_minus_the_published_loss_one_by_one_though_scored_as_a_batch(
    tiny: ModuleType, answering: tuple[Path, int], answer: str
) -> None:
    folder, start = answering
    images, asked = [tiny.levels(24, 24, seed) for seed in range(3)], filled(QUESTION, PROMPTS)
    wanted = [-blip_published(tiny, folder, start, *pair, answer) for pair in zip(images, asked, strict=True)]
    found = draft.load("vqa", model=str(folder), answer=answer)(torch.stack(images).float() / 255, PROMPTS)
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-4, rtol=1e-4)
    assert found.std() > 1e-3, "the tiny model must tell images or questions apart, or this test says nothing"


def test_a_blip_generates_the_answer_with_the_probability_that_is_scored(
    tiny: ModuleType, answering: tuple[Path, int]
) -> None:
    folder, start = answering
    model = transformers.BlipForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = tiny.pixels(tiny.published("Blip").from_pretrained(folder), [tiny.levels(24, 24)])
    asked = tokenizer("Is there a cat?", return_tensors="pt").input_ids
    asked[:, 0] = start
    forced = [*tokenizer("yes", add_special_tokens=False).input_ids, tokenizer.sep_token_id]
    out = model.generate(
        pixel_values=pixels,
        input_ids=asked,
        max_new_tokens=2,
        prefix_allowed_tokens_fn=lambda _, written: [forced[len(written) - 1]],
        output_logits=True,
        return_dict_in_generate=True,
    )
    steps = torch.stack(out.logits)[:, 0].log_softmax(-1)
    wanted = sum(step[token].item() for step, token in zip(steps, forced, strict=True))
    score = draft.load("vqa", model=str(folder), question="Is there {prompt}?")
    assert score(tiny.levels(24, 24)[None].float() / 255, ["a cat"]).item() == pytest.approx(wanted, abs=1e-4)


def test_a_question_starts_with_enc_where_the_model_has_it() -> None:
    class Words(dict):
        cls_token_id = 2
        get_vocab = dict.copy
        convert_tokens_to_ids = dict.__getitem__

    plain = Words({f"w{i}": i for i in range(10)})
    assert question_start(plain, SimpleNamespace(bos_token_id=10, vocab_size=12)) == 11
    assert question_start(plain, SimpleNamespace(bos_token_id=10, vocab_size=11)) == 2
    assert question_start(plain, SimpleNamespace(bos_token_id=5, vocab_size=12)) == 2
    assert question_start(Words({**plain, "[ENC]": 7}), SimpleNamespace(bos_token_id=10, vocab_size=12)) == 7


@pytest.mark.parametrize("answer", ["yes", "n"])
def test_a_paligemma_scores_minus_the_published_loss_one_by_one_though_scored_as_a_batch(
    tiny: ModuleType, paligemma: Path, answer: str
) -> None:
    images, asked = [tiny.levels(24, 24, seed) for seed in range(3)], filled(QUESTION, PROMPTS)
    wanted, causal = [], []
    for image, question in zip(images, asked, strict=True):
        inputs, model = paligemma_published(tiny, paligemma, image, question, answer)
        count = len(answer) + 1
        assert (inputs["labels"] != -100).sum() == count and (inputs["input_ids"] == model.config.image_token_id).sum()
        with torch.no_grad():
            wanted.append(-model(**inputs).loss.item() * count)
            inputs["token_type_ids"] = torch.ones_like(inputs["token_type_ids"])
            causal.append(-model(**inputs).loss.item() * count)
    found = draft.load("vqa", model=str(paligemma), answer=answer)(torch.stack(images).float() / 255, PROMPTS)
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-4, rtol=1e-5)
    assert (found - torch.tensor(causal)).abs().min() > 2e-3, "a prefix that looks back only would score otherwise"


def test_a_paligemma_generates_the_answer_with_the_probability_that_is_scored(
    tiny: ModuleType, paligemma: Path
) -> None:
    image = tiny.levels(61, 37)
    inputs, model = paligemma_published(tiny, paligemma, image, "Is there a cat?", "")
    tokenizer, length = transformers.AutoTokenizer.from_pretrained(paligemma), inputs["input_ids"].shape[1]
    forced = tokenizer("yes<eos>", add_special_tokens=False).input_ids
    inputs.pop("labels", None)
    out = model.generate(
        **inputs,
        max_new_tokens=4,
        do_sample=False,
        prefix_allowed_tokens_fn=lambda _, written: [forced[len(written) - length]],
        output_logits=True,
        return_dict_in_generate=True,
    )
    steps = torch.stack(out.logits)[:, 0].log_softmax(-1)
    wanted = sum(step[token].item() for step, token in zip(steps, forced, strict=True))
    score = draft.load("vqa", model=str(paligemma), question="Is there {prompt}?")
    # Pillow rounds resized images to 8 bits.
    assert score(image[None].float() / 255, ["a cat"]).item() == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize("question", [QUESTION, "Is there a cat?"])
def test_a_blip_keeps_the_contract(answering: tuple[Path, int], question: str) -> None:
    check_reward(Vqa(model=str(answering[0]), question=question), size=(40, 56))


def test_a_paligemma_keeps_the_contract(paligemma: Path) -> None:
    check_reward(Vqa(model=str(paligemma)), size=(40, 56))


def test_questions_and_answers_may_hold_columns() -> None:
    prompts = draft.Prompts(["a cat", "a dog"], {"thing": ["cat", "dog"], "place": ["tree", "car"]})
    assert filled("Is the {thing} of '{prompt}' in a {place}? {thing}!", prompts) == [
        "Is the cat of 'a cat' in a tree? cat!",
        "Is the dog of 'a dog' in a car? dog!",
    ]
    assert filled("Is there a {thing}?", draft.Prompts(["x"], {"thing": ["{place} {"]})) == ["Is there a {place} {?"]
    assert filled("Anything?", ["x", "y"]) == ["Anything?"] * 2
    with pytest.raises(draft.DraftError, match="no column 'colour'"):
        filled("Is it {colour}?", prompts)


def test_columns_of_the_prompt_file_reach_the_model(tiny: ModuleType, answering: tuple[Path, int]) -> None:
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(2)]).float() / 255

    def score(prompts: Any, **options: Any) -> torch.Tensor:
        return draft.load("vqa", model=str(answering[0]), **options)(images, prompts)

    prompts = draft.Prompts(["x", "y"], {"thing": ["cat", "dog"], "truth": ["yes", "no"]})
    found = score(prompts, question="Is there a {thing}?", answer="{truth}")
    yes, no = (score(["cat", "dog"], question="Is there a {prompt}?", answer=answer) for answer in ("yes", "no"))
    torch.testing.assert_close(found, torch.stack([yes[0], no[1]]))
    assert (yes - no).abs().min() > 1e-3


def test_each_question_and_answer_is_read_once(
    tiny: ModuleType, answering: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = Blip.words
    monkeypatch.setattr(Blip, "words", lambda self, text: (seen.append(text) if text else None) or original(self, text))
    score = draft.load("vqa", model=str(answering[0]), question="a {prompt}?")
    images = tiny.levels(24, 24)[None].expand(3, -1, -1, -1).float() / 255
    for _ in range(2):
        score(images, ["dog", "fox", "dog"])
    assert sorted(seen) == ["a dog?", "a fox?", "yes"]


def test_an_unknown_family_is_an_error_that_names_the_known_ones(tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "my_own"}), encoding="utf-8")
    for folder, kind in ((tiny_clip, "clip"), (tmp_path, "my_own")):
        with pytest.raises(draft.DraftError, match=f"must be one of blip, paligemma .got '{kind}'") as raised:
            draft.load("vqa", model=str(folder))
        assert raised.value.where == "vqa" and "Salesforce/blip-vqa-base" in raised.value.hint
    with pytest.raises(draft.DraftError, match="cannot load the model that answers"):
        draft.load("vqa", model=str(tmp_path / "nothing"))


def test_a_captioner_and_a_model_without_preprocessing_are_clear_errors(
    tiny: ModuleType, tiny_blip: ModuleType, paligemma: Path, tmp_path: Path
) -> None:
    captioner = tiny_blip.save_blip(tmp_path, partial(tiny.published, "Blip"))
    with pytest.raises(draft.DraftError, match="lack .* of BlipForQuestionAnswering's tensors, e.g. 'text_encoder"):
        draft.load("vqa", model=str(captioner))
    folder = shutil.copytree(paligemma, tmp_path / "paligemma")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(draft.DraftError, match="has no preprocessor_config.json"):
        draft.load("vqa", model=str(folder))
