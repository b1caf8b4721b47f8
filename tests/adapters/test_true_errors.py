"""The errors that mix, resize and convert print, against a dense computation in float64 that shares no code with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draft.adapters.files.header import read_header
from draft.errors import DraftError
from draft_cli.convert import convert
from draft_cli.mix import mix
from draft_cli.resize import resize

LINEAR = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_1_resnets_0_conv1"
OUT, IN, K = 24, 16, 3
Tensors = dict[str, Tensor]


def lora(seed: int) -> Tensors:
    """Rank 6 on both modules, alpha 4."""
    draw = drawing(seed)
    return {
        f"{LINEAR}.lora_down.weight": draw(6, IN),
        f"{LINEAR}.lora_up.weight": draw(OUT, 6),
        f"{LINEAR}.alpha": torch.tensor(4.0),
        f"{CONV}.lora_down.weight": draw(5, IN, K, K),
        f"{CONV}.lora_up.weight": draw(OUT, 5, 1, 1),
        f"{CONV}.alpha": torch.tensor(4.0),
    }


def locon(seed: int) -> Tensors:
    """A convolution with its kernel in a core of its own."""
    draw = drawing(seed)
    return {
        f"{CONV}.lora_down.weight": draw(5, IN, 1, 1),
        f"{CONV}.lora_mid.weight": draw(5, 5, K, K),
        f"{CONV}.lora_up.weight": draw(OUT, 5, 1, 1),
        f"{CONV}.alpha": torch.tensor(2.0),
    }


def loha(seed: int) -> Tensors:
    """Of rank 2 x 2, which is less than half of the module's, and of 5 x 5 in a convolution, with cores."""
    draw = drawing(seed)
    parts = {f"{LINEAR}.alpha": torch.tensor(1.0), f"{CONV}.alpha": torch.tensor(3.0)}
    for n in "12":
        parts |= {f"{LINEAR}.hada_w{n}_a": draw(OUT, 2), f"{LINEAR}.hada_w{n}_b": draw(2, IN)}
        parts |= {f"{CONV}.hada_w{n}_a": draw(5, OUT), f"{CONV}.hada_w{n}_b": draw(5, IN)}
        parts[f"{CONV}.hada_t{n}"] = draw(5, 5, K, K)
    return parts


def lokr(seed: int) -> Tensors:
    """One with a factor that is a product, so that its alpha counts, and one with a core."""
    draw = drawing(seed)
    return {
        f"{LINEAR}.lokr_w1": draw(4, 4),
        f"{LINEAR}.lokr_w2_a": draw(6, 3),
        f"{LINEAR}.lokr_w2_b": draw(3, 4),
        f"{LINEAR}.alpha": torch.tensor(1.5),
        f"{CONV}.lokr_w1_a": draw(4, 2),
        f"{CONV}.lokr_w1_b": draw(2, 2),
        f"{CONV}.lokr_w2_a": draw(2, 6),
        f"{CONV}.lokr_w2_b": draw(2, 8),
        f"{CONV}.lokr_t2": draw(2, 2, K, K),
        f"{CONV}.alpha": torch.tensor(5.0),
    }


def full_lokr(seed: int) -> Tensors:
    """Both factors whole, so that its alpha counts for nothing and its rank is full."""
    draw = drawing(seed)
    return {f"{LINEAR}.lokr_w1": draw(4, 4), f"{LINEAR}.lokr_w2": draw(6, 4), f"{LINEAR}.alpha": torch.tensor(99.0)}


KINDS: dict[str, Callable[[int], Tensors]] = {
    "LoRA": lora, "LoCon": locon, "LoHa": loha, "LoKr": lokr, "full LoKr": full_lokr
}  # fmt: skip
CUT = ("LoHa", "LoKr", "full LoKr")


def drawing(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cores as LyCORIS has them: left (r, out), right (r, in)."""
    return torch.einsum("ijkl,ip,jr->prkl", core, left, right)


def change(p: Tensors) -> Tensor:
    """One module's dW by the published formulas."""
    p = {role: part.double() for role, part in p.items()}
    alpha = float(p.pop("alpha", torch.tensor(math.nan)))
    rank = 0
    if "hada_w1_a" in p:
        rank = len(p["hada_w1_b"])
        if "hada_t1" in p:
            halves = [tucker(p[f"hada_t{n}"], p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]) for n in "12"]
        else:
            halves = [p[f"hada_w{n}_a"] @ p[f"hada_w{n}_b"] for n in "12"]
        whole = halves[0] * halves[1]
    elif any(role.startswith("lokr") for role in p):
        one, two = p.get("lokr_w1"), p.get("lokr_w2")
        if one is None:
            one, rank = p["lokr_w1_a"] @ p["lokr_w1_b"], len(p["lokr_w1_b"])
        if two is None:
            core, rank = p.get("lokr_t2"), len(p["lokr_w2_b"])
            two = p["lokr_w2_a"] @ p["lokr_w2_b"] if core is None else tucker(core, p["lokr_w2_a"], p["lokr_w2_b"])
        whole = torch.kron(one.reshape(*one.shape, *[1] * (two.ndim - 2)), two.contiguous())
    else:
        down, up = p["lora_down.weight"], p["lora_up.weight"]
        rank = len(down)
        if "lora_mid.weight" in p:
            whole = tucker(p["lora_mid.weight"], up[:, :, 0, 0].T, down[:, :, 0, 0])
        else:
            whole = torch.einsum("or,r...->o...", up.flatten(1), down)
    scale = alpha / rank if rank and not math.isnan(alpha) else 1.0
    return scale * whole.flatten(1)


