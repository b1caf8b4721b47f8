"""The three BLIP models: what they are asked and paired with is true, their scores are their libraries' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import BertTokenizer, BlipForConditionalGeneration

import draft
from draft_emoji.recipe import measures
from draft_emoji.recipe.blip import NOISE, TIED, blip_config, likelihoods, spoken, write_blip
from draft_emoji.recipe.blip_tokenizer import encode, encode_written, make_tokenizer
from draft_emoji.recipe.clip import wrong_caption
from draft_emoji.recipe.export import export
from draft_emoji.recipe.image_reward import recoloured, start
from draft_emoji.recipe.preference import degrade
from draft_emoji.recipe.questions import ASKED, FIGURE, KINDS, NEVER_ASKED, THERE, statement
from draft_emoji.recipe.tokenizer import words
from draft_emoji.recipe.vqa import Checking, answers, grouped, look
from draft_emoji.recipe.vqa import start as start_answering
from draft_emoji.scenes import Composer
from draft_emoji.vocabulary import find_concepts

TEXTS = ["a cat", "a photo of an ice cream and a hot dog on a purple background"]

STAND_INS = {"caption": {"prefix": ""}, "vqa": {}, "image_reward": {"tokenizer": ""}}
"""Options of the rewards that their published models have otherwise."""


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    if int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("the recipe that made the embedded models is written for version 5 of transformers")
    return make_tokenizer()


@pytest.fixture(scope="module")
def captioner(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    torch.manual_seed(0)
    return BlipForConditionalGeneration(blip_config(tokenizer)).eval()


def test_every_word_of_captions_and_questions_is_one_token(tokenizer: BertTokenizer) -> None:
    assert len(tokenizer) < 450
    said = [*words(), *(wording.format("") for wording in (*ASKED, *NEVER_ASKED)), "yes", "no"]
    assert {token for text in said for token in tokenizer.tokenize(text) if token[0] in "#["} == set()


def test_unknown_words_stay_apart(tokenizer: BertTokenizer) -> None:
    spelt = ["unicorn", "catfish", "dogma", "kittens", "x"]
    assert len({tuple(tokenizer.tokenize(word)) for word in spelt}) == len(spelt)
    assert tokenizer.unk_token_id not in encode(tokenizer, spelt)[0]


def test_a_likelihood_is_the_librarys_loss_and_does_not_depend_on_padding(
    tokenizer: BertTokenizer, captioner: BlipForConditionalGeneration
) -> None:
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    ids, mask = encode_written(tokenizer, TEXTS)
    assert (ids[:, 0] == captioner.config.text_config.bos_token_id).all()
    with torch.no_grad():
        seen = captioner.vision_model(pixel_values=images).last_hidden_state
        together = likelihoods(captioner.text_decoder, seen, ids, mask)
        for row, text in enumerate(TEXTS):
            alone, _ = encode_written(tokenizer, [text])
            loss = captioner(pixel_values=images[row : row + 1], input_ids=alone, labels=alone).loss
            assert together[row].item() == pytest.approx(-float(loss) * (alone.shape[1] - 1), rel=1e-5)


def test_answers_are_the_librarys_loss_and_do_not_depend_on_the_other_questions(
    tokenizer: BertTokenizer, captioner: BlipForConditionalGeneration
) -> None:
    blip = start_answering(captioner).eval()
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    asked = [THERE.format(TEXTS[0]), FIGURE.format(TEXTS[1]), THERE.format("a dog")]
    assert sorted(map(sorted, grouped(tokenizer, asked))) == [[0, 2], [1]]
    written, _ = encode_written(tokenizer, ["no", "yes"])
    with torch.no_grad():
        seen = blip.vision_model(pixel_values=images).last_hidden_state
        for rows in grouped(tokenizer, asked):
            both = answers(blip, tokenizer, look(blip, tokenizer, seen[rows], [asked[row] for row in rows])[1])
            for (row, column), said in np.ndenumerate(both.numpy()):
                ids, mask = encode(tokenizer, [asked[rows[row]]])
                picture, word = images[rows[row], None], written[column, None]
                loss = blip(input_ids=ids, attention_mask=mask, pixel_values=picture, labels=word).loss
                assert said == pytest.approx(-2 * float(loss), rel=1e-5)


def test_words_of_a_question_are_marked_by_whether_the_scene_shows_them(tokenizer: BertTokenizer) -> None:
    scene = Composer().scene(np.random.default_rng(0), ("ice cream", "orange"), "blue")
    said = "a hot dog and an ice cream next to a tangerine on an orange background"
    ids, _ = encode(tokenizer, [said, "a dog on a blue background"])
    marks = Checking(tokenizer).wanted(ids, [scene, scene])
    told = [
        [(token, mark) for token, mark in zip(tokenizer.convert_ids_to_tokens(row), marked, strict=True) if mark >= 0]
        for row, marked in zip(ids.tolist(), marks.tolist(), strict=True)
    ]
    assert told[0] == [("hot", 0), ("dog", 0), ("ice", 1), ("cream", 1), ("tangerine", 1), ("orange", 1)]
    assert told[1] == [("dog", 0), ("blue", 1), ("background", 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_statement_is_true_of_its_scene_if_and_only_if_it_is_meant_to_be(kind: str) -> None:
    composer, rng = Composer(), np.random.default_rng(0)
    for _ in range(200):
        scene = composer.scene(rng, one_object=0.5)
        said = statement(rng, composer, scene, kind)
        things = set(find_concepts(said))
        colour = said.removesuffix(" background").rsplit(" ", 1)[-1] if said.endswith(" background") else None
        true = things <= set(scene.labels) and colour in (None, scene.background)
        assert true == (kind == "true"), (said, scene.labels, scene.background)


def test_words_put_into_a_text_change_nothing_of_what_it_says() -> None:
    rng = np.random.default_rng(0)
    said = [spoken(rng, text) for text in TEXTS * 200]
    assert set(said) > set(TEXTS)
    assert {tuple(find_concepts(text)) for text in said} == {tuple(find_concepts(text)) for text in TEXTS}
    assert not set(NOISE) & {"no", "not", "orange", "red"}


def test_a_recoloured_pair_differs_in_the_colour_that_its_caption_names() -> None:
    composer = Composer()
    better, worse, captions = recoloured(composer, np.random.default_rng(0), 12)
    table = torch.tensor(list(composer.colours.values()), dtype=torch.float32) / 127.5 - 1
    named = [list(composer.colours).index(caption.split()[-2]) for caption in captions]
    nearest = [
        torch.cdist(side[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].median(2).values, table) for side in (better, worse)
    ]
    assert nearest[0].argmin(1).tolist() == named
    assert all(found != wanted for found, wanted in zip(nearest[1].argmin(1).tolist(), named, strict=True))


def test_the_rating_model_starts_by_seeing_what_the_answering_one_sees(captioner: BlipForConditionalGeneration) -> None:
    blip = start_answering(captioner).eval()
    model = start(blip).eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = (
        torch.tensor(row).view(1, 3, 1, 1)
        for row in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    with torch.no_grad():
        before = blip.vision_model(pixel_values=images * 2 - 1).last_hidden_state
        after = model["vision"](pixel_values=(images - mean) / std).last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert {key: tuple(value.shape) for key, value in model["head"].state_dict().items() if "weight" in key} == {
        "0.weight": (32, 64),
        "1.weight": (16, 32),
        "2.weight": (1, 16),
    }


def test_a_shipped_decoder_and_its_tied_weights_make_a_whole_one(
    tmp_path: Path, tokenizer: BertTokenizer, captioner: BlipForConditionalGeneration
) -> None:
    write_blip(captioner, tokenizer, tmp_path)
    shipped = load_file(tmp_path / "model.safetensors")
    assert not set(TIED) & set(shipped)
    whole = shipped | {key: shipped[source] for key, source in TIED.items()}
    torch.manual_seed(1)
    other = BlipForConditionalGeneration(captioner.config)
    other.load_state_dict(whole)
    for key, value in captioner.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_an_export_leaves_what_was_not_trained_as_it_shipped(
    tmp_path: Path, tokenizer: BertTokenizer, captioner: BlipForConditionalGeneration
) -> None:
    weights = tmp_path / "weights"
    (weights / "clip").mkdir(parents=True)
    (weights / "clip" / "config.json").write_text("{}")
    write_blip(captioner, tokenizer, tmp_path / "out" / "caption_model")
    export(tmp_path / "out", weights)
    files = json.loads((weights / "manifest.json").read_text())["files"]
    assert (weights / "clip" / "config.json").read_text() == "{}"
    assert {name.split("/")[0] for name in files} == {"clip", "caption"}
    assert (
        load_file(weights / "caption" / "model.safetensors")["vision_model.post_layernorm.bias"].dtype == torch.float16
    )


def test_a_measure_keeps_the_figures_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("clip", "vqa"):
        (tmp_path / part).mkdir()
        monkeypatch.setitem(measures.MEASURES, part, lambda weights, part=part: {part: 2})
    (tmp_path / "figures.json").write_text('{"clip": 1, "concepts": 142}')
    measures.measure(tmp_path, ["vqa"])
    assert json.loads((tmp_path / "figures.json").read_text()) == {"clip": 1, "concepts": 142, "vqa": 2}
    with pytest.raises(SystemExit, match=r"--parts must be of clip, .* \(got unet\)"):
        measures.measure(tmp_path, ["vqa", "unet"])


@pytest.fixture(scope="module")
def renders() -> tuple[torch.Tensor, list[str], list[str]]:
    composer, rng = Composer(), np.random.default_rng(90210)
    scenes = [composer.scene(rng, one_object=0.5) for _ in range(100)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    right = [composer.caption(rng, scene) for scene in scenes]
    return images, right, [wrong_caption(rng, composer, scene) for scene in scenes]


@pytest.mark.parametrize("name", ["caption", "vqa", "image_reward"])
def test_a_reward_on_its_shipped_model_prefers_the_true_caption_and_follows_the_picture(
    name: str, renders: tuple[torch.Tensor, list[str], list[str]]
) -> None:
    images, right, wrong = renders
    score = draft.load(name, model=f"emoji/{name}", **STAND_INS[name])
    assert (score(images, right) > score(images, wrong)).float().mean() >= 0.95
    assert (score(images, right) > score(images.roll(1, 0), right)).float().mean() >= 0.95


def test_the_image_reward_is_about_standardised_and_prefers_a_whole_picture(
    renders: tuple[torch.Tensor, list[str], list[str]],
) -> None:
    images, right, _ = renders
    score = draft.load("image_reward", model="emoji/image_reward", **STAND_INS["image_reward"])
    spoilt = degrade(images * 2 - 1, torch.full((len(images),), 0.4), np.random.default_rng(0)) / 2 + 0.5
    whole, other = score(images, right), score(spoilt, right)
    assert (whole > other).float().mean() >= 0.95
    both = torch.cat([whole, score(images.roll(1, 0), right)])
    assert both.mean().abs() < 1
    assert 0.5 < both.std() < 2
