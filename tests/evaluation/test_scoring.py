"""Metrics refuse images that they could only mis-score, and say whose they are."""

from __future__ import annotations

import math

import pytest
import torch

from draft.errors import DraftError
from draft.rewards.terms import build_term
from draft.scoring.measuring import load_metrics
from draft.types import Prompts

CPU = torch.device("cpu")


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1.5])
def test_a_broken_image_is_an_error_and_not_a_score(broken: float) -> None:
    (metric,) = load_metrics([build_term("size", {"use": "jpeg_size"})], CPU)
    images = torch.full((2, 3, 16, 16), 0.5)
    assert all(score > 0 for score in metric.see(Prompts(["a", "b"]), images))
    images[1, 0, 3, 3] = broken
    with pytest.raises(DraftError, match="images must be in .0, 1.") as raised:
        metric.see(Prompts(["a", "b"]), images)
    assert raised.value.where == "rewards.size"
