"""`adversarial` and `attack_rate` against transformers' own processor and forward pass, on tiny classifiers."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

import draft
from draft.testing import check_reward
from draft_rewards._classifier import find_class
from draft_rewards.adversarial import Adversarial
from draft_rewards.attack_rate import AttackRate


def published(tiny: ModuleType, folder: Path, images: list[torch.Tensor]) -> torch.Tensor:
    """Log-probabilities as transformers' documentation computes them."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = tiny.published("ViT" if model.config.model_type == "vit" else "ConvNext").from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([torch.log_softmax(model(tiny.pixels(processor, [image])).logits, dim=-1) for image in images])


@pytest.fixture
def unresized(tiny_classifier: Path, tmp_path: Path) -> Path:
    """A classifier whose processor leaves images of 24 pixels alone, so that nothing is rounded to 8 bits."""
    folder = shutil.copytree(tiny_classifier, tmp_path / "unresized")
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"crop_pct": 0.875', '"crop_pct": 1.0'))
    return folder


def test_the_scores_are_the_log_probabilities_of_the_published_path(tiny: ModuleType, unresized: Path) -> None:
    images = [tiny.levels(24, 24, seed) for seed in range(3)]
    wanted = published(tiny, unresized, images)
    batch = torch.stack(images).float() / 255
    for index in range(len(tiny.LABELS)):
        targeted = draft.load("adversarial", model=str(unresized), target=index)(batch, [""] * 3)
        torch.testing.assert_close(targeted, wanted[:, index], atol=1e-4, rtol=1e-4)
        untargeted = draft.load("adversarial", model=str(unresized), target=index, mode="untargeted")
        assert torch.equal(untargeted(batch, [""] * 3), -targeted)
    assert wanted.std(dim=0).max() > 1e-3, "the tiny model must tell images apart, or this test says nothing"


@pytest.mark.parametrize(("height", "width"), [(24, 24), (61, 37), (40, 97), (9, 131), (131, 9), (200, 300)])
def test_images_of_any_shape_score_as_published(
    tiny: ModuleType, tiny_classifier: Path, height: int, width: int
) -> None:
    image = tiny.levels(height, width)
    wanted = published(tiny, tiny_classifier, [image])
    score = draft.load("adversarial", model=str(tiny_classifier), target="goldfish")
    # Pillow rounds resized images to 8 bits.
    torch.testing.assert_close(score(image[None].float() / 255, [""]), wanted[:, 1], atol=0.03, rtol=0.02)


@pytest.mark.parametrize("options", [{"target": "goldfish"}, {"target": 3, "mode": "untargeted"}])
def test_adversarial_keeps_the_contract(tiny_classifier: Path, options: dict[str, Any]) -> None:
    check_reward(Adversarial(model=str(tiny_classifier), **options), size=(40, 56))


@pytest.mark.parametrize("mode", ["targeted", "untargeted"])
def test_attack_rate_keeps_the_contract(tiny_classifier: Path, mode: Any) -> None:
    check_reward(AttackRate(model=str(tiny_classifier), target="tiger cat", mode=mode), size=(40, 56))


def test_the_attack_rate_is_the_share_of_first_answers(tiny: ModuleType, unresized: Path) -> None:
    images = [tiny.levels(24, 24, seed) for seed in range(12)]
    answers = published(tiny, unresized, images).argmax(dim=-1)
    batch = torch.stack(images).float() / 255
    for index in range(len(tiny.LABELS)):
        fooled = draft.load("attack_rate", model=str(unresized), target=index)(batch, [""] * 12)
        assert fooled.tolist() == (answers == index).float().tolist()
        missed = draft.load("attack_rate", model=str(unresized), target=index, mode="untargeted")
        assert missed(batch, [""] * 12).tolist() == (answers != index).float().tolist()


