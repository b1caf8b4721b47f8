"""direct_align: exact where the network is perfect, the stated weight of its error elsewhere, and SRPO's rewards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.diffusion.sampling import predict, renoise
from draft.diffusion.surrogate import Rollout
from draft.methods.direct_align import draw_levels, level_grid, recover, surrogate
from draft.methods.values import DirectAlign

predictions = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
recoveries = pytest.mark.parametrize("recovery", ["move", "delta"])
LEVELS = [(3, 5), (3, 4), (5, 3), (2, 9), (9, 2), (6, 6)]


def perfect(grid: Any, y: Tensor, z: Tensor, error: Tensor | float = 0.0) -> Any:
    """A network that returns the true noise (in flow matching the true velocity), off by an error."""

    def output(x: Tensor, i: int) -> Tensor:
        match grid.prediction:
            case "epsilon":
                return z + error
            case "v_prediction":
                return grid.alpha[i] * z - grid.sigma[i] * y + grid.alpha[i] * error
            case _:
                return z - y + error

    return output


@pytest.fixture
def case(toys: Any) -> Any:
    def case(prediction: str) -> Any:
        return toys.toy_grid(10, prediction), toys.noise(2, 5, seed=1), toys.noise(2, 5, seed=2)

    return case


@predictions
@recoveries
@pytest.mark.parametrize(("a", "b"), LEVELS)
def test_a_perfect_network_recovers_the_sample_at_any_two_levels(
    toys: Any, case: Any, prediction: str, recovery: str, a: int, b: int
) -> None:
    grid, y, z = case(prediction)
    found = recover(toys.both(perfect(grid, y, z)), grid, y, z, a, b, recovery=recovery)
    torch.testing.assert_close(found, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), LEVELS)
def test_an_error_of_the_noise_counts_by_the_levels(toys: Any, case: Any, a: int, b: int) -> None:
    grid, y, z = case("epsilon")
    networks = toys.both(perfect(grid, y, z, error := toys.noise(2, 5, seed=3)))
    alpha, sigma = grid.alpha, grid.sigma
    moved = -(sigma[a] / alpha[a] - sigma[b] / alpha[b]) * error
    torch.testing.assert_close(recover(networks, grid, y, z, a, b) - y, moved, rtol=1e-10, atol=1e-12)
    delta = recover(networks, grid, y, z, a, b, recovery="delta") - y
    torch.testing.assert_close(delta, -(sigma[a] - sigma[b]) / alpha[a] * error, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), LEVELS)
def test_an_error_of_the_velocity_counts_by_the_levels(toys: Any, case: Any, a: int, b: int) -> None:
    grid, y, z = case("flow")
    networks = toys.both(perfect(grid, y, z, error := toys.noise(2, 5, seed=3)))
    s, d = grid.sigma[a], grid.sigma[b]
    torch.testing.assert_close(recover(networks, grid, y, z, a, b) - y, -(s - d) / (1 - d) * error)
    # The published code's own two lines: denoise (x_s + (d - s) v - d z) / (1 - d), and inversion the same way round.
    x = (1 - s) * y + s * z
    torch.testing.assert_close(recover(networks, grid, y, z, a, b), (x + (d - s) * (z - y + error) - d * z) / (1 - d))


@predictions
def test_the_paper_form_over_the_whole_distance_is_refl_at_a_renoised_point(
    toys: Any, case: Any, prediction: str
) -> None:
    grid, y, z = case(prediction)
    net = toys.Linear(5, 10, nonlinear=True)
    clean = replace(grid, alpha=(*grid.alpha[:-1], 1.0), sigma=(*grid.sigma[:-1], 0.0))
    found = recover(toys.both(net), clean, y, z, 4, 9, recovery="delta")
    x = renoise(grid, y, z, 4)
    torch.testing.assert_close(found, predict(grid, x, net(x, 4), 4)[0], rtol=1e-12, atol=1e-12)


@predictions
@recoveries
def test_both_branches_push_the_network_the_same_way(toys: Any, case: Any, prediction: str, recovery: str) -> None:
    # With k = 0 and a linear reward their gradients on the output at one level are parallel: cosine +1.
    grid, y, z = case(prediction)
    out = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    networks = toys.both(lambda x, i: out)
    positive, negative = toys.noise(5, seed=4), toys.noise(5, seed=5)
    rewards = {"Real. ": positive, "Flat. ": negative}
    method = DirectAlign(
        positive=("Real",), negative=("Flat",), branches="both", recovery=recovery,  # type: ignore[arg-type]
        positive_bonus=(0, 0), negative_bonus=(0, 0),
    )  # fmt: skip
    made = surrogate(method, networks, grid, Rollout((z, y), (z,)), torch.Generator().manual_seed(0))
    gradients = []
    for latents, group in zip(made.latents.chunk(2), made.groups, strict=True):
        total = torch.as_tensor(0.0) + sum(
            coefficient * (latents @ rewards[prefix]).sum() for prefix, coefficient in group.views
        )
        gradients.append(torch.autograd.grad(total, out, retain_graph=True)[0].flatten())
    assert torch.cosine_similarity(*gradients, dim=0) == pytest.approx(1.0, abs=1e-12)
    toward = -(positive - negative).repeat(2)  # less of the output is a cleaner sample
    assert torch.cosine_similarity(gradients[0], toward, dim=0) == pytest.approx(1.0, abs=1e-12)


def test_a_relative_reward_of_two_equal_texts_without_bonus_is_nothing(toys: Any, case: Any) -> None:
    grid, y, z = case("epsilon")
    method = DirectAlign(
        positive=("Real",), negative=("Flat",), branches="both", positive_bonus=(0, 0), negative_bonus=(0, 0)
    )
    made = surrogate(method, toys.both(perfect(grid, y, z)), grid, Rollout((z, y), (z,)), torch.Generator())
    assert all(sum(coefficient for _, coefficient in group.views) == 0 for group in made.groups)


def test_srpo_scores_the_branches_with_swapped_words_and_the_levels_bonus(toys: Any, case: Any) -> None:
    grid, y, z = case("epsilon")
    networks, rollout = toys.both(perfect(grid, y, z)), Rollout((z, y), (z,))
    method = DirectAlign(
        positive=("Real", "Detail"), negative=("Flat",), branches="both", levels=(0.1, 0.9), distance=0.3
    )
    seen = set()
    for seed in range(40):
        source = torch.Generator().manual_seed(seed)
        share = draw_levels(method, grid.steps, torch.Generator().manual_seed(seed)).share
        denoise, inversion = surrogate(method, networks, grid, rollout, source).groups
        word = denoise.views[0][0]
        seen.add(word)
        assert [prefix for prefix, _ in denoise.views] == [word, "Flat. "]
        assert [prefix for prefix, _ in inversion.views] == ["Flat. ", word]
        assert [c for _, c in denoise.views] == pytest.approx([1 + 0.1 + 0.15 * share, -1])
        assert [c for _, c in inversion.views] == pytest.approx([1 + 0.3 - 0.29 * share, -1])
        assert denoise.weights is None and inversion.weights is None
    assert seen == {"Real. ", "Detail. "}


def test_without_words_a_sample_counts_less_at_cleaner_levels_and_inversion_turns_the_sign(
    toys: Any, case: Any
) -> None:
    grid, y, z = case("epsilon")
    networks, rollout = toys.both(perfect(grid, y, z)), Rollout((z, y), (z,))
    method = DirectAlign(branches="both", levels=(0.1, 0.9))
    for seed in range(20):
        share = draw_levels(method, grid.steps, torch.Generator().manual_seed(seed)).share
        groups = surrogate(method, networks, grid, rollout, torch.Generator().manual_seed(seed)).groups
        assert [group.views for group in groups] == [(("", 1.0),), (("", -1.0),)]
        for group in groups:
            assert group.weights is not None
            assert group.weights.tolist() == pytest.approx([0.2 + 0.8 * share] * 2)
    for branch, count in (("denoise", 1), ("inversion", 1), ("both", 2)):
        made = surrogate(replace(method, branches=branch), networks, grid, rollout, torch.Generator())  # type: ignore[arg-type]
        assert made.latents.shape == (2 * count, 5) and len(made.groups) == count


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_levels_are_neighbours_inside_the_window(toys: Any, prediction: str) -> None:
    grid = toys.toy_grid(1000, prediction)
    method, source = DirectAlign(), torch.Generator().manual_seed(0)
    drawn = [draw_levels(method, 1000, source) for _ in range(2000)]
    for each in drawn:
        assert 100 <= each.noisy < each.middle < each.clean <= 500
        assert grid.sigma[each.noisy] > grid.sigma[each.middle] > grid.sigma[each.clean]
        assert each.middle - each.noisy == min(40, each.middle - 100) and each.clean - each.middle == min(
            40, 500 - each.middle
        )
        assert each.share == pytest.approx((500 - each.middle) / 400)
    middles = [each.middle for each in drawn]
    assert min(middles) < 106 and max(middles) > 494
    assert sum(middles) / len(middles) == pytest.approx(300, abs=8)
    if prediction == "flow":  # SRPO's own window, shift 3: sigma .964 down to .75
        assert grid.sigma[100] == pytest.approx(0.964, abs=1e-3) and grid.sigma[500] == pytest.approx(0.75, abs=1e-3)


def test_there_is_a_level_for_each_training_time(load: Any) -> None:
    grid = level_grid(load().noise)
    assert grid.times == tuple(range(999, -1, -1))
    for tiny in (4, 5, 9):
        for levels in ((0.01, 0.02), (0.98, 0.99), (0.1, 0.9)):
            at = draw_levels(DirectAlign(levels=levels), tiny, torch.Generator().manual_seed(0))
            assert 1 <= at.noisy < at.middle < at.clean < tiny


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 4, 3, 6, 6), (2, 4, 10)])
@predictions
def test_latents_of_any_rank_are_recovered(toys: Any, prediction: str, shape: tuple[int, ...]) -> None:
    grid = toys.toy_grid(10, prediction)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    y, z = toys.noise(*shape), toys.noise(*shape, seed=1)
    rollout = Rollout((z, y), (z,))
    method = DirectAlign(branches="both")
    made = surrogate(method, toys.both(lambda x, i: (x * scale).tanh()), grid, rollout, torch.Generator())
    assert made.latents.shape == (4, *shape[1:])
    made.latents.sum().backward()
    assert scale.grad is not None and scale.grad != 0
