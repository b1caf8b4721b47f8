"""Noise optimisation, reward guidance and the best of several samples against closed forms, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from draft.diffusion.control.noise import optimise_noise
from draft.diffusion.control.search import best_of, modified
from draft.diffusion.control.steering import steer
from draft.diffusion.control.values import Guided, NoiseOpt
from draft.diffusion.sampling import sample
from draft.diffusion.schedule import FlowSchedule, Grid, Schedule, make_grid
from draft.diffusion.settings import SamplerSettings

SHAPES = [(2, 3, 4, 4), (2, 3, 2, 4, 4), (2, 3, 10)]
SD = Schedule(tuple(float(a) for a in np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)))
SCHEDULES = {
    "epsilon": SD,
    "v_prediction": Schedule(SD.alphas_cumprod, "v_prediction"),
    "flow": FlowSchedule(shift=3.0),
}


def grid_of(prediction: str, steps: int = 5, eta: float = 0.0) -> Grid:
    return make_grid(SCHEDULES[prediction], SamplerSettings(num_inference_steps=steps, eta=eta))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x: Tensor, i: int) -> Tensor:
    """Not linear, other at each step, and each sample for itself."""
    return torch.sin((1 + 0.2 * i) * x) + 0.3 * x.roll(1, dims=1)


def counted(output: Callable[[Tensor, int], Tensor]) -> tuple[Callable[[Tensor, int], Tensor], list[bool]]:
    calls: list[bool] = []

    def call(x: Tensor, i: int) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return output(x, i)

    return call, calls


def bumpy(x: Tensor) -> tuple[Tensor, Tensor]:
    """R = mean of sin x0 - x0^2 / 4, and its gradient."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        r = (leaf.sin() - leaf.square() / 4).flatten(1).mean(1)
        return r.detach(), torch.autograd.grad(r.sum(), leaf)[0]


def nothing(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(x), dtype=x.dtype), torch.zeros_like(x)


# --- noise_opt ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_a_reward_the_noise_keeps_its_direction_and_gets_the_likeliest_length(shape) -> None:
    z = 3 * randn(*shape)
    seen: list[Tensor] = []

    def output(x: Tensor, i: int) -> Tensor:
        if i == 0:
            seen.append(x.detach())
        return network(x, i)

    method = NoiseOpt(iterations=200, learning_rate=5.0, momentum=0.5)
    optimise_noise(output, grid_of("epsilon", 1), z, nothing, method)
    last = seen[-1].flatten(1)
    d = last.shape[1]
    torch.testing.assert_close(last.norm(dim=1), torch.full((2,), math.sqrt(d - 1), dtype=torch.float64))
    torch.testing.assert_close(last / last.norm(dim=1)[:, None], z.flatten(1) / z.flatten(1).norm(dim=1)[:, None])


@pytest.mark.parametrize("prediction", list(SCHEDULES))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_first_step_on_the_noise_follows_the_finite_difference_of_the_reward(prediction: str, shape) -> None:
    grid, z = grid_of(prediction), randn(*shape)
    seen: list[Tensor] = []

    def output(x: Tensor, i: int) -> Tensor:
        if i == 0:
            seen.append(x.detach())
        return network(x, i)

    plain = NoiseOpt(iterations=2, learning_rate=1.0, momentum=0.0, max_grad_norm=0, regulariser=0)
    optimise_noise(output, grid, z, bumpy, plain)
    direction, h = randn(*shape, seed=1), 1e-5
    sides = [bumpy(sample(network, grid, z + sign * h * direction))[0].sum() for sign in (1, -1)]
    moved = ((seen[-1] - z) * direction).sum()
    assert float(moved) == pytest.approx(float((sides[0] - sides[1]) / (2 * h)), rel=1e-7)


