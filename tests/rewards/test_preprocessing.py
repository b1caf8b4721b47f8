"""Preprocessing in tensors against the image processors of transformers, on odd sizes and extreme shapes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from draft_rewards._preprocessing import Preprocessing, find_preprocessing, parse_preprocessing, read_preprocessing

SIZES = [(24, 24), (61, 37), (40, 97), (300, 225), (20, 18), (9, 131), (131, 9), (1, 50)]
COLOURS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
SQUARE, SHORT = {"height": 24, "width": 24}, {"shortest_edge": 24}
PROCESSORS = [
    ("CLIP", {"size": SHORT, "crop_size": SQUARE}),
    ("Bit", {"size": {"shortest_edge": 30}, "crop_size": SQUARE}),
    ("Blip", {"size": SQUARE}),
    ("ConvNext", {"size": SHORT, "crop_pct": 0.875}),
    ("ConvNext", {"size": SHORT, "crop_pct": 1.0, "resample": 2}),
    ("ConvNext", {"size": {"shortest_edge": 384}}),
    ("DeiT", {"size": {"height": 28, "width": 28}, "crop_size": SQUARE}),
    ("EfficientNet", {"size": SQUARE}),
    ("EfficientNet", {"size": SQUARE, "resample": 0, "include_top": False}),
    ("MobileNetV1", {"size": {"shortest_edge": 27}, "crop_size": SQUARE}),
    ("MobileNetV2", {"size": {"shortest_edge": 27}, "crop_size": SQUARE}),
    ("OwlViT", {"size": SQUARE}),
    ("OwlViT", {"size": {"height": 48, "width": 72}}),
    ("Siglip", {"size": SQUARE}),
    ("ViT", {"size": SQUARE}),
    ("ViT", {"size": SQUARE, "do_normalize": False}),
    ("ViT", {"do_resize": False}),
]


@pytest.mark.parametrize(("name", "options"), PROCESSORS, ids=[f"{n}-{o}" for n, o in PROCESSORS])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_it_equals_the_image_processor_of_transformers(
    tiny: ModuleType, tmp_path: Path, name: str, options: dict[str, Any], height: int, width: int
) -> None:
    processor = tiny.published(name, **COLOURS, **options)
    processor.save_pretrained(tmp_path)
    ours = read_preprocessing(str(tmp_path), {})
    image = tiny.levels(height, width)
    theirs, mine = tiny.pixels(processor, [image]), ours(image[None].float() / 255)
    assert mine.shape == theirs.shape
    # Pillow rounds to 8 bits after each of its two resizing passes: at most about one and a half levels apart. What
    # is to become both wider and less high Pillow 13 resizes vertically first, and clips other overshoots on the way.
    turned = ours.resized != (0, 0) and height > ours.resized[0] and width < ours.resized[1]
    assert ((mine - theirs).abs() * torch.tensor(ours.std).view(1, 3, 1, 1)).max() * 255 < (5 if turned else 1.6)


@pytest.mark.parametrize(("height", "width"), [*SIZES, (25, 24), (100, 100), (700, 300)])
@pytest.mark.parametrize("pad", [True, False])
def test_owlv2s_blurred_resizing_is_scipys(
    tiny: ModuleType, tmp_path: Path, height: int, width: int, pad: bool
) -> None:
    if tiny.BEFORE_5 and height == 1 and not pad:
        pytest.skip("the processor of transformers 4 takes a row for a column, whatever it is given as the format")
    processor = tiny.published("Owlv2", size=SQUARE, do_pad=pad, **COLOURS)
    processor.save_pretrained(tmp_path)
    ours = read_preprocessing(str(tmp_path), {})
    image = tiny.levels(height, width)
    # No 8-bit numbers on the way, so this one is exact.
    torch.testing.assert_close(ours(image[None].float() / 255), tiny.pixels(processor, [image]), atol=3e-6, rtol=1e-5)


def test_no_resizing_is_exact(tiny: ModuleType, tmp_path: Path) -> None:
    processor = tiny.published("CLIP", size=SHORT, crop_size=SQUARE, **COLOURS)
    processor.save_pretrained(tmp_path)
    ours, image = read_preprocessing(str(tmp_path), {}), tiny.levels(24, 24)
    torch.testing.assert_close(ours(image[None].float() / 255), tiny.pixels(processor, [image]), atol=2e-6, rtol=1e-5)


def test_sizes_are_read_in_the_old_form_and_in_the_new_one() -> None:
    old = parse_preprocessing({"size": 224, "crop_size": 224, "resample": 3}, kind="CLIP")
    new = parse_preprocessing(
        {
            "image_processor_type": "CLIPImageProcessorFast",
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
        }
    )
    assert old == new == Preprocessing()
    fixed = parse_preprocessing(
        {"size": {"height": 64, "width": 48}, "do_center_crop": False, "do_normalize": False}, kind="CLIP"
    )
    assert (fixed.shortest_edge, fixed.resized, fixed.cropped, fixed.std) == (0, (64, 48), (0, 0), (1.0, 1.0, 1.0))


def test_the_published_files_of_the_default_models_are_read_right() -> None:
    # As they are on the hub: google/owlvit-base-patch32 and microsoft/resnet-50.
    owl = parse_preprocessing(
        {"feature_extractor_type": "OwlViTFeatureExtractor", "size": [768, 768], "crop_size": 768, "resample": 3}
        | {"do_center_crop": False, "do_convert_rgb": True, "do_normalize": True, "do_resize": True}
    )
    assert owl == Preprocessing(shortest_edge=0, resized=(768, 768), cropped=(0, 0))
    resnet = parse_preprocessing(
        {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 224, "resample": 3}
        | {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    )
    assert (resnet.shortest_edge, resnet.cropped, resnet.std) == (256, (224, 224), (0.229, 0.224, 0.225))
    vit = parse_preprocessing({"feature_extractor_type": "ViTFeatureExtractor", "size": 224})
    assert (vit.shortest_edge, vit.resized, vit.mode) == (0, (224, 224), "bilinear")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"image_processor_type": "CLIPImageProcessor", "resample": 1}, "resample"),
        ({"image_processor_type": "LevitImageProcessor"}, "must be one of Bit, Blip, CLIP, .* 'LevitImageProcessor'"),
        ({"size": 224}, "got 'none'"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": 1 / 127.5}, "1/255"),
        ({"image_processor_type": "ViTImageProcessor", "do_rescale": False}, "1/255"),
    ],
)
def test_what_is_not_done_here_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_preprocessing(config)


def test_a_folder_without_the_file_has_no_preprocessing(tmp_path: Path) -> None:
    assert find_preprocessing(str(tmp_path), {}) is None
    with pytest.raises(ValueError, match="it has no preprocessor_config.json"):
        read_preprocessing(str(tmp_path), {})


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest-exact", "blurred"])
def test_the_gradient_is_right_in_every_mode(mode: str) -> None:
    step = Preprocessing(squared=True, shortest_edge=0, resized=(5, 4), cropped=(3, 4), mode=mode)
    images = torch.rand(1, 3, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.6 + 0.2
    assert torch.autograd.gradcheck(step, images.requires_grad_())
