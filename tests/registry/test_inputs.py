"""`draft.load` refuses what a reward could only mis-score, and leaves the rest alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import draft

IMAGES = torch.full((2, 3, 8, 8), 0.5)
NAN = IMAGES.clone().fill_(float("nan"))


@pytest.mark.parametrize(
    ("images", "prompts", "told", "hint"),
    [
        (IMAGES * 255, ["a", "b"], "images must be in [0, 1] (got 127.5 to 127.5)", "divide levels of 8 bits by 255"),
        (IMAGES * 3 - 2, ["a", "b"], "images must be in [0, 1] (got -0.5 to -0.5)", "images / 2 + 0.5"),
        (NAN, ["a", "b"], "images must be in [0, 1] (got NaN)", ""),
        (IMAGES.byte(), ["a", "b"], "images must be floating point, 0 to 1 (got torch.uint8)", "images.float() / 255"),
        (IMAGES.permute(0, 2, 3, 1), ["a", "b"], "(got (2, 8, 8, 3))", "images.permute(0, 3, 1, 2)"),
        (IMAGES[:, :1], ["a", "b"], "images must have the shape (B, 3, H, W) (got (2, 1, 8, 8))", "repeat a grey"),
        (IMAGES[0], ["a"], "(got (3, 8, 8))", "images[None]"),
        (IMAGES[:0], [], "at least one image", ""),
        (np.ones((1, 3, 8, 8)), ["a"], "images must be a torch tensor (got ndarray)", ""),
        (IMAGES, ["a"], "there must be one prompt per image, 2 (got 1)", ""),
        (IMAGES, "ab", "prompts must be one text per image (got the text 'ab')", "a list: ['ab']"),
    ],
)
def test_bad_input_is_told_with_a_way_out(images: Any, prompts: Any, told: str, hint: str) -> None:
    with pytest.raises(draft.DraftError) as raised:
        draft.load("jpeg")(images, prompts)
    assert told in raised.value.what and hint in raised.value.hint
    assert raised.value.where == "jpeg"


def test_good_input_scores_as_without_the_check_gradient_and_rounding_included() -> None:
    from draft_rewards.jpeg import Jpeg

    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    plain, checked = Jpeg().load(torch.device("cpu")), draft.load("jpeg")
    prompts = draft.Prompts(["a", "b"], {"word": ["x", "y"]})
    slopes = [torch.autograd.grad(score(images, prompts).sum(), images)[0] for score in (plain, checked)]
    assert torch.equal(*slopes) and slopes[0].any()
    assert checked(torch.full((1, 3, 8, 8), 1 + 1e-4), ["a"]).isfinite().all()
