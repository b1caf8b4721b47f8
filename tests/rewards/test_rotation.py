"""`rotation`: closed forms for each angle, what does not change it, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import draft
from draft.testing import check_reward
from draft_rewards.rotation import Rotation


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def score(images: torch.Tensor, angle: Any = 180, **options: Any) -> torch.Tensor:
    return draft.load("rotation", angle=angle, **options)(images, [""] * len(images))


def turn(images: torch.Tensor, quarters: int) -> torch.Tensor:
    return images.rot90(quarters, dims=(2, 3))


@pytest.mark.parametrize("angle", [90, 180, "all"])
@pytest.mark.parametrize("measure", ["correlation", "difference"])
def test_rotation_keeps_the_contract(angle: Any, measure: Any) -> None:
    check_reward(Rotation(angle=angle, measure=measure), size=(48, 64))


def test_the_most_and_the_least_similar_images() -> None:
    images = noise(2, 3, 8, 8)
    turned = [turn(images, quarters) for quarters in range(4)]
    fourfold = sum(turned) / 4
    alternating = 0.5 + (turned[0] - turned[1] + turned[2] - turned[3]) / 8
    ones = torch.ones(2, dtype=torch.float64)
    for angle in (90, 180, 270, "all"):
        torch.testing.assert_close(score(fourfold, angle), ones, rtol=0, atol=1e-3)
        torch.testing.assert_close(score(fourfold, angle, measure="difference"), 0 * ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(score(alternating, 90), -ones, rtol=0, atol=1e-3)
    torch.testing.assert_close(score(alternating, 180), ones, rtol=0, atol=1e-3)
    torch.testing.assert_close(score(0.5 + (turned[0] - turned[2]) / 2, 180), -ones, rtol=0, atol=1e-4)
    assert score(torch.full((1, 3, 4, 4), 0.3)).item() == pytest.approx(0, abs=1e-6), "nothing to compare"


def test_the_correlation_is_the_one_of_the_textbook() -> None:
    images = noise(2, 1, 6, 6).expand(-1, 3, -1, -1)
    for angle, quarters in ((90, 1), (180, 2)):
        pairs = zip(images.flatten(1), turn(images, quarters).flatten(1), strict=True)
        wanted = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
        torch.testing.assert_close(score(images, angle), wanted, rtol=0, atol=1e-4)


def test_left_and_right_turns_agree_and_all_is_their_mean() -> None:
    images = noise(2, 3, 9, 9)
    torch.testing.assert_close(score(images, 90), score(images, 270))
    torch.testing.assert_close(score(images, "all"), (2 * score(images, 90) + score(images, 180)) / 3)
    for other in (0.5 * images + 0.2, 1 - images, turn(images, 1), turn(images, 2)):
        torch.testing.assert_close(score(other, "all"), score(images, "all"), rtol=0, atol=1e-4)


def test_a_quarter_turn_compares_the_square_in_the_middle_and_a_half_turn_everything() -> None:
    wide = noise(1, 3, 8, 14).requires_grad_()
    torch.testing.assert_close(score(wide, 90), score(wide[..., 3:11], 90))
    (slope,) = torch.autograd.grad(score(wide, 90).sum(), wide)
    assert (slope[..., 3:11] != 0).all() and (slope[..., :3] == 0).all() and (slope[..., 11:] == 0).all()
    assert not torch.allclose(score(wide, 180), score(wide[..., 3:11], 180), atol=1e-3)


def test_the_gradient_is_that_of_the_closed_form() -> None:
    images = noise(1, 3, 8, 8).requires_grad_()
    found = score(images, 90)
    (slope,) = torch.autograd.grad(found.sum(), images)
    centred = (images - images.mean(dim=(2, 3), keepdim=True)).detach()
    power = centred.square().sum() + centred.numel() * 1e-6
    wanted = (turn(centred, 1) + turn(centred, 3) - 2 * found.item() * centred) / power
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)


def test_an_angle_that_is_no_quarter_turn_is_refused() -> None:
    with pytest.raises(draft.DraftError, match=r"must be 90, 180, 270 or 'all' \(got 45\)"):
        draft.load("rotation", angle=45)
