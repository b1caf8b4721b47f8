"""Photographs, whole and in extreme shapes: preprocessing and scores as with the published processors and models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

import draft
from draft.rewards.loading import find_reward
from draft_rewards._preprocessing import Preprocessing, parse_preprocessing

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = {
    model: entry["config"]
    for model, entry in json.loads((GOLDEN / "processors.json").read_text(encoding="utf-8")).items()
    if model != "provenance"
}
RECORDED = json.loads((GOLDEN / "preprocessing.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def photographs(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(GOLDEN / "photographs.py")


def kind(config: dict[str, Any]) -> str:
    named = config.get("feature_extractor_type") or config.get("image_processor_type") or "ViT"
    return re.sub("FeatureExtractor|ImageProcessor", "", named)


def processed(photographs: ModuleType, name: str, ours: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
    """A photograph as uint8 (3, H, W), and what we make of it in levels of 8 bits, before normalisation."""
    image = torch.from_numpy(photographs.photograph(name)).permute(2, 0, 1)
    pixels = ours(image[None].float() / 255)[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ours.mean, ours.std))
    return image, (pixels * std + mean) * 255


@pytest.mark.parametrize("name", list(RECORDED["photographs"]))
@pytest.mark.parametrize("model", list(CONFIGS))
def test_it_is_the_published_processor_of_the_installed_transformers(
    tiny: ModuleType, photographs: ModuleType, model: str, name: str
) -> None:
    config = CONFIGS[model]
    ours = parse_preprocessing(config, kind=kind(config))
    image, levels = processed(photographs, name, ours)
    options = {key: value for key, value in config.items() if not key.endswith(("_type", "_class"))}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ours.mean, ours.std))
    theirs = (tiny.pixels(tiny.published(kind(config), **options), [image])[0] * std + mean) * 255
    error = (levels - theirs).abs()
    # Pillow rounds to whole levels twice, 0.28 on average; OWLv2 resizes without it.
    assert error.max() < (0.01 if "owlv2" in model else 1.2)
    assert error.mean() < (0.001 if "owlv2" in model else 0.33)


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: f"{case['model']}-{case['photograph']}")
def test_it_is_what_the_processors_made_of_photographs_when_recorded(
    photographs: ModuleType, case: dict[str, Any]
) -> None:
    config = CONFIGS[case["model"]]
    picture = photographs.photograph(case["photograph"])
    assert photographs.digest(picture) == RECORDED["photographs"][case["photograph"]], "another photograph"
    _, levels = processed(photographs, case["photograph"], parse_preprocessing(config, kind=kind(config)))
    assert list(levels.shape) == case["shape"]
    samples = torch.tensor(case["samples"])
    rows, columns = samples[:, 0].long(), samples[:, 1].long()
    error = (levels[:, rows, columns].T - samples[:, 2:]).abs()
    assert error.max() < 1.1 and error.mean() < 0.4
    assert (levels.mean(dim=(1, 2)) - torch.tensor(case["mean"])).abs().max() < 0.03


def test_without_antialiasing_or_with_another_filter_these_tests_would_fail(photographs: ModuleType) -> None:
    ours = parse_preprocessing(CONFIGS["openai/clip-vit-large-patch14"])
    image, levels = processed(photographs, "astronaut", ours)
    plain = torch.nn.functional.interpolate(image[None].float(), size=(224, 224), mode="bicubic")[0].clamp(0, 255)
    assert (plain - levels).abs().mean() > 2
    _, linear = processed(
        photographs, "astronaut", parse_preprocessing({**CONFIGS["openai/clip-vit-large-patch14"], "resample": 2})
    )
    assert (linear - levels).abs().mean() > 1


def score_of_the_published_path(tiny: ModuleType, folder: Path, image: torch.Tensor) -> torch.Tensor:
    """What transformers' processor and model of a folder make of an image: log-probabilities, or logits for a query."""
    config = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    pixels = tiny.pixels(tiny.published(kind(config)).from_pretrained(folder), [image])
    network = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, network).from_pretrained(folder).eval()
    with torch.no_grad():
        if "Classification" in network:
            return model(pixel_values=pixels).logits.log_softmax(dim=-1)
        tokens = transformers.AutoTokenizer.from_pretrained(folder)(["a photo of a cat"], return_tensors="pt")
        return model(**tokens, pixel_values=pixels).logits