def test_the_target_may_be_a_column(tiny: ModuleType, tiny_classifier: Path) -> None:
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(3)]).float() / 255
    score = draft.load("adversarial", model=str(tiny_classifier), target="{wanted}")
    prompts = draft.Prompts(["x", "y", "z"], {"wanted": ["goldfish", "3", "Tinca tinca"]})
    each = [draft.load("adversarial", model=str(tiny_classifier), target=t)(images, [""] * 3) for t in (1, 3, 0)]
    torch.testing.assert_close(score(images, prompts), torch.stack([each[i][i] for i in range(3)]))
    with pytest.raises(draft.DraftError, match="no column 'wanted'"):
        score(images, ["x", "y", "z"])
    with pytest.raises(draft.DraftError, match="unknown class .got 'goldfsh'.") as raised:
        score(images, draft.Prompts(["x", "y", "z"], {"wanted": ["goldfsh", "3", "crane"]}))
    assert (raised.value.where, raised.value.hint) == ("adversarial", "did you mean 'goldfish'?")


def test_classes_are_found_by_any_of_their_names(tiny: ModuleType) -> None:
    def find(name: str) -> int:
        return find_class(tiny.LABELS, name)

    assert [find(name) for name in ("tench", "TINCA TINCA", "tench, tinca tinca", "Tiger_Cat", "0", "6")] == [
        *(0, 0, 0, 3, 0, 6)
    ]
    # A whole label goes before one of several names.
    assert find("cardigan") == find("Cardigan") == 6
    assert find("corgi") == 5
    with pytest.raises(draft.DraftError, match="2 classes have this name .got 'Crane'.: 2 .crane. and 4 .crane.") as e:
        find("Crane")
    assert e.value.hint == "give the index"
    with pytest.raises(draft.DraftError, match="at most 6 .got 7."):
        find("7")
    with pytest.raises(draft.DraftError, match="unknown class .got 'house'.") as e:
        find("house")
    assert "7 classes, such as tench, goldfish" in e.value.hint


def test_an_unknown_target_is_told_before_anything_is_scored(tiny_classifier: Path) -> None:
    for name in ("adversarial", "attack_rate"):
        with pytest.raises(draft.DraftError, match="unknown class") as raised:
            draft.load(name, model=str(tiny_classifier), target="goldfich")
        assert (raised.value.where, raised.value.hint) == (name, "did you mean 'goldfish'?")


def test_a_target_is_needed_and_must_be_a_name_or_an_index() -> None:
    with pytest.raises(draft.DraftError, match="needs the option 'target'"):
        draft.load("adversarial")
    for wrong in (True, ["cat"], ""):
        with pytest.raises(draft.DraftError, match="target"):
            draft.load("attack_rate", target=wrong)


def test_following_the_gradient_fools_the_classifier(tiny: ModuleType, tiny_classifier: Path) -> None:
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(3)]).float() / 255
    score = draft.load("adversarial", model=str(tiny_classifier), target="goldfish")
    before = score(images, [""] * 3)
    for _ in range(20):
        images.requires_grad_()
        (slope,) = torch.autograd.grad(score(images, [""] * 3).sum(), images)
        images = (images + 0.02 * slope.sign()).detach().clamp(0, 1)
    assert (score(images, [""] * 3) > before).all()


def test_models_that_do_not_fit_are_clear_errors(tiny_clip: Path, tiny_classifier: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(draft.DraftError, match="cannot load the image classifier") as raised:
        draft.load("adversarial", model=str(tmp_path / "nothing"), target=0)
    assert "draft models" in raised.value.hint
    folder = shutil.copytree(tiny_classifier, tmp_path / "blind")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(draft.DraftError, match="has no preprocessor_config.json"):
        draft.load("adversarial", model=str(folder), target=0)
    folder = shutil.copytree(tiny_classifier, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.startswith("classifier"))
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(draft.DraftError, match=f"lack 1 of .*'s tensors, e.g. '{gone}'"):
        draft.load("adversarial", model=str(folder), target=0)
