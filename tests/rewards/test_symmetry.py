"""`symmetry`: closed forms, what does not change it, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import draft
from draft.testing import check_reward
from draft_rewards.symmetry import Symmetry


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def score(images: torch.Tensor, **options: Any) -> torch.Tensor:
    return draft.load("symmetry", **options)(images, [""] * len(images))


@pytest.mark.parametrize("axis", ["vertical", "horizontal"])
@pytest.mark.parametrize("measure", ["correlation", "difference"])
def test_symmetry_keeps_the_contract(axis: Any, measure: Any) -> None:
    check_reward(Symmetry(axis=axis, measure=measure))


@pytest.mark.parametrize(("axis", "dim"), [("vertical", -1), ("horizontal", -2)])
def test_the_most_and_the_least_symmetric_images(axis: str, dim: int) -> None:
    images = noise(2, 3, 7, 9)
    mirrored, negative = (images + images.flip(dim)) / 2, (images - images.flip(dim) + 1) / 2
    wanted = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(score(mirrored, axis=axis), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(score(negative, axis=axis), -wanted, rtol=0, atol=1e-4)
    assert torch.equal(score(mirrored, axis=axis, measure="difference"), 0 * wanted)
    half = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    half.narrow(dim, 0, 4).fill_(1)
    assert score(half, axis=axis, measure="difference").item() == -1
    assert score(half, axis=axis).item() == pytest.approx(-1, abs=1e-5)
    other = {"vertical": "horizontal", "horizontal": "vertical"}[axis]
    assert score(half, axis=other).item() == pytest.approx(1, abs=1e-5)
    assert score(torch.full((1, 3, 4, 4), 0.3)).item() == pytest.approx(0, abs=1e-6), "nothing to compare"


def test_the_correlation_weighs_the_symmetric_part_against_the_antisymmetric_one() -> None:
    images = noise(3, 3, 8, 10)
    centred = images - images.mean(dim=(2, 3), keepdim=True)
    even, odd = (((centred + sign * centred.flip(-1)) / 2).square().sum(dim=(1, 2, 3)) for sign in (1, -1))
    torch.testing.assert_close(score(images), (even - odd) / (even + odd), rtol=0, atol=1e-4)


def test_neither_brightness_nor_contrast_nor_the_mirror_changes_the_correlation() -> None:
    images = noise(2, 3, 8, 8)
    tints = torch.tensor([0.05, 0.3, 0.6], dtype=torch.float64).view(1, 3, 1, 1)
    for other in (0.4 * images + tints, 1 - images, images.flip(-1), images.flip(-2)):
        torch.testing.assert_close(score(other), score(images), rtol=0, atol=1e-4)


def test_the_gradient_is_that_of_the_closed_form() -> None:
    images = noise(2, 3, 6, 8).requires_grad_()
    found = score(images)
    (slope,) = torch.autograd.grad(found.sum(), images)
    centred = (images - images.mean(dim=(2, 3), keepdim=True)).detach()
    power = centred.square().sum(dim=(1, 2, 3), keepdim=True) + 3 * 6 * 8 * 1e-6
    wanted = 2 * (centred.flip(-1) - found.detach().view(2, 1, 1, 1) * centred) / power
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)
