"""`jpeg` and its independent metric `jpeg_size`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import draft
from draft.testing import check_reward
from draft_rewards.jpeg import Jpeg
from draft_rewards.jpeg_size import JpegSize


def scenes(count: int = 4, size: int = 64, grain: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (smooth + grain * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("quality", [1, 50, 99])
def test_jpeg_keeps_the_contract(quality: int) -> None:
    check_reward(Jpeg(quality=quality))


@pytest.mark.parametrize("above_flat", [False, True])
def test_jpeg_size_keeps_the_contract(above_flat: bool) -> None:
    check_reward(JpegSize(above_flat=above_flat))


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_the_differentiable_jpeg_is_close_to_pillows(quality: int) -> None:
    images = (scenes(grain=0.03) * 255).round() / 255
    theirs = []
    for image in images:
        file = io.BytesIO()
        array = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(array).save(file, format="JPEG", quality=quality, subsampling="4:2:0")
        rebuilt = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255
        theirs.append(-1000 * (image - rebuilt).square().mean())
    ours = draft.load("jpeg", quality=quality)(images, [""] * 4)
    # libjpeg smooths the chroma it upsamples, which costs it a little more at low quality.
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0.22, atol=0.05)


def test_smooth_images_score_higher_than_noisy_ones_and_are_smaller() -> None:
    prompts = [""] * 4
    smooth, noisy = scenes(), scenes(grain=0.1)
    assert (draft.load("jpeg")(smooth, prompts) > draft.load("jpeg")(noisy, prompts)).all()
    assert (draft.load("jpeg_size")(smooth, prompts) < draft.load("jpeg_size")(noisy, prompts)).all()


def test_following_the_gradient_of_jpeg_makes_the_file_smaller() -> None:
    # In free pixels only by a little: the reward is 0 for whatever JPEG leaves alone, and a JPEG of detail is still
    # full of detail. It is the generator that cannot make such images and draws calmer ones instead.
    images = scenes(grain=0.1)
    score, size = draft.load("jpeg"), draft.load("jpeg_size", above_flat=True)
    before = size(images, [""] * 4).mean()
    for _ in range(20):
        images.requires_grad_()
        (slope,) = torch.autograd.grad(score(images, [""] * 4).sum(), images)
        images = (images + 0.01 * slope.sign()).detach().clamp(0, 1)
    assert size(images, [""] * 4).mean() < 0.97 * before


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


@pytest.mark.parametrize("options", [{"quality": 0}, {"quality": 100}, {"quality": "high"}, {"qualty": 5}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(draft.DraftError):
        draft.load("jpeg", **options)