def test_a_resnet_50_scores_photographs_as_published(tiny: ModuleType, photographs: ModuleType, tmp_path: Path) -> None:
    """The architecture of microsoft/resnet-50 itself, with random weights and statistics of three photographs."""
    images = [torch.from_numpy(photographs.photograph(name)).permute(2, 0, 1) for name in photographs.SQUARES]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        model.train()((torch.stack(images).float() / 255 - 0.45) / 0.225)
        # Fresh weights hardly tell classes apart.
        model.classifier[1].weight.mul_(3)
    model.save_pretrained(tmp_path)
    # Without resizing: fifty random layers make much of Pillow's rounding.
    config = {**CONFIGS["microsoft/resnet-50"], "crop_pct": 1.0}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    wanted = torch.cat([score_of_the_published_path(tiny, tmp_path, image) for image in images])
    assert wanted.std(dim=1).min() > 0.3
    for index in (int(wanted[0].argmax()), 17):
        score = draft.load("adversarial", model=str(tmp_path), target=index)
        found = score(torch.stack(images).float() / 255, [""] * 3)
        torch.testing.assert_close(found, wanted[:, index], atol=2e-3, rtol=1e-3)


@pytest.fixture(scope="module", params=["google/owlvit-base-patch32", "google/owlv2-base-patch16-ensemble"])
def owl(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with the published sizes of image and patches, 576 and 3600 boxes, but narrow and of two layers."""
    kind, side, patch = {"owlvit": ("OwlViT", 768, 32), "owlv2-": ("Owlv2", 960, 16)}[request.param[7:13]]
    narrow = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**narrow, **tiny.TEXT, "pad_token_id": 0},
        vision_config={**narrow, "image_size": side, "patch_size": patch},
        projection_dim=64,
    )

    def make() -> Any:
        model = getattr(transformers, f"{kind}ForObjectDetection")(config)
        # logit = 8 * cosine - 4, as in the tiny detectors
        for linear, value in ((model.class_head.logit_shift, -0.5), (model.class_head.logit_scale, 7.0)):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.constant_(linear.bias, value)
        return model

    folder = tmp_path_factory.mktemp("owl")
    tiny._save(folder, make)
    tiny._save_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(CONFIGS[request.param]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["astronaut", "odd", "pillar"])
def test_detectors_of_published_sizes_score_photographs_as_published(
    tiny: ModuleType, photographs: ModuleType, owl: Path, name: str
) -> None:
    image = torch.from_numpy(photographs.photograph(name)).permute(2, 0, 1)
    logits = score_of_the_published_path(tiny, owl, image)
    assert logits.shape[1] in (576, 3600) and logits.std() > 0.01
    options = {"model": str(owl), "queries": "cat"}
    pixels = image[None].float() / 255
    a, b = -6.906754778648554, 4.595119850134589
    u = a + torch.nn.functional.softplus(logits - a) - torch.nn.functional.softplus(logits - b)
    wanted = (u.logsumexp(dim=(1, 2)) - torch.log(torch.tensor(float(logits.shape[1])))).item()
    assert draft.load("owlvit", **options)(pixels, [""]).item() == pytest.approx(wanted, abs=1e-3)
    surest = logits.flatten().sigmoid()
    threshold = surest.quantile(0.9).item()
    count = draft.load("owlvit_count", threshold=threshold, **options)(pixels, [""]).item()
    assert count == pytest.approx((surest > threshold).sum().item(), abs=0.01 * logits.shape[1])


def test_what_the_jpeg_rewards_call_typical_is_what_photographs_score(photographs: ModuleType) -> None:
    images = [torch.from_numpy(photographs.photograph(name)).permute(2, 0, 1) for name in photographs.FILES]
    for name in ("jpeg", "jpeg_size"):
        score = draft.load(name)
        found = sorted(score(image[None].float() / 255, [""]).item() for image in images)
        low, high = (float(one) for one in re.findall(r"-?\d+(?:\.\d+)?", find_reward(name).typical)[:2])
        assert (found[0], found[-1]) == pytest.approx((low, high), abs=0.05 if name == "jpeg" else 0.5)
