"""`draft diff`: what it says of two adapters, held against dense matrices."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draft.adapters.difference import compare_adapters
from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import write_adapter
from draft.errors import StageError
from draft_cli.diff import diff

NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
CONV = "unet.mid_block.resnets.0.conv1"


def factors(seed: int, rank: int, *, inner: tuple[int, ...] = (9,), out: int = 7, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    kernel = [1, 1] if len(inner) == 3 else []
    return Factors(
        torch.randn(rank, *inner, generator=generator), torch.randn(out, rank, *kernel, generator=generator), scale
    )


def dense(one: Factors) -> torch.Tensor:
    return one.up.double().flatten(1) @ one.down.double().flatten(1) * one.scale


def subspaces(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    u, s, vh = torch.linalg.svd(matrix)
    rank = int((s > 1e-9 * s.max()).sum())
    return u[:, :rank], vh[:rank].T


@given(
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    scales=st.tuples(st.floats(-3, 3).filter(lambda x: abs(x) > 0.1), st.floats(0.1, 3)),
    inner=st.sampled_from([(9,), (3, 3, 3)]),
    seed=st.integers(0, 1000),
)
def test_every_number_is_that_of_the_dense_changes(
    ranks: tuple[int, int], scales: tuple[float, float], inner: tuple[int, ...], seed: int
) -> None:
    a = factors(2 * seed, ranks[0], inner=inner, scale=scales[0])
    b = factors(2 * seed + 1, ranks[1], inner=inner, scale=scales[1])
    found = compare_adapters(Adapter({NAME: a}), Adapter({NAME: b})).modules[NAME]
    x, y = dense(a), dense(b)
    assert found.norms == pytest.approx((float(x.norm()), float(y.norm())), rel=1e-9)
    assert found.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), abs=1e-9)
    expected = float((x + y).norm()) / math.hypot(float(x.norm()), float(y.norm()))
    assert found.interference == pytest.approx(expected, abs=1e-7)
    (u, v), (p, q) = subspaces(x), subspaces(y)
    assert found.columns == pytest.approx(float((u.T @ p).square().sum()) / min(u.shape[1], p.shape[1]), abs=1e-7)
    assert found.rows == pytest.approx(float((v.T @ q).square().sum()) / min(v.shape[1], q.shape[1]), abs=1e-7)


def test_an_adapter_and_itself_its_negative_and_its_double() -> None:
    a = Adapter({NAME: factors(1, 3), CONV: factors(2, 2, inner=(3, 3, 3))})
    negative = Adapter({name: Factors(f.down, f.up, -f.scale) for name, f in a.modules.items()})
    double = Adapter({name: Factors(f.down, f.up, 2 * f.scale) for name, f in a.modules.items()})
    same = compare_adapters(a, a).total
    assert same.cosine == pytest.approx(1) and same.interference == pytest.approx(math.sqrt(2))
    assert compare_adapters(a, negative).total.interference == pytest.approx(0, abs=1e-6)
    found = compare_adapters(a, double)
    assert found.total.cosine == pytest.approx(1)
    assert all(r.columns == pytest.approx(1) and r.rows == pytest.approx(1) for r in found.modules.values())


def test_the_total_counts_modules_of_one_file_only_as_zero_in_the_other() -> None:
    a = Adapter({NAME: factors(1, 3), OTHER: factors(2, 3)})
    b = Adapter({NAME: factors(1, 3), CONV: factors(3, 2, inner=(3, 3, 3))})
    found = compare_adapters(a, b)
    assert found.only == ((OTHER,), (CONV,)) and list(found.modules) == [NAME]
    x, y = dense(a.modules[NAME]).norm() ** 2, dense(a.modules[OTHER]).norm() ** 2
    z = dense(b.modules[CONV]).norm() ** 2
    assert found.total.cosine == pytest.approx(float(x / ((x + y) * (x + z)).sqrt()))


def test_the_worst_module_comes_first() -> None:
    a = Adapter({NAME: factors(1, 3), OTHER: factors(2, 3)})
    b = Adapter({NAME: factors(5, 3), OTHER: factors(2, 3, scale=-1.0)})
    assert list(compare_adapters(a, b).modules) == [OTHER, NAME]


def test_a_change_of_zero_has_no_direction() -> None:
    zero = Factors(torch.ones(2, 9), torch.zeros(7, 2))
    found = compare_adapters(Adapter({NAME: zero}), Adapter({NAME: factors(1, 2)}))
    assert (found.total.cosine, found.total.interference, found.modules[NAME].columns) == (0.0, 1.0, 0.0)


def test_other_families_and_other_shapes_are_refused() -> None:
    with pytest.raises(StageError, match="different families cannot be compared \\(got sd and sdxl\\)"):
        compare_adapters(Adapter({NAME: factors(1, 2)}), Adapter({NAME: factors(1, 2)}, "sdxl"))
    with pytest.raises(
        StageError, match="disagree about the shape of .*to_q \\(in \\(9,\\) out 7 and in \\(9,\\) out 8"
    ):
        compare_adapters(Adapter({NAME: factors(1, 2)}), Adapter({NAME: factors(1, 2, out=8)}))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    many = {NAME.replace(".0.attn1", f".{i}.attn1"): factors(i, 2) for i in range(12)}
    paths = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    write_adapter(Adapter(many), paths[0])
    write_adapter(Adapter({name: Factors(f.down, f.up, 0.5) for name, f in many.items()}), paths[1])
    return paths


def test_the_command_prints_the_ten_worst_and_what_they_predict(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    diff(*files)
    text = capsys.readouterr().out
    assert "12 in both, 0 only in a, 0 only in b" in text and "they pull the same way" in text
    assert text.count("attn1.to_q") == 10 and "2 more, which interfere less (--all)" in text
    diff(*files, all=True)
    assert capsys.readouterr().out.count("attn1.to_q") == 12
    diff(*files, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["total"]["cosine"] == pytest.approx(1) and len(told["modules"]) == 12
    assert set(told["modules"][NAME]) == {"norms", "cosine", "interference", "columns", "rows", "chance"}