def test_the_optimiser_is_pytorchs_sgd_with_its_clipping() -> None:
    grid, z = grid_of("epsilon", 2), randn(1, 3, 4, 4)
    method = NoiseOpt(iterations=6, learning_rate=0.7, max_grad_norm=0.1)
    seen: list[Tensor] = []

    def watched(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return bumpy(x)

    optimise_noise(network, grid, z, watched, method)
    theirs = z.clone().requires_grad_()
    optimiser = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    for found in seen:
        x = sample(network, grid, theirs)
        torch.testing.assert_close(found, x.detach(), rtol=1e-4, atol=1e-4)  # PyTorch's clipping adds 1e-6 to the norm
        optimiser.zero_grad()
        norm = theirs.norm()
        d = theirs.numel()
        loss = -(x.sin() - x.square() / 4).mean() + 0.01 * (norm.square() / 2 - (d - 1) * norm.log())
        loss.backward()
        torch.nn.utils.clip_grad_norm_([theirs], 0.1)
        optimiser.step()


@pytest.mark.parametrize("recorded", [None, 0, 2, 5])
def test_what_comes_back_is_the_best_of_all_iterations(recorded: int | None) -> None:
    grid, z = grid_of("epsilon"), randn(3, 2, 4, 4)
    rewards: list[Tensor] = []

    def watched(x: Tensor) -> tuple[Tensor, Tensor]:
        rewards.append(bumpy(x)[0])
        return bumpy(x)

    method = NoiseOpt(iterations=12, learning_rate=2.0, recorded=recorded)
    found = optimise_noise(network, grid, z, watched, method)
    best, when = torch.stack(rewards).max(0)
    assert len(rewards) == 12
    torch.testing.assert_close(found.rewards, best)
    torch.testing.assert_close(found.iterations, when.to(best))
    torch.testing.assert_close(rewards[0], bumpy(sample(network, grid, z))[0])
    assert (found.rewards > rewards[0]).all()
    torch.testing.assert_close(sample(network, grid, found.noise), found.latents)


def test_an_image_is_optimised_alike_whatever_it_is_batched_with() -> None:
    grid, z = grid_of("flow"), randn(3, 2, 4, 4)
    method = NoiseOpt(iterations=5, learning_rate=2.0)
    together = optimise_noise(network, grid, z, bumpy, method)
    alone = optimise_noise(network, grid, z[1:2], bumpy, method)
    torch.testing.assert_close(together.latents[1:2], alone.latents)


def test_the_norm_can_be_kept() -> None:
    grid, z = grid_of("epsilon"), randn(2, 2, 4, 4)
    kept = optimise_noise(network, grid, z, bumpy, NoiseOpt(iterations=8, keep_norm=True, regulariser=0))
    assert not torch.equal(kept.noise, z)
    torch.testing.assert_close(kept.noise.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1))


def test_all_recorded_steps_are_the_whole_chain_and_none_is_a_multiple_of_the_rewards_gradient() -> None:
    z = randn(2, 2, 4, 4)
    first: dict[int | None, Tensor] = {}
    for prediction in SCHEDULES:
        grid = grid_of(prediction)
        for recorded in (None, 5, 0):
            seen: list[Tensor] = []

            def output(x: Tensor, i: int, seen: list[Tensor] = seen) -> Tensor:
                if i == 0:
                    seen.append(x.detach())
                return network(x, i)

            method = NoiseOpt(
                iterations=2, learning_rate=1.0, momentum=0.0, max_grad_norm=0, regulariser=0, recorded=recorded
            )
            optimise_noise(output, grid, z, bumpy, method)
            first[recorded] = seen[-1] - z
        torch.testing.assert_close(first[5], first[None])
        q = bumpy(sample(network, grid, z))[1]
        # x / (alpha + sigma) moves along the velocity alone, so with that held fixed the chain is 1 / (alpha + sigma).
        torch.testing.assert_close(first[0], q / (grid.alpha[0] + grid.sigma[0]), rtol=1e-2, atol=1e-9)


def test_an_iteration_costs_a_rollout_and_the_recomputation_of_what_is_recorded() -> None:
    output, calls = counted(network)
    optimise_noise(output, grid_of("epsilon", 5), randn(1, 2, 4), bumpy, NoiseOpt(iterations=3, recorded=2))
    assert len(calls) == 2 * (5 + 2) + 5  # the last iteration goes forward alone
    assert calls.count(False) == 2 * 3 + 5


# --- guided ---


@pytest.mark.parametrize("prediction", list(SCHEDULES))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_guidance_of_weight_0_is_plain_sampling_to_the_last_bit(prediction: str, shape, jacobian: bool, eta) -> None:
    grid, x = grid_of(prediction, eta=eta), randn(*shape)
    fresh = [randn(*shape, seed=k) for k in range(5)] if eta else None
    with torch.no_grad():
        plain = sample(network, grid, x, fresh)
    assert torch.equal(steer(network, grid, x, bumpy, Guided(weight=0, jacobian=jacobian), fresh=fresh), plain)
    assert not torch.equal(steer(network, grid, x, bumpy, Guided(weight=1, jacobian=jacobian), fresh=fresh), plain)


def test_guidance_moves_the_mean_of_gaussian_data_by_its_covariance_times_the_slope() -> None:
    # x0 ~ N(m, C); with the exact denoiser and R = l w.x0, the tilted law p(x0) exp(R) has the mean m + l C w.
    c, w, lam, steps = 0.42, 1.0, 1.8, 50
    levels = np.linspace(0.999, 0.0, steps + 1)
    grid = Grid(
        times=tuple(levels[:-1] * 1000),
        alpha=tuple(1 - levels[:-1]),
        sigma=tuple(levels[:-1]),
        next_alpha=tuple(1 - levels[1:]),
        next_sigma=tuple(levels[1:]),
        prediction="flow",
    )

    def denoiser(x: Tensor, i: int) -> Tensor:
        a, s = grid.alpha[i], grid.sigma[i]
        x0 = a * c / (a * a * c + s * s) * x
        return (x - x0) / s

    def linear(x: Tensor) -> tuple[Tensor, Tensor]:
        return lam * w * x.flatten(1).sum(1), torch.full_like(x, lam * w)

    x = randn(1, 1, 1)
    with torch.no_grad():
        moved = steer(denoiser, grid, x, linear, Guided(weight=1)) - sample(denoiser, grid, x)
    assert lam * c * w == pytest.approx(0.756)
    assert float(moved) == pytest.approx(0.7554, abs=2e-4)


