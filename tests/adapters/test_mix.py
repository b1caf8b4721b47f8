"""Mixing is the exact sum of the changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draft.adapters.algebra.deviation import deviation
from draft.adapters.algebra.mix import ExactSum, mix
from draft.adapters.files.formats import Adapter, Factors, read_adapter, write_adapter
from draft.adapters.mixture import mix_files
from draft.errors import StageError

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
WEIGHTS = st.floats(-3, 3)


def random_adapter(
    seed: int, *, rank: int = 3, scale: float = 1.0, dtype=torch.float32, names=(Q, CONV, TEXT)
) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    modules = {}
    for name in names:
        if name == CONV:
            modules[name] = Factors(draw(rank, 4, 3, 3), draw(5, rank, 1, 1), scale)
        else:
            modules[name] = Factors(draw(rank, 6), draw(7, rank), scale)
    return Adapter(modules)


def mix_errors(mixed: Adapter, inputs: list[tuple[Adapter, float]]) -> dict[str, float]:
    """By module, how far a mix is from the exact sum; a module missing on either side counts as zero there."""
    exact = ExactSum(inputs)
    names = sorted({*exact, *mixed.modules})
    return {name: deviation(mixed.modules.get(name), exact.terms(name)).relative for name in names}


def changes(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {n: f.scale * f.up.double().flatten(1) @ f.down.double().flatten(1) for n, f in adapter.modules.items()}


@given(
    weights=st.lists(WEIGHTS, min_size=1, max_size=4),
    ranks=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    scales=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
)
def test_the_mix_is_the_weighted_sum_whatever_the_ranks_alphas_and_signs(
    weights: list[float], ranks: list[int], scales: list[float]
) -> None:
    names = [(Q, CONV, TEXT), (Q,), (CONV, TEXT), (Q, TEXT)]
    inputs = [
        (random_adapter(i, rank=ranks[i], scale=scales[i], dtype=torch.float64, names=names[i]), weight)
        for i, weight in enumerate(weights)
    ]
    mixed = mix(inputs)
    wanted: dict[str, torch.Tensor] = {}
    for adapter, weight in inputs:
        for name, change in changes(adapter).items():
            wanted[name] = wanted.get(name, torch.zeros_like(change)) + weight * change
    assert sorted(mixed.modules) == sorted(wanted)
    for name, change in changes(mixed).items():
        torch.testing.assert_close(change, wanted[name], rtol=1e-10, atol=1e-10)
    assert max(mix_errors(mixed, inputs).values()) < 1e-7


def test_one_adapter_at_weight_one_is_itself_to_the_bit() -> None:
    adapter = random_adapter(0)
    mixed = mix([(adapter, 1.0)])
    for name, factors in adapter.modules.items():
        assert torch.equal(mixed.modules[name].down, factors.down)
        assert torch.equal(mixed.modules[name].up, factors.up)


def test_two_halves_of_one_adapter_are_the_adapter_at_its_own_rank() -> None:
    adapter = random_adapter(0, scale=0.5)
    mixed = mix([(adapter, 0.5), (adapter, 0.5)])
    assert mixed.ranks == adapter.ranks
    for name, change in changes(mixed).items():
        torch.testing.assert_close(change, changes(adapter)[name], rtol=1e-5, atol=1e-6)


def test_an_adapter_minus_itself_is_exactly_zero() -> None:
    adapter = random_adapter(0)
    mixed = mix([(adapter, 1.0), (adapter, -1.0)])
    assert all(not change.any() for change in changes(mixed).values())
    assert all(not change.any() for change in changes(mix([(adapter, 0.0)])).values())


@given(a=WEIGHTS, b=WEIGHTS)
def test_order_and_nesting_do_not_matter(a: float, b: float) -> None:
    one, two, three = (random_adapter(i, dtype=torch.float64) for i in range(3))
    forward = changes(mix([(one, a), (two, b), (three, 1.0)]))
    backward = changes(mix([(three, 1.0), (two, b), (one, a)]))
    nested = changes(mix([(mix([(one, a), (two, b)]), 1.0), (three, 1.0)]))
    for name, change in forward.items():
        torch.testing.assert_close(change, backward[name], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(change, nested[name], rtol=1e-10, atol=1e-10)


def test_the_weight_is_split_evenly_and_its_sign_is_on_b() -> None:
    adapter = random_adapter(0)
    mixed = mix([(adapter, -4.0)])
    torch.testing.assert_close(mixed.modules[Q].down, 2 * adapter.modules[Q].down)
    torch.testing.assert_close(mixed.modules[Q].up, -2 * adapter.modules[Q].up)


def test_the_widest_dtype_of_the_inputs_is_kept() -> None:
    half, brain, single = (
        random_adapter(i, dtype=d) for i, d in enumerate((torch.float16, torch.bfloat16, torch.float32))
    )
    assert mix([(half, 1.0), (half, 1.0)]).modules[Q].up.dtype == torch.float16
    assert mix([(half, 1.0), (brain, 1.0)]).modules[Q].up.dtype == torch.float32
    assert mix([(brain, 1.0), (single, 1.0)]).modules[Q].up.dtype == torch.float32


def test_the_error_by_factors_is_the_error_of_the_dense_matrices() -> None:
    one, two = random_adapter(0), random_adapter(1)
    wrong = random_adapter(2)
    inputs = [(one, 0.7), (two, 0.3)]
    errors = mix_errors(wrong, inputs)
    for name, error in errors.items():
        wanted = 0.7 * changes(one)[name] + 0.3 * changes(two)[name]
        dense = torch.linalg.norm(changes(wrong)[name] - wanted) / torch.linalg.norm(wanted)
        assert error == pytest.approx(float(dense), rel=1e-9)
    missing = Adapter({Q: mix(inputs).modules[Q]})
    assert mix_errors(missing, inputs)[CONV] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "nothing to mix"),
        ([(random_adapter(0), float("nan"))], r"a weight must be a finite number \(got nan\)"),
        (
            [(random_adapter(0), 1.0), (Adapter(random_adapter(0).modules, "sdxl"), 1.0)],
            r"different families cannot be mixed \(got sd and sdxl\)",
        ),
        (
            [(random_adapter(0), 1.0), (Adapter({Q: Factors(torch.ones(1, 9), torch.ones(7, 1))}), 1.0)],
            r"disagree about the shape of unet.mid_block.*in \(6,\) out 7 and in \(9,\) out 7",
        ),
    ],
)
def test_what_cannot_be_mixed_is_named(inputs: list[tuple[Adapter, float]], message: str) -> None:
    with pytest.raises(StageError, match=message):
        mix(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_mix_to_a_checked_file_that_tells_its_recipe(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "out"))
    write_adapter(random_adapter(0, dtype=dtype, scale=2.0), a, format="diffusers")
    write_adapter(random_adapter(1, rank=5, dtype=dtype, names=(Q, CONV)), b)
    report = mix_files([(a, 0.7), (b, 0.3)], out)
    assert report.modules == 3 and report.ranks == {3: 1, 8: 2}
    assert report.error < {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert '"weight": 0.7' in read_adapter(out).metadata["draft.recipe"]
    first = out.read_bytes()
    mix_files([(a, 0.7), (b, 0.3)], out)
    assert out.read_bytes() == first


def test_an_output_among_the_inputs_is_refused(tmp_path: Path) -> None:
    write_adapter(random_adapter(0), tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(StageError, match="the output is also an input"):
        mix_files([(tmp_path / "a.safetensors", 1.0)], tmp_path / "x" / ".." / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == before
