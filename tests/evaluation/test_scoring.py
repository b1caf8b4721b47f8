"""Metrics refuse images that they could only mis-score, and say whose they are."""

from __future__ import annotations

import math

import pytest
import torch

from draft.errors import DraftError
from draft.rewards.terms import build_term
from draft.scoring.rewards import load_rewards, numbers
from draft.types import Prompts

CPU = torch.device("cpu")


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1.5])
def test_a_broken_image_is_an_error_and_not_a_score(broken: float) -> None:
    (metric,) = load_rewards([build_term("size", {"use": "jpeg_size"})], CPU, check_images=True)
    images = torch.full((2, 3, 16, 16), 0.5)
    assert all(score > 0 for score in numbers(metric.scores(images, Prompts(["a", "b"]))))
    images[1, 0, 3, 3] = broken
    with pytest.raises(DraftError, match="images must be in .0, 1.") as raised:
        metric.scores(images, Prompts(["a", "b"]))
    assert raised.value.where == "rewards.size"