@pytest.mark.parametrize("prediction", list(SCHEDULES))
def test_the_shift_of_the_predicted_noise_is_sigma_times_the_finite_difference(prediction: str) -> None:
    from draft.diffusion.control.steering import _steered
    from draft.diffusion.sampling import predict

    grid, x, i, h = grid_of(prediction), randn(2, 3, 4), 2, 1e-6
    steered = _steered(network, grid, x, i, bumpy, Guided(weight=0.7))
    before, after = (predict(grid, x, out, i)[1] for out in (network(x, i), steered))
    direction = randn(2, 3, 4, seed=3)
    sides = [
        bumpy(predict(grid, moved, network(moved, i), i)[0])[0].sum()
        for moved in (x + h * direction, x - h * direction)
    ]
    slope = float((sides[0] - sides[1]) / (2 * h))
    assert float(((after - before) * direction).sum()) == pytest.approx(-grid.sigma[i] * 0.7 * slope, rel=1e-6)
    cheap = _steered(network, grid, x, i, bumpy, Guided(weight=0.7, jacobian=False))
    x0, e = predict(grid, x, network(x, i), i)
    torch.testing.assert_close(predict(grid, x, cheap, i)[1], e - grid.sigma[i] * 0.7 * bumpy(x0)[1] / grid.alpha[i])


@pytest.mark.parametrize("prediction", list(SCHEDULES))
def test_scaled_guidance_is_as_large_as_it_says_whatever_the_scale_of_the_reward(prediction: str) -> None:
    from draft.diffusion.control.steering import _steered
    from draft.diffusion.sampling import predict

    def louder(x: Tensor) -> tuple[Tensor, Tensor]:
        r, q = bumpy(x)
        return 1000 * r, 1000 * q

    grid, x, method = grid_of(prediction), randn(3, 3, 4), Guided(weight=0.2, scale="rms")
    e, shifted, other = (
        predict(grid, x, out, 2)[1]
        for out in (network(x, 2), *(_steered(network, grid, x, 2, r, method) for r in (bumpy, louder)))
    )
    torch.testing.assert_close(shifted, other)
    sizes = [part.flatten(1).square().mean(1).sqrt() for part in (shifted - e, e)]
    torch.testing.assert_close(sizes[0], 0.2 * sizes[1])
    flat = steer(network, grid, x, nothing, method)
    with torch.no_grad():
        assert torch.equal(flat, sample(network, grid, x))  # no gradient, no shift, and no 0 / 0


def test_a_repeated_step_goes_back_to_its_own_noise_level() -> None:
    # The network is exact for N(0, 1) data, so that every level's latents have alpha^2 + sigma^2 as their variance.
    grid = grid_of("epsilon", 4)
    x, again = randn(1, 40_000), [randn(1, 40_000, seed=5 + k) for k in range(8)]

    def exact(x: Tensor, i: int) -> Tensor:
        return grid.sigma[i] * x

    output, calls = counted(exact)
    final = steer(output, grid, x, nothing, Guided(recurrence=3, jacobian=False), again=again)
    assert len(calls) == 3 * 4
    with torch.no_grad():
        plain = sample(exact, grid, x)
    assert float(final.std()) == pytest.approx(float(plain.std()), rel=0.15)
    assert not torch.equal(final, plain)


def test_guidance_can_be_limited_to_a_part_of_the_steps() -> None:
    scored: list[int] = []

    def watched(x: Tensor) -> tuple[Tensor, Tensor]:
        scored.append(1)
        return bumpy(x)

    steer(network, grid_of("epsilon", 10), randn(1, 2, 4), watched, Guided(start=0.3, stop=0.7))
    assert len(scored) == 4


# --- prompt_search ---


def test_the_best_candidate_is_each_images_own_and_of_equals_the_first() -> None:
    candidates = [torch.full((3, 2, 2), float(k)) for k in range(3)]
    rewards = iter([torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 5.0, 0.0]), torch.tensor([0.0, 4.0, 3.0])])
    best = best_of(iter(candidates), lambda x: next(rewards))
    assert best.chosen.tolist() == [0, 1, 2] == best.latents[:, 0, 0].tolist()
    assert best.rewards.tolist() == [1, 5, 3]


def test_modifiers_are_put_in_or_behind() -> None:
    assert modified("a {x}", "oil, of {prompt}!") == "oil, of a {x}!"
    assert modified("a cat", "oil") == "a cat, oil"
