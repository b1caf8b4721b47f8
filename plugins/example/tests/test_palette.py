"""The reward keeps its contract, and scores what it should."""

from __future__ import annotations

import draft.testing
import pytest
import torch

from draft_reward_palette import Palette


@pytest.mark.parametrize("spot", [1, 3])
def test_the_reward_keeps_its_contract(spot: int) -> None:
    draft.testing.check_reward(Palette(inks="#1d3557 #e63946 #f1faee", spot=spot))


def test_each_image_may_have_inks_of_its_own() -> None:
    presses = draft.Prompts(["a cat", "a dog"], {"press": ["#1d3557 #f1faee", "#6a040f #ffba08 #f1faee"]})
    draft.testing.check_reward(Palette(inks="{press}"), prompts=presses)


def test_grey_is_a_pattern_of_black_and_white_but_not_an_ink() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    pattern = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).expand(1, 3, 8, 8).float()
    assert draft.load("palette")(grey, [""]).tolist() == [-25.0]
    assert draft.load("palette")(pattern, [""]).tolist() == [0.0]
    assert draft.load("palette", inks="#808080", spot=2)(pattern, [""]).item() == pytest.approx(0, abs=1e-3)


def test_a_misspelt_ink_is_reported() -> None:
    with pytest.raises(draft.DraftError, match="must be colours such as"):
        draft.load("palette", inks="#1d3557 blue")
    with pytest.raises(draft.DraftError, match="must be colours such as"):
        draft.load("palette", inks="{press}")(torch.ones(1, 3, 8, 8), draft.Prompts(["a cat"], {"press": ["blue"]}))
