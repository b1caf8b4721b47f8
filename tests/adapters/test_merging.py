"""TIES, DARE and magnitude pruning act on the dense change, as their papers say, and are cut to a rank afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draft.adapters.algebra.merging import cut, drop, elect, mask_generator, merge, trim
from draft.adapters.changes import Whole
from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import read_adapter, write_adapter
from draft.adapters.mixture import MixReport, mix_files
from draft.adapters.settings import MixSettings

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
METHODS = ["magnitude", "dare", "ties"]


def draw(seed: int, *, rank: int = 3, conv: bool = False, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    tail = (3, 3) if conv else ()
    down = torch.randn(rank, 6, *tail, generator=generator, dtype=torch.float64)
    up = torch.randn(7, rank, *[1 for _ in tail], generator=generator, dtype=torch.float64)
    return Factors(down, up, scale)


def dense(factors: Factors) -> torch.Tensor:
    return factors.scale * factors.up.double().flatten(1) @ factors.down.double().flatten(1)


def run(
    factors: list[Factors], weights: list[float], *, method: str, density: float = 0.4, rank: int = 7, seed: int = 5
):
    terms = [(f, w, f"input {f.down.flatten()[0]:.3f}") for f, w in zip(factors, weights, strict=True)]
    return cut(merge(terms, method=method, density=density, seed=seed, name=Q), rank)


def pruned(change: torch.Tensor, density: float) -> torch.Tensor:
    """The plain rule, entry by entry."""
    kept = sorted(range(change.numel()), key=lambda i: -abs(float(change.flatten()[i])))[
        : round(density * change.numel())
    ]
    thin = torch.zeros(change.numel(), dtype=change.dtype)
    for i in kept:
        thin[i] = change.flatten()[i]
    return thin.reshape(change.shape)


@pytest.mark.parametrize("conv", [False, True])
def test_magnitude_is_the_weighted_sum_of_the_largest_entries_of_each_change(conv: bool) -> None:
    factors = [draw(0, conv=conv, scale=0.5), draw(1, conv=conv)]
    merged, lost, size = run(factors, [0.7, -0.3], method="magnitude")
    wanted = 0.7 * pruned(dense(factors[0]), 0.4) - 0.3 * pruned(dense(factors[1]), 0.4)
    torch.testing.assert_close(dense(merged), wanted, rtol=1e-10, atol=1e-10)
    assert lost < 1e-10 * size and size == pytest.approx(float(wanted.norm()))
    assert merged.down.shape[1:] == factors[0].down.shape[1:] and merged.up.shape[2:] == factors[0].up.shape[2:]


def test_ties_elects_a_sign_for_every_entry_and_weighs_the_mean_of_those_that_agree() -> None:
    factors, weights = [draw(0), draw(1), draw(2)], [0.5, 0.3, -0.4]
    merged, _, _ = run(factors, weights, method="ties")
    trimmed = [pruned(dense(f), 0.4) for f in factors]
    wanted = torch.zeros_like(trimmed[0])
    for place in [(row, column) for row in range(7) for column in range(6)]:
        votes = [weight * float(change[place]) for weight, change in zip(weights, trimmed, strict=True)]
        sign = (sum(votes) > 0) - (sum(votes) < 0)
        agreeing = [i for i, vote in enumerate(votes) if vote * sign > 0]
        if agreeing:
            mean = sum(votes[i] for i in agreeing) / sum(abs(weights[i]) for i in agreeing)
            wanted[place] = mean * sum(abs(weight) for weight in weights)
    torch.testing.assert_close(dense(merged), wanted, rtol=1e-10, atol=1e-10)


def test_ties_at_equal_weights_is_the_papers_disjoint_mean() -> None:
    changes = [torch.tensor([[1.0, 4.0, -2.0, 0.0]]), torch.tensor([[3.0, -1.0, -4.0, 5.0]])]
    merged = elect([(change.double(), 0.5) for change in changes])
    assert merged.tolist() == [[2.0, 4.0, -3.0, 5.0]]


def test_dare_keeps_entries_at_random_scaled_up_so_that_the_mean_is_the_change() -> None:
    change = dense(draw(0))
    draws = [drop(change, 0.25, generator=torch.Generator().manual_seed(seed)) for seed in range(4000)]
    kept = torch.stack([thin != 0 for thin in draws]).double().mean()
    assert float(kept) == pytest.approx(0.25, abs=0.005)
    for thin in draws[:50]:
        torch.testing.assert_close(thin[thin != 0], 4 * change[thin != 0])
    mean = torch.stack(draws).mean(0)
    # Four standard errors of each entry, sqrt((1 - p) / p / n) of its size with p = 1/4.
    assert ((mean - change).abs() < 4.5 * change.abs() * (3 / 4000) ** 0.5).all()


def test_dare_draws_a_mask_for_every_input_and_module_that_the_seed_alone_decides() -> None:
    def masks(seed: int, name: str, key: str) -> list[float]:
        return torch.rand(4, generator=mask_generator(seed, name, key)).tolist()

    assert masks(0, "a", "x") == masks(0, "a", "x")
    others = [masks(1, "a", "x"), masks(0, "b", "x"), masks(0, "a", "y")]
    assert all(masks(0, "a", "x") != other for other in others)
    one = run([draw(0), draw(1)], [1.0, 1.0], method="dare", seed=1)[0]
    again = run([draw(0), draw(1)], [1.0, 1.0], method="dare", seed=1)[0]
    other = run([draw(0), draw(1)], [1.0, 1.0], method="dare", seed=2)[0]
    assert torch.equal(one.down, again.down) and torch.equal(one.up, again.up)
    assert (dense(one) - dense(other)).norm() > 0.1 * dense(one).norm()


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_inputs_changes_nothing(method: str) -> None:
    factors, weights = [draw(0), draw(1), draw(2)], [0.5, 0.3, -0.4]
    forward = run(factors, weights, method=method)[0]
    backward = run(factors[::-1], weights[::-1], method=method)[0]
    torch.testing.assert_close(dense(forward), dense(backward), rtol=1e-10, atol=1e-10)


@given(a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_density_one_is_the_exact_sum_and_for_ties_where_the_signs_agree(a: float, b: float) -> None:
    one, two = draw(0), draw(1)
    wanted = a * dense(one) + b * dense(two)
    for method in ("magnitude", "dare"):
        merged = run([one, two], [a, b], method=method, density=1.0)[0]
        torch.testing.assert_close(dense(merged), wanted, rtol=1e-9, atol=1e-9)
    merged = run([one, two], [a, b], method="ties", density=1.0)[0]
    agree = (a * dense(one) * b * dense(two) > 0) & (torch.tensor(abs(a) > 1e-6 and abs(b) > 1e-6))
    torch.testing.assert_close(dense(merged)[agree], wanted[agree], rtol=1e-7, atol=1e-7)
    alone = run([one], [a], method="ties", density=1.0)[0]
    torch.testing.assert_close(dense(alone), a * dense(one), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(7, 6), (6, 7), (5, 5)])
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_the_cut_is_the_dense_svd_s(shape: tuple[int, int], rank: int) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors, _, _ = cut(Whole(matrix, (shape[1],)), rank)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    wanted = u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
    torch.testing.assert_close(dense(factors), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(factors.down.norm(dim=1), s[:rank].sqrt(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(factors.up.norm(dim=0), s[:rank].sqrt(), rtol=1e-9, atol=1e-9)


def test_what_is_zero_stays_zero() -> None:
    assert not dense(cut(Whole(torch.zeros(4, 5, dtype=torch.float64), (5,)), 2)[0]).any()
    assert not dense(run([draw(0), draw(1)], [0.0, 0.0], method="ties")[0]).any()


def test_at_least_one_entry_stays_and_equal_entries_stay_together() -> None:
    change = torch.tensor([[3.0, -3.0, 1.0, 0.5]], dtype=torch.float64)
    assert trim(change, 0.01).tolist() == [[3.0, -3.0, 0.0, 0.0]]
    assert trim(change, 0.75).tolist() == [[3.0, -3.0, 1.0, 0.0]]


@pytest.mark.parametrize("method", METHODS)
def test_files_merge_by_a_method_with_the_error_of_the_cut(tmp_path: Path, method: str) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    adapters = [Adapter({Q: draw(0), CONV: draw(1, conv=True)}), Adapter({Q: draw(2)})]
    for adapter, path in zip(adapters, paths, strict=True):
        write_adapter(adapter, path)

    def made(order: list[int], rank: int) -> MixReport:
        inputs = [(paths[i], [0.7, 0.3][i]) for i in order]
        settings = MixSettings(method=method, rank=rank, density=0.4)  # type: ignore[arg-type]
        return mix_files(inputs, tmp_path / "out.safetensors", settings=settings, seed=3)

    assert made([0, 1], 20).predicted == pytest.approx(0, abs=1e-10)
    whole = {name: dense(f) for name, f in read_adapter(tmp_path / "out.safetensors").modules.items()}
    made([1, 0], 20)
    for name, factors in read_adapter(tmp_path / "out.safetensors").modules.items():
        torch.testing.assert_close(dense(factors), whole[name], rtol=1e-9, atol=1e-9)
    report = made([0, 1], 2)
    small = read_adapter(tmp_path / "out.safetensors").modules
    missed = sum(float((dense(small[name]) - change).square().sum()) for name, change in whole.items())
    measured = (missed / sum(float(change.square().sum()) for change in whole.values())) ** 0.5
    assert measured > 0.01 and report.predicted == pytest.approx(measured, rel=1e-6)
    assert report.total == pytest.approx(measured, rel=1e-6) and report.error is not None and report.error > 0.01
    first = (tmp_path / "out.safetensors").read_bytes()
    made([0, 1], 2)
    assert (tmp_path / "out.safetensors").read_bytes() == first
