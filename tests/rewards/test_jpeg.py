"""`jpeg` and its independent metric `jpeg_size`."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import draft
from draft.testing import check_reward, pretended_accelerator
from draft_rewards._jpeg_codec import make_codec, quantization_tables
from draft_rewards.jpeg import Jpeg
from draft_rewards.jpeg_size import JpegSize


def scenes(count: int = 4, size: int = 64, grain: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (smooth + grain * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def file_of(image: torch.Tensor, quality: int) -> Image.Image:
    """The JPEG file that Pillow makes of an image (3, H, W), opened again."""
    file = io.BytesIO()
    levels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(levels).save(file, format="JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(file)


def pillow(images: torch.Tensor, quality: int) -> torch.Tensor:
    """What Pillow's files of images show, of the same shape."""
    shown = [np.array(file_of(image, quality)) for image in images]
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2) / 255


def pillows_scores(images: torch.Tensor, quality: int) -> torch.Tensor:
    return -1000 * (images - pillow(images, quality)).square().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def photographs(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(Path(__file__).parents[1] / "golden" / "photographs.py")


@pytest.mark.parametrize("rounding", ["exact", "smooth"])
@pytest.mark.parametrize("quality", [1, 50, 99])
def test_jpeg_keeps_the_contract(quality: int, rounding: Any) -> None:
    check_reward(Jpeg(quality=quality, rounding=rounding))


@pytest.mark.parametrize("above_flat", [False, True])
def test_jpeg_size_keeps_the_contract(above_flat: bool) -> None:
    check_reward(JpegSize(above_flat=above_flat))


@pytest.mark.parametrize(("quality", "within"), [(1, 0.004), (20, 0.004), (50, 0.004), (75, 0.004), (95, 0.01)])
def test_scores_of_photographs_are_those_of_pillows_files(photographs: ModuleType, quality: int, within: float) -> None:
    for name in ("face", "odd", "pillar", "stamp"):
        images = torch.from_numpy(photographs.photograph(name)).permute(2, 0, 1)[None] / 255
        ours, theirs = draft.load("jpeg", quality=quality)(images, [""]), pillows_scores(images, quality)
        torch.testing.assert_close(ours, theirs, rtol=within, atol=0)
        smooth = draft.load("jpeg", quality=quality, rounding="smooth")(images, [""])
        assert 0.02 < (smooth / theirs - 1).abs() < 0.25 and smooth > theirs


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 51, 90, 99])
def test_the_tables_are_those_in_pillows_files(quality: int) -> None:
    luma, chroma = ([*chain.from_iterable(table)] for table in quantization_tables(quality))
    tables = file_of(scenes(1)[0], quality).quantization  # type: ignore[attr-defined]
    assert ([*tables[0]], [*tables[1]]) == (luma, chroma)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 4), (7, 5), (17, 33), (30, 16), (9, 120)])
def test_pictures_of_any_shape_look_like_pillows(size: tuple[int, int]) -> None:
    whole = (scenes(grain=0.05, size=128) * 255).round() / 255
    images = whole[..., : size[0], : size[1]]
    ours = make_codec(20, torch.device("cpu"), rounding="exact")(images)
    assert ours.shape == images.shape and ours.dtype == images.dtype
    levels = ((ours - pillow(images, 20)).abs() * 255).round()
    assert (levels > 1).float().mean() < 0.02


def test_the_gradient_leads_towards_the_picture_of_the_file() -> None:
    images = scenes(grain=0.05).requires_grad_()
    (slope,) = torch.autograd.grad(draft.load("jpeg")(images, [""] * 4).sum(), images)
    shown = make_codec(50, torch.device("cpu"), rounding="exact")(images.detach())
    torch.testing.assert_close(slope, -2000 / images[0].numel() * (images.detach() - shown))


@pytest.mark.parametrize("quality", [5, 50, 95])
def test_the_smooth_codec_has_the_gradient_of_its_formula(quality: int) -> None:
    codec = make_codec(quality, torch.device("cpu"), rounding="smooth")
    images = (0.2 + 0.6 * scenes(1, size=13, grain=0.05)).double().requires_grad_()
    assert torch.autograd.gradcheck(codec, images, eps=1e-7, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("rounding", ["exact", "smooth"])
def test_scoring_does_not_wait_for_the_device(rounding: Any) -> None:
    with pretended_accelerator() as counts:
        score = Jpeg(rounding=rounding).load(torch.device("cuda"))
        images = scenes(2).to("cuda").requires_grad_()
        loaded = counts.copy()
        torch.autograd.grad(score(images, [""] * 2).sum(), images)
        assert not (counts - loaded).reads


def test_smooth_images_score_higher_than_noisy_ones_and_are_smaller() -> None:
    prompts = [""] * 4
    smooth, noisy = scenes(), scenes(grain=0.1)
    assert (draft.load("jpeg")(smooth, prompts) > draft.load("jpeg")(noisy, prompts)).all()
    assert (draft.load("jpeg_size")(smooth, prompts) < draft.load("jpeg_size")(noisy, prompts)).all()


@pytest.mark.parametrize("rounding", ["exact", "smooth"])
def test_following_the_gradient_of_jpeg_makes_the_file_smaller(rounding: str) -> None:
    # In free pixels the reward is 0 for whatever JPEG leaves alone, and a JPEG of detail is still full of detail. It is
    # the generator that cannot make such images and draws calmer ones instead.
    images = scenes(grain=0.1)
    score, size = draft.load("jpeg", quality=20, rounding=rounding), draft.load("jpeg_size", above_flat=True)
    before = size(images, [""] * 4).mean()
    for _ in range(40):
        images.requires_grad_()
        (slope,) = torch.autograd.grad(score(images, [""] * 4).sum(), images)
        images = (images + 0.005 * slope.sign()).detach().clamp(0, 1)
    assert size(images, [""] * 4).mean() < 0.7 * before


def test_a_flat_picture_has_no_bytes_above_flat() -> None:
    flat = torch.full((1, 3, 50, 70), 0.25)
    assert draft.load("jpeg_size", above_flat=True)(flat, [""]).item() == 0
    assert draft.load("jpeg_size")(flat, [""]).item() == pytest.approx(0.69, abs=0.1)


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), quality=st.integers(1, 95))
def test_any_size_and_quality_is_finite_with_a_finite_gradient(height: int, width: int, quality: int) -> None:
    images = (
        torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)).round(decimals=1).requires_grad_()
    )
    scores = draft.load("jpeg", quality=quality)(images, ["", ""])
    (slope,) = torch.autograd.grad(scores.sum(), images)
    assert scores.isfinite().all() and slope.isfinite().all()
    assert (draft.load("jpeg_size", quality=quality)(images, ["", ""]) > 0.5).all()


@pytest.mark.parametrize(
    "options", [{"quality": 0}, {"rounding": "soft"}, {"quality": 100}, {"quality": "high"}, {"qualty": 5}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(draft.DraftError):
        draft.load("jpeg", **options)
