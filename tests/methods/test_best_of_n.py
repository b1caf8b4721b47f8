"""Training on a model's own samples: the weights, and the loss they weigh."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draft.diffusion.sampling import predict, renoise
from draft.methods.best_of_n import concentration, denoising_loss, denoising_target, sample_weights

GRIDS = ["epsilon", "v_prediction", "flow"]
REWARDS = torch.tensor([0.0, 3.0, 1.0, 2.0, 5.0, 4.0], dtype=torch.float64)
PROMPTS = torch.tensor([7, 7, 7, 2, 2, 2])


def test_softmax_weights_add_up_to_n_and_without_sharpness_all_are_1() -> None:
    for sharpness in (0.0, 0.2, 30.0):
        weights = sample_weights(REWARDS, PROMPTS, selection="weighted", sharpness=sharpness)
        assert float(weights.sum()) == pytest.approx(6)
        if sharpness == 0:
            assert weights.tolist() == pytest.approx([1] * 6)
    ratio = sample_weights(REWARDS, PROMPTS, selection="weighted", sharpness=0.2)
    assert float(ratio[4] / ratio[3]) == pytest.approx(math.exp(0.2 * 3))


def test_per_prompt_weights_add_up_within_each_prompt() -> None:
    weights = sample_weights(REWARDS, PROMPTS, selection="weighted", sharpness=0.5, per_prompt=True)
    assert float(weights[:3].sum()) == pytest.approx(3) == float(weights[3:].sum())
    top = sample_weights(REWARDS, PROMPTS, selection="top", share=0.34, per_prompt=True)
    assert top.tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("selection", ["weighted", "top", "best"])
@pytest.mark.parametrize("per_prompt", [False, True])
def test_weights_stay_with_their_samples_in_any_order(selection, per_prompt: bool) -> None:
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    options = {"selection": selection, "sharpness": 0.3, "share": 0.5, "per_prompt": per_prompt}
    plain = sample_weights(REWARDS, PROMPTS, **options)
    torch.testing.assert_close(sample_weights(REWARDS[order], PROMPTS[order], **options), plain[order])


def test_the_best_share_and_the_best_of_each_prompt_are_kept() -> None:
    assert sample_weights(REWARDS, PROMPTS, selection="top", share=0.5).tolist() == [0, 1, 0, 0, 1, 1]
    assert sample_weights(REWARDS, PROMPTS, selection="top", share=0.01).tolist() == [0, 0, 0, 0, 1, 0]
    assert sample_weights(REWARDS, PROMPTS, selection="best").tolist() == [0, 1, 0, 0, 1, 0]


def test_concentration_is_the_share_of_samples_with_nine_tenths_of_the_weight() -> None:
    assert concentration(torch.ones(10)) == 0.9
    assert concentration(torch.tensor([0.0, 0, 10, 0])) == 0.25
    assert concentration(torch.tensor([5.0, 4, 0.5, 0.5])) == 0.5
    assert concentration(torch.tensor([5.0, 3.9, 0.6, 0.5])) == 0.75


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 4, 3, 6, 6), (2, 4, 10), (2, 4)])
@pytest.mark.parametrize("prediction", GRIDS)
def test_an_output_on_target_says_exactly_what_the_noised_latent_holds(toys, prediction: str, shape) -> None:
    grid, y, z = toys.toy_grid(6, prediction), toys.noise(*shape), toys.noise(*shape, seed=1)
    for i in range(6):
        target = denoising_target(grid, y, z, i)
        x0, e = predict(grid, renoise(grid, y, z, i), target, i)
        torch.testing.assert_close(e, z, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(x0, y, rtol=1e-9, atol=1e-9)
        assert denoising_loss(grid, target, y, z, i).tolist() == [0, 0]
        assert denoising_loss(grid, target + 0.5, y, z, i).tolist() == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize("prediction", GRIDS)
def test_the_weighted_loss_has_the_gradient_of_its_finite_differences_and_of_plain_training_at_weight_1(
    toys, prediction: str
) -> None:
    grid, net, y, z = (
        toys.toy_grid(6, prediction),
        toys.Linear(3, 6, nonlinear=True),
        toys.noise(4, 3),
        toys.noise(4, 3, seed=1),
    )

    def loss(weights: Tensor) -> Tensor:
        return (weights * denoising_loss(grid, net(renoise(grid, y, z, 2), 2), y, z, 2)).mean()

    weight, direction, h = net.weights[2], toys.noise(3, 3, seed=2), 1e-5
    weights = sample_weights(REWARDS[:4], PROMPTS[:4], selection="weighted", sharpness=0.4)
    (found,) = torch.autograd.grad(loss(weights), weight)
    sides = []
    for sign in (1, -2, 1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * h)
        sides.append(float(loss(weights).detach()))
    assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(float((found * direction).sum()), rel=1e-7)
    even = sample_weights(REWARDS[:4], PROMPTS[:4], selection="weighted", sharpness=0.0)
    x = renoise(grid, y, z, 2)
    plain = torch.nn.functional.mse_loss(net(x, 2), denoising_target(grid, y, z, 2))
    torch.testing.assert_close(
        torch.autograd.grad(loss(even), weight)[0], torch.autograd.grad(plain, weight)[0], rtol=1e-12, atol=1e-15
    )