def changes(path: Path) -> Tensors:
    """Every module's dW in a file."""
    tensors = load_file(path)
    modules = sorted({name.partition(".")[0] for name in tensors})
    return {
        module: change({n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{module}.")})
        for module in modules
    }


def written(path: Path, dtype: torch.dtype, tensors: Tensors) -> Path:
    save_file({n: t.to(torch.float32 if n.endswith("alpha") else dtype).contiguous() for n, t in tensors.items()}, path)
    return path


def errors(got: Tensors, wanted: Tensors) -> tuple[float, float]:
    """The largest of a module and that over all."""
    missed = {name: float((got[name] - whole).norm()) for name, whole in wanted.items()}
    sizes = {name: float(whole.norm()) for name, whole in wanted.items()}
    assert set(got) == set(wanted)
    total = math.hypot(*missed.values()) / math.hypot(*sizes.values())
    return max(missed[name] / sizes[name] for name in wanted), total


def best(wanted: Tensors, rank: int, *, only: frozenset[str] | None = None) -> float:
    """The error of the best approximation of a rank, before any rounding."""
    tails = [torch.linalg.svdvals(whole)[rank:].norm() for name, whole in wanted.items() if not only or name in only]
    return math.hypot(*map(float, tails)) / math.hypot(*(float(whole.norm()) for whole in wanted.values()))


def output(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def digits(value: float) -> Any:
    """Equal to three digits."""
    return pytest.approx(value, rel=5e-4, abs=1e-9)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("kinds", [("LoRA", "LoCon"), ("LoRA", "LoRA"), ("LoCon", "LoCon")])
@pytest.mark.parametrize("options", [{}, {"dtype": "fp16"}, {"rank": 3}])
def test_a_mix_is_as_far_off_as_it_says(
    tmp_path: Path, capsys, kinds: tuple[str, str], options: dict[str, Any], dtype: torch.dtype
) -> None:
    check_mix(tmp_path, capsys, kinds, options, dtype)


@DTYPES
@pytest.mark.parametrize("kinds", [("LoKr", "LoKr"), ("LoHa", "LoRA"), ("full LoKr", "LoHa"), ("LoHa", "LoHa")])
def test_a_mix_of_loha_and_lokr_is_the_best_of_its_rank_and_says_how_far_off_it_is(
    tmp_path: Path, capsys, kinds: tuple[str, str], dtype: torch.dtype
) -> None:
    check_mix(tmp_path, capsys, kinds, {"rank": 4}, dtype)


def check_mix(tmp_path: Path, capsys, kinds: tuple[str, str], options: dict[str, Any], dtype: torch.dtype) -> None:
    paths = [written(tmp_path / f"{i}.safetensors", dtype, KINDS[kind](i)) for i, kind in enumerate(kinds)]
    target = tmp_path / "out.safetensors"
    mix([f"{paths[0]}:0.7", f"{paths[1]}:-0.4"], output=target, json=True, **options)
    told = output(capsys)
    one, two = map(changes, paths)
    wanted = {name: 0.7 * one.get(name, torch.zeros(1)) - 0.4 * two.get(name, torch.zeros(1)) for name in one | two}
    largest, total = errors(changes(target), wanted)
    assert told["largest_relative_error"] == digits(largest) and told["relative_error"] == digits(total)
    if rank := options.get("rank"):
        assert told["predicted_relative_error"] == digits(best(wanted, rank)) and told["relative_error"] > 0.1
        recipe = json.loads(read_header(target).metadata["draft.recipe"])
        assert recipe["error"] == digits(best(wanted, rank))
    mix([f"{paths[0]}:0.7", f"{paths[1]}:-0.4"], output=target, force=True, **options)
    lines = capsys.readouterr().out.splitlines()
    printed = next(float(line.split()[-1]) for line in lines if line.startswith("read back: largest"))
    assert printed == pytest.approx(largest, rel=6e-3)


def test_one_lokr_at_a_rank_is_not_called_exact(tmp_path: Path, capsys) -> None:
    path = written(tmp_path / "a.safetensors", torch.float16, full_lokr(0))
    mix([str(path)], output=tmp_path / "b.safetensors", rank=1)
    lines = capsys.readouterr().out.splitlines()
    largest, total = errors(changes(tmp_path / "b.safetensors"), changes(path))
    assert lines[0] == f"+1 x {path}  (1 module, LoKr)"
    assert f"smaller rank: relative error {best(changes(path), 1):.3g} over all modules, against the exact sum" in lines
    assert f"read back: largest relative error {largest:.2e}" in lines
    assert f"read back: relative error {total:.3g} over all modules" in lines and total > 0.5


@pytest.mark.parametrize("bound", [{"energy": 0.9}, {"max_error": 0.3}])
@pytest.mark.parametrize("kinds", [("LoKr", "LoHa"), ("LoKr", "LoRA")])
def test_other_bounds_hold_for_loha_and_lokr_too(
    tmp_path: Path, capsys, bound: dict[str, float], kinds: tuple[str, str]
) -> None:
    paths = [written(tmp_path / f"{i}.safetensors", torch.float32, KINDS[kind](i)) for i, kind in enumerate(kinds)]
    mix(list(map(str, paths)), output=tmp_path / "out.safetensors", format="diffusers", json=True, **bound)
    told = output(capsys)
    assert 0.1 < told["relative_error"] <= max(bound.get("max_error", 0), (1 - bound.get("energy", 0)) ** 0.5)
    assert told["relative_error"] == pytest.approx(told["predicted_relative_error"], rel=1e-5)


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", ["same", "fp16"])
def test_a_conversion_is_as_far_off_as_it_says(tmp_path: Path, capsys, kind: str, to: str, dtype: torch.dtype) -> None:
    path = written(tmp_path / "a.safetensors", dtype, KINDS[kind](0))
    rank = 3 if kind in CUT else None
    convert(path, tmp_path / "b.safetensors", dtype=to, rank=rank, json=True)
    told, wanted = output(capsys), changes(path)
    largest, total = errors(changes(tmp_path / "b.safetensors"), wanted)
    assert told["largest_error"] == digits(largest) and told["error"] == digits(total)
    if rank:
        assert (told["nearest_error"], told["predicted_error"]) == (digits(best(wanted, rank)),) * 2


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bound", [{"rank": 2}, {"energy": 0.7}, {"max_error": 0.5}])
def test_a_resize_is_as_far_off_as_it_says(
    tmp_path: Path, capsys, kind: str, bound: dict[str, float], dtype: torch.dtype
) -> None:
    path = written(tmp_path / "a.safetensors", dtype, KINDS[kind](0))
    resize(path, tmp_path / "b.safetensors", json=True, **bound)
    told, wanted = output(capsys), changes(path)
    largest, total = errors(changes(tmp_path / "b.safetensors"), wanted)
    assert told["largest_error"] == digits(largest) and told["error"] == digits(total)
    if "rank" in bound:
        assert told["predicted_error"] == digits(best(wanted, 2)) and told["error"] > 0.1


def test_where_some_modules_are_plain_the_error_over_all_counts_them(tmp_path: Path, capsys) -> None:
    plain = {name: part for name, part in lora(0).items() if name.startswith(CONV)}
    path = written(tmp_path / "a.safetensors", torch.float32, full_lokr(1) | plain)
    convert(path, tmp_path / "b.safetensors", rank=3, json=True)
    told, wanted = output(capsys), changes(path)
    assert told["nearest_error"] == digits(best({LINEAR: wanted[LINEAR]}, 3))
    assert told["predicted_error"] == digits(best(wanted, 3, only=frozenset({LINEAR})))
    assert told["error"] == digits(errors(changes(tmp_path / "b.safetensors"), wanted)[1])
    convert(path, tmp_path / "c.safetensors", rank=3)
    assert f"relative error {told['predicted_error']:.3e} as predicted" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["mix", "resize", "convert"])
def test_a_dora_is_refused_with_the_reason(tmp_path: Path, command: str) -> None:
    path = written(tmp_path / "a.safetensors", torch.float32, lora(0) | {f"{LINEAR}.dora_scale": torch.ones(OUT, 1)})
    target = tmp_path / "b.safetensors"
    calls = {
        "mix": lambda: mix([str(path)], output=target, rank=2),
        "resize": lambda: resize(path, target, rank=2),
        "convert": lambda: convert(path, target, rank=2),
    }
    with pytest.raises(DraftError) as error:
        calls[command]()
    assert "DoRA is not a sum of B A" in str(error.value)
    assert "depends on the weights of the base model" in str(error.value) and not target.exists()


def test_a_conversion_without_a_rank_names_what_needs_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", torch.float32, lokr(0))
    for refused in (lambda: convert(path, tmp_path / "b.safetensors"), lambda: mix([str(path)])):
        with pytest.raises(DraftError, match="LoKr is not a sum of B A") as error:
            refused()
        assert "--rank N" in error.value.hint
