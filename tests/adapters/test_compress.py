"""Compression is the best approximation of its rank, and its error is known beforehand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draft.adapters.algebra.compress import compress
from draft.adapters.factors import Adapter, Factors
from draft.errors import StageError

LINEAR = "unet.mid_block.attentions.0.proj_in"
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
SIZES = st.integers(1, 9)


def draw(seed: int, out: int, inner: int, rank: int, *, kernel: int = 0, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    tail = (kernel, kernel) if kernel else ()
    down = torch.randn(rank, inner, *tail, generator=generator, dtype=torch.float64)
    up = torch.randn(out, rank, *[1 for _ in tail], generator=generator, dtype=torch.float64)
    # Spectra that fall, as those of trained adapters do.
    return Factors(down * torch.arange(rank, 0, -1).view(-1, 1, *[1 for _ in tail]), up, scale)


def dense(factors: Factors) -> torch.Tensor:
    return factors.scale * factors.up.double().flatten(1) @ factors.down.double().flatten(1)


def distance(one: Adapter, other: Adapter, names: tuple[str, ...]) -> float:
    missed = sum(float((dense(one.modules[n]) - dense(other.modules[n])).square().sum()) for n in names)
    return math.sqrt(missed / sum(float(dense(one.modules[n]).square().sum()) for n in names))


def several(scale: float = 1.0) -> Adapter:
    return Adapter(
        {
            LINEAR: draw(1, 12, 10, 8, scale=scale),
            CONV: draw(2, 9, 4, 6, kernel=3, scale=0.1 * scale),
            TEXT: draw(3, 7, 14, 5, scale=-2 * scale),
        }
    )


@given(out=SIZES, inner=SIZES, rank=SIZES, cut=SIZES, kernel=st.sampled_from([0, 1, 3]), scale=st.floats(-3, 3))
def test_a_cut_to_rank_is_the_dense_svd_s_best_and_its_error_is_the_predicted_one(
    out: int, inner: int, rank: int, cut: int, kernel: int, scale: float
) -> None:
    whole = Adapter({LINEAR: draw(0, out, inner, rank, kernel=kernel, scale=scale)})
    compressed = compress(whole, rank=cut)
    small = compressed.adapter.modules[LINEAR]
    spectrum = torch.linalg.svdvals(dense(whole.modules[LINEAR]))
    size = float(spectrum.norm())
    assert small.rank <= cut and small.scale == 1
    assert small.down.shape[1:] == whole.modules[LINEAR].down.shape[1:]
    measured = float((dense(small) - dense(whole.modules[LINEAR])).norm())
    assert measured == pytest.approx(float(spectrum[cut:].norm()), abs=1e-12 * size)
    assert compressed.errors[LINEAR] * size == pytest.approx(measured, rel=1e-9, abs=1e-12 * size)
    assert compressed.error == compressed.errors[LINEAR]


@pytest.mark.parametrize("options", [{"rank": 2}, {"energy": 0.9}, {"max_error": 0.2}])
def test_the_predicted_error_over_all_modules_is_the_measured_one_to_many_digits(options) -> None:
    whole = several()
    compressed = compress(whole, **options)
    assert compressed.error > 0.001
    for name in whole.modules:
        alone = distance(whole, compressed.adapter, (name,))
        assert compressed.errors[name] == pytest.approx(alone, rel=1e-10, abs=1e-14)
    assert compressed.error == pytest.approx(distance(whole, compressed.adapter, (LINEAR, CONV, TEXT)), rel=1e-10)


@given(energy=st.floats(0.01, 1))
def test_energy_keeps_that_share_with_the_smallest_rank_of_every_module(energy: float) -> None:
    whole = several()
    for name, factors in compress(whole, energy=energy).adapter.modules.items():
        squares = torch.linalg.svdvals(dense(whole.modules[name])).square()
        shares = squares.cumsum(0) / squares.sum()
        assert shares[factors.rank - 1] >= energy - 1e-12
        assert factors.rank == 1 or shares[factors.rank - 2] < energy


@given(bound=st.floats(0, 0.99))
def test_max_error_holds_over_all_modules_and_no_smaller_ranks_would_do(bound: float) -> None:
    whole = several()
    compressed = compress(whole, max_error=bound)
    assert compressed.error <= bound * (1 + 1e-9)
    spectra = {name: torch.linalg.svdvals(dense(factors)) for name, factors in whole.modules.items()}
    total = sum(float(s.square().sum()) for s in spectra.values())
    kept = {name: factors.rank for name, factors in compressed.adapter.modules.items()}
    # Tight: without the smallest value that was kept the bound would be broken.
    last = [float(spectra[name][rank - 1]) for name, rank in kept.items() if rank > 1]
    if last:
        assert math.sqrt(compressed.error**2 + min(last) ** 2 / total) > bound
    # Optimal: what was cut anywhere is no larger than what was kept anywhere.
    cut = [float(s[kept[name]]) for name, s in spectra.items() if kept[name] < len(s)]
    if last and cut:
        assert max(cut) <= min(last) * (1 + 1e-9)


def test_a_bound_that_allows_nothing_finds_the_true_rank() -> None:
    factors = draw(0, 8, 8, 3)
    doubled = Factors(torch.cat([factors.down, factors.down]), torch.cat([factors.up, -0.25 * factors.up], 1))
    bounds: list[dict[str, Any]] = [{"max_error": 0.0}, {"energy": 1.0}, {"rank": 6}]
    for options in bounds:
        compressed = compress(Adapter({LINEAR: doubled}), **options)
        assert compressed.adapter.ranks == {3: 1} and compressed.error == 0
        torch.testing.assert_close(dense(compressed.adapter.modules[LINEAR]), 0.75 * dense(factors))


def test_a_module_that_is_zero_stays_as_zeros_of_rank_one() -> None:
    zero = Factors(torch.ones(4, 5), torch.zeros(6, 4))
    bounds: list[dict[str, Any]] = [{"max_error": 0.1}, {"energy": 0.9}, {"rank": 2}]
    for options in bounds:
        compressed = compress(Adapter({LINEAR: zero, TEXT: draw(0, 5, 5, 3)}), **options)
        small = compressed.adapter.modules[LINEAR]
        assert small.rank == 1 and not small.up.any() and small.down.dtype == torch.float32
        assert compressed.errors[LINEAR] == 0
    assert compress(Adapter({LINEAR: zero}), max_error=0.5).error == 0


def test_the_factors_are_balanced_and_keep_their_dtypes() -> None:
    half = Adapter({LINEAR: Factors(draw(0, 8, 6, 4).down.half(), draw(0, 8, 6, 4).up.half(), 0.5)})
    small = compress(half, rank=2).adapter.modules[LINEAR]
    assert small.down.dtype == small.up.dtype == torch.float16
    torch.testing.assert_close(small.down.double().norm(dim=1), small.up.double().norm(dim=0), rtol=2e-3, atol=0)


def test_the_family_and_the_header_stay() -> None:
    whole = Adapter(several().modules, "sdxl", {"a": "b"})
    compressed = compress(whole, rank=1).adapter
    assert compressed.family == "sdxl" and compressed.metadata == {"a": "b"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give exactly one of rank, energy and max_error \(got none\)"),
        ({"rank": 1, "energy": 0.5}, r"\(got rank and energy\)"),
        ({"rank": 0}, r"rank must be at least 1 \(got 0\)"),
        ({"energy": 0.0}, r"energy must be above 0 and at most 1 \(got 0\)"),
        ({"energy": float("nan")}, r"energy must be above 0 and at most 1 \(got nan\)"),
        ({"max_error": 1.0}, r"max_error must be at least 0 and below 1 \(got 1\)"),
        ({"max_error": -0.1}, r"max_error must be at least 0 and below 1 \(got -0.1\)"),
    ],
)
def test_a_bound_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        compress(several(), **options)
