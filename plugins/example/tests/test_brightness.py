"""The whole test of a reward: the conformance kit, and one number that is known."""

from __future__ import annotations

import pytest
import torch
from draft_reward_example import Brightness

import draft.testing


@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_brightness_keeps_the_contract(target: float) -> None:
    draft.testing.check_reward(Brightness(target=target))


def test_a_grey_image_is_half_bright() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert Brightness(target=1.0).load(torch.device("cpu"))(grey, [""]).tolist() == [-0.5]
