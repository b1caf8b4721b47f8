"""`owlvit` and `owlvit_count` against transformers' own processor, model and post-processing, on tiny detectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

import draft
from draft.testing import check_reward
from draft_rewards.owlvit import Owlvit
from draft_rewards.owlvit_count import OwlvitCount

QUERIES = ("cat", "a red car", "something with so long a name that it must be cut")


def published(tiny: ModuleType, folder: Path, images: list[torch.Tensor], texts: list[list[str]]) -> Any:
    """What transformers says: processor and model as their documentation uses them."""
    config = json.loads((folder / "config.json").read_text())
    kind = {"owlvit": "OwlViT", "owlv2": "Owlv2"}[config["model_type"]]
    image_processor = tiny.published(kind).from_pretrained(folder)
    processor = getattr(transformers, f"{kind}Processor")(
        image_processor=image_processor, tokenizer=transformers.AutoTokenizer.from_pretrained(folder)
    )
    inputs = processor(text=texts, images=tiny.pictures(images, image_processor), truncation=True, return_tensors="pt")
    model = getattr(transformers, f"{kind}ForObjectDetection").from_pretrained(folder).eval()
    with torch.no_grad():
        return image_processor, model(**inputs)


def by_hand(logits: torch.Tensor, temperature: float = 1.0, aggregation: str = "softmax") -> torch.Tensor:
    """The documented equation, naively and in float64."""
    z, a, b = logits.double(), -6.906754778648554, 4.595119850134589
    u = a + torch.log1p(torch.exp(z - a)) - torch.log1p(torch.exp(z - b))
    odds = torch.exp(u / temperature)
    if aggregation == "mean":
        return (temperature * odds.mean(dim=1).log()).mean(dim=1)
    return temperature * odds.mean(dim=(1, 2)).log()


@pytest.mark.parametrize("aggregation", ["softmax", "mean"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_score_is_the_equation_on_the_published_logits(
    tiny: ModuleType, tiny_owl: Path, aggregation: str, temperature: float
) -> None:
    images = [tiny.levels(24, 24, seed) for seed in range(3)]
    texts = [[f"a photo of a {query}" for query in QUERIES]] * 3
    _, out = published(tiny, tiny_owl, images, texts)
    wanted = by_hand(out.logits, temperature, aggregation).float()
    score = draft.load("owlvit", model=str(tiny_owl), queries=QUERIES, temperature=temperature, aggregation=aggregation)
    found = score(torch.stack(images).float() / 255, ["", "", ""])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 1e-3, "the tiny model must tell images apart, or this test says nothing"


@pytest.mark.parametrize(("height", "width"), [(61, 37), (40, 97), (9, 131), (131, 9), (200, 300)])
def test_images_of_any_shape_score_as_published(tiny: ModuleType, tiny_owl: Path, height: int, width: int) -> None:
    image = tiny.levels(height, width)
    _, out = published(tiny, tiny_owl, [image], [["a photo of a cat"]])
    score = draft.load("owlvit", model=str(tiny_owl), queries="cat")
    # Pillow rounds resized images to 8 bits.
    torch.testing.assert_close(
        score(image[None].float() / 255, [""]), by_hand(out.logits).float(), atol=0.02, rtol=0.01
    )


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.5, 1.0])
def test_the_count_is_that_of_the_published_post_processing(tiny: ModuleType, tiny_owl: Path, threshold: float) -> None:
    images = [tiny.levels(24, 24, seed) for seed in range(4)]
    processor, out = published(tiny, tiny_owl, images, [list(QUERIES)] * 4)
    kept = processor.post_process_object_detection(out, threshold=threshold)
    count = draft.load("owlvit_count", model=str(tiny_owl), queries=QUERIES, template="{query}", threshold=threshold)
    found = count(torch.stack(images).float() / 255, [""] * 4)
    assert found.tolist() == [len(result["boxes"]) for result in kept]


def test_the_tiny_detectors_make_boxes_at_some_threshold(tiny: ModuleType, tiny_owl: Path) -> None:
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(4)]).float() / 255
    counts = [
        draft.load("owlvit_count", model=str(tiny_owl), queries=QUERIES, threshold=t)(images, [""] * 4).sum()
        for t in (0.01, 0.1, 0.5, 0.9)
    ]
    assert counts == sorted(counts, reverse=True) and 0 < sum(counts) < 4 * 4 * 9


@pytest.mark.parametrize("options", [{"queries": ("cat", "{prompt}")}, {"aggregation": "mean", "temperature": 0.2}])
def test_owlvit_keeps_the_contract(tiny_owl: Path, options: dict[str, Any]) -> None:
    check_reward(Owlvit(model=str(tiny_owl), **options), size=(40, 56))


def test_owlvit_count_keeps_the_contract(tiny_owl: Path) -> None:
    check_reward(OwlvitCount(model=str(tiny_owl), threshold=0.01), size=(40, 56))


def test_a_query_may_be_a_text_a_column_or_the_prompt_which_is_no_query_of_the_template(
    tiny: ModuleType, tiny_owl: Path
) -> None:
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(2)]).float() / 255
    prompts = draft.Prompts(["a photo of a dog", "a photo of a fox"], {"animal": ["dog", "fox"]})

    def scores(**options: Any) -> torch.Tensor:
        return draft.load("owlvit", model=str(tiny_owl), **options)(images, prompts)

    column = scores(queries="{animal}")
    torch.testing.assert_close(scores(), column)
    torch.testing.assert_close(scores(queries=["{animal}"]), column)
    torch.testing.assert_close(scores(queries="{animal}", template="a photo of a {query}"), column)
    torch.testing.assert_close(scores(queries="dog")[0], column[0])
    torch.testing.assert_close(scores(queries="a photo of a dog", template="{query}")[0], column[0])
    assert not torch.allclose(scores(queries="{animal}", template="{query}"), column, atol=1e-4)
    two = scores(queries=["dog", "{animal}"])
    assert not torch.allclose(two[1], column[1], atol=1e-4)
    torch.testing.assert_close(two[0], column[0])
    with pytest.raises(draft.DraftError, match="no column 'animal'"):
        draft.load("owlvit", model=str(tiny_owl), queries="{animal}")(images, ["x", "y"])


def test_each_query_is_encoded_once(tiny: ModuleType, tiny_owl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from draft_rewards._owlvit import Detector

    seen: list[str] = []
    original = Detector.query_vector
    monkeypatch.setattr(Detector, "query_vector", lambda self, text: seen.append(text) or original(self, text))
    score = draft.load("owlvit", model=str(tiny_owl), queries=["cat", "{prompt}"], template="{query}")
    images = tiny.levels(24, 24)[None].expand(3, -1, -1, -1).float() / 255
    for _ in range(2):
        score(images, ["dog", "fox", "dog"])
    assert sorted(seen) == ["cat", "dog", "fox"]


def test_a_box_counts_with_its_logit_between_the_bounds_and_levels_off_beyond_them() -> None:
    # u of the docstring in float32, for logits from surely absent to surely present.
    from torch.nn.functional import softplus

    z = torch.tensor([-40.0, -20.0, -10.0, -7.0, 0.0, 5.0, 20.0], requires_grad=True)
    a, b = -6.906754778648554, 4.595119850134589
    u = a + softplus(z - a) - softplus(z - b)
    (slope,) = torch.autograd.grad(u.sum(), z)
    assert (u >= a).all() and (u <= b).all() and (u.diff() >= 0).all()
    assert (slope > 0).all() and (slope < 1).all() and slope[4] > 0.98


def test_following_the_gradient_finds_and_removes(tiny: ModuleType, tiny_owl: Path) -> None:
    score = draft.load("owlvit", model=str(tiny_owl), queries="cat")
    start = torch.stack([tiny.levels(24, 24, seed) for seed in range(3)]).float() / 255
    for sign in (1, -1):
        images = start.clone()
        for _ in range(20):
            images.requires_grad_()
            (slope,) = torch.autograd.grad(score(images, [""] * 3).sum(), images)
            images = (images + sign * 0.01 * slope.sign()).detach().clamp(0, 1)
        assert (sign * (score(images, [""] * 3) - score(start, [""] * 3)) > 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queries": []}, "queries"),
        ({"queries": ["cat", ""]}, "queries"),
        ({"queries": 3}, "queries"),
        ({"template": "a photo"}, "must contain {query}"),
        ({"temperature": 0}, "greater than 0"),
        ({"absent": 0.9, "present": 0.5}, "absent must be less than present, 0.5"),
        ({"aggregation": "max"}, "'softmax' or 'mean'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(draft.DraftError) as raised:
        draft.load("owlvit", **options)
    assert said in str(raised.value)


def test_a_single_query_is_a_text_in_the_schema_too() -> None:
    schema = Owlvit.model_json_schema()["properties"]["queries"]
    assert {one.get("type") for one in schema["anyOf"]} == {"string", "array"}


def test_another_kind_of_model_and_missing_files_are_clear_errors(
    tiny_clip: Path, tiny_owl: Path, tmp_path: Path
) -> None:
    with pytest.raises(draft.DraftError, match="model_type must be owlvit or owlv2 .got 'clip'") as raised:
        draft.load("owlvit", model=str(tiny_clip))
    assert raised.value.where == "owlvit"
    with pytest.raises(draft.DraftError, match="cannot load the OWL-ViT detector") as raised:
        draft.load("owlvit_count", model=str(tmp_path / "nothing"))
    assert raised.value.where == "owlvit_count" and "draft models" in raised.value.hint
    folder = shutil.copytree(tiny_owl, tmp_path / "owl")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(draft.DraftError, match="has no preprocessor_config.json"):
        draft.load("owlvit", model=str(folder))


def test_missing_weights_are_refused_and_not_drawn_at_random(tiny_owl: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_owl, tmp_path / "owl")
    weights = load_file(folder / "model.safetensors")
    del weights["class_head.dense0.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(draft.DraftError, match="lack 1 of .*'s tensors, e.g. 'class_head.dense0.weight'"):
        draft.load("owlvit", model=str(folder))
