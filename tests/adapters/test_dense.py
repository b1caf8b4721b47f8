"""LoHa, LoKr and Tucker factors against their published formulas, formed densely here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from draft.adapters.files.formats import Factors, read_adapter, write_adapter
from draft.adapters.mixture import mix_files
from draft.adapters.settings import MixSettings
from draft.errors import StageError

LINEAR = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "unet.down_blocks.0.resnets.0.conv1"
OUT, IN, K = 12, 8, 3
PLAIN = {"tucker_core": False, "convolution": False}


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tucker(core: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """W_{p,r,..} = sum_ij T_{i,j,..} L_{i,p} R_{j,r}: LyCORIS' rebuild_tucker."""
    return torch.einsum("ijkl,ip,jr->prkl", core, left, right).contiguous()


def loha(*, tucker_core: bool, convolution: bool, rank: int = 2) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors of a LoHa and W1 o W2."""
    tensors: dict[str, torch.Tensor] = {}
    halves = []
    for n in (1, 2):
        if tucker_core:
            core, a, b = randn(rank, rank, K, K, seed=n), randn(rank, OUT, seed=n + 2), randn(rank, IN, seed=n + 4)
            tensors[f"hada_t{n}"] = core
            halves.append(tucker(core, a, b))
        else:
            columns = IN * K * K if convolution else IN
            a, b = randn(OUT, rank, seed=n + 2), randn(rank, columns, seed=n + 4)
            halves.append(a @ b)
        tensors |= {f"hada_w{n}_a": a, f"hada_w{n}_b": b}
    return tensors, halves[0] * halves[1]


def lokr(
    *, first: bool, second: str, convolution: bool, rank: int = 2
) -> tuple[dict[str, torch.Tensor], torch.Tensor, bool]:
    """Tensors of a LoKr, kron(W1, W2), and whether either is a product; `second` is whole, product or tucker."""
    rows, columns, kernel = (3, 4), (2, 4), ((K, K) if convolution else ())
    tensors: dict[str, torch.Tensor] = {}
    if first:
        tensors |= {"lokr_w1_a": randn(rows[0], rank, seed=1), "lokr_w1_b": randn(rank, columns[0], seed=2)}
        one = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    else:
        one = tensors["lokr_w1"] = randn(rows[0], columns[0], seed=1)
    if second == "whole":
        two = tensors["lokr_w2"] = randn(rows[1], columns[1], *kernel, seed=3)
    elif second == "tucker":
        core, a, b = randn(rank, rank, K, K, seed=3), randn(rank, rows[1], seed=4), randn(rank, columns[1], seed=5)
        tensors |= {"lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
        two = tucker(core, a, b)
    else:
        size = columns[1] * (K * K if convolution else 1)
        tensors |= {"lokr_w2_a": randn(rows[1], rank, seed=4), "lokr_w2_b": randn(rank, size, seed=5)}
        two = (tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]).reshape(rows[1], columns[1], *kernel)
    return tensors, torch.kron(one[(...,) + (None,) * len(kernel)], two), first or second != "whole"


def dense(factors: Factors) -> torch.Tensor:
    product = factors.scale * factors.up.double().flatten(1) @ factors.down.double().flatten(1)
    return product.reshape(len(product), *factors.down.shape[1:])


def read(tmp_path: Path, name: str, tensors: dict[str, torch.Tensor], *, rank: int | None) -> Factors:
    path = tmp_path / "a.safetensors"
    save_file({f"{name}.{role}": tensor.contiguous() for role, tensor in tensors.items()}, path)
    return read_adapter(path, dense_rank=rank).modules[name]


@pytest.mark.parametrize(("core", "convolution"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("alpha", [None, 1.0, -3.0])
def test_a_loha_is_the_hadamard_product_of_two_products(
    tmp_path: Path, core: bool, convolution: bool, alpha: float | None
) -> None:
    tensors, product = loha(tucker_core=core, convolution=convolution)
    given_alpha = {} if alpha is None else {"alpha": torch.tensor(alpha)}
    name = CONVOLUTION if convolution else LINEAR
    factors = read(tmp_path, name, tensors | given_alpha, rank=100)
    scale = 1.0 if alpha is None else alpha / 2
    assert factors.rank <= 4 or core
    torch.testing.assert_close(dense(factors), (scale * product).reshape(dense(factors).shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("second", "convolution"),
    [("whole", False), ("whole", True), ("product", False), ("product", True), ("tucker", True)],
)
@pytest.mark.parametrize("alpha", [None, -3.0])
def test_a_lokr_is_the_kronecker_product_and_its_scale_is_1_where_both_are_whole(
    tmp_path: Path, first: bool, second: str, convolution: bool, alpha: float | None
) -> None:
    tensors, product, factored = lokr(first=first, second=second, convolution=convolution)
    given_alpha = {} if alpha is None else {"alpha": torch.tensor(alpha)}
    name = CONVOLUTION if convolution else LINEAR
    factors = read(tmp_path, name, tensors | given_alpha, rank=100)
    scale = alpha / 2 if factored and alpha is not None else 1.0
    torch.testing.assert_close(dense(factors), scale * product, rtol=1e-9, atol=1e-9)


@given(rank=st.integers(1, 9), kind=st.sampled_from(["loha", "lokr", "wide"]), dtype=st.sampled_from(["32", "16"]))
def test_the_cut_is_the_best_of_its_rank(
    tmp_path_factory: pytest.TempPathFactory, rank: int, kind: str, dtype: str
) -> None:
    if kind == "lokr":
        tensors, product, _ = lokr(first=False, second="whole", convolution=True)
    else:
        tensors, product = loha(tucker_core=False, convolution=True, rank=4 if kind == "wide" else 2)
    kept = {role: tensor.to(getattr(torch, f"float{dtype}")) for role, tensor in tensors.items()}
    factors = read(tmp_path_factory.mktemp("a"), CONVOLUTION, kept, rank=rank)
    values = torch.linalg.svdvals(product.reshape(OUT, -1))
    best = torch.linalg.norm(values[rank:])
    error = torch.linalg.norm(dense(factors).flatten() - product.flatten())
    assert factors.rank == min(rank, int((values > 1e-9 * values[0]).sum()))
    assert factors.down.dtype == getattr(torch, f"float{dtype}")
    rounding = {"32": 1e-5, "16": 2e-2}[dtype] * torch.linalg.norm(product)
    assert best - rounding <= error <= best + rounding


def test_a_tucker_lora_is_a_lora_and_is_read_exactly_without_a_rank(tmp_path: Path) -> None:
    down, mid, up = randn(2, IN, 1, 1, seed=1), randn(2, 2, K, K, seed=2), randn(OUT, 2, 1, 1, seed=3)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    factors = read(tmp_path, CONVOLUTION, tensors, rank=None)
    assert (factors.rank, factors.scale) == (2, 0.5) and factors.down.shape == (2, IN, K, K)
    wanted = 0.5 * tucker(mid, up[:, :, 0, 0].T, down[:, :, 0, 0])
    torch.testing.assert_close(dense(factors), wanted, rtol=1e-12, atol=1e-12)


def test_a_flat_convolution_gets_its_kernel_back_and_is_written_as_one(tmp_path: Path) -> None:
    tensors, _ = loha(tucker_core=False, convolution=True)
    assert read(tmp_path, CONVOLUTION, tensors, rank=3).down.shape == (3, IN, K, K)
    adapter = read_adapter(tmp_path / "a.safetensors", dense_rank=3)
    write_adapter(adapter, tmp_path / "b.safetensors")
    assert read_adapter(tmp_path / "b.safetensors").modules[CONVOLUTION].up.shape == (OUT, 3, 1, 1)


def test_a_fused_layer_of_flux_is_taken_apart(tmp_path: Path) -> None:
    width = 16
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    whole = {"lokr_w1": randn(3, 1, seed=1), "lokr_w2": randn(width, width, seed=2)}
    save_file({f"{name}.{role}": tensor for role, tensor in whole.items()}, tmp_path / "a.safetensors")
    modules = read_adapter(tmp_path / "a.safetensors", dense_rank=width).modules
    found = torch.cat([dense(modules[f"transformer.transformer_blocks.0.attn.to_{letter}"]) for letter in "qkv"])
    torch.testing.assert_close(found, torch.kron(whole["lokr_w1"], whole["lokr_w2"]), rtol=1e-9, atol=1e-9)


def test_a_mix_of_fused_layers_is_the_best_of_its_rank_in_every_layer(tmp_path: Path) -> None:
    width = 16
    qkv, last = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_final_layer_adaLN_modulation_1"
    wanted: dict[str, torch.Tensor] = {}
    for seed, weight in ((0, 0.7), (10, -0.4)):
        parts = {
            qkv: {"lokr_w1": randn(6, 4, seed=seed + 1), "lokr_w2": randn(8, 4, seed=seed + 2)},
            last: {"lokr_w1": randn(4, 2, seed=seed + 3), "lokr_w2": randn(8, 8, seed=seed + 4)},
        }
        tensors = {f"{name}.{role}": tensor for name, roles in parts.items() for role, tensor in roles.items()}
        save_file(tensors, tmp_path / f"{seed}.safetensors")
        whole = {name: weight * torch.kron(roles["lokr_w1"], roles["lokr_w2"]) for name, roles in parts.items()}
        pieces = {f"transformer_blocks.0.attn.to_{x}": whole[qkv][i * width :][:width] for i, x in enumerate("qkv")}
        # Shift and scale are the other way round in diffusers.
        pieces["norm_out.linear"] = torch.cat([whole[last][width:], whole[last][:width]])
        wanted = {name: wanted.get(name, torch.zeros(1)) + piece for name, piece in pieces.items()}
    inputs = [(tmp_path / "0.safetensors", 0.7), (tmp_path / "10.safetensors", -0.4)]
    for format in ("diffusers", "kohya"):
        report = mix_files(inputs, tmp_path / "mix.safetensors", settings=MixSettings(rank=3, format=format))  # type: ignore[arg-type]
        modules = read_adapter(tmp_path / "mix.safetensors").modules
        missed = [torch.linalg.norm(dense(modules[f"transformer.{name}"]) - piece) for name, piece in wanted.items()]
        tails = [torch.linalg.norm(torch.linalg.svdvals(piece)[3:]) for piece in wanted.values()]
        torch.testing.assert_close(torch.stack(missed), torch.stack(tails), rtol=1e-9, atol=1e-9)
        size = torch.linalg.norm(torch.cat([piece.flatten() for piece in wanted.values()]))
        assert report.predicted == pytest.approx(float(torch.linalg.norm(torch.stack(tails)) / size), rel=1e-9)
        assert report.total == pytest.approx(report.predicted, rel=1e-9)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_without_a_rank_they_are_refused_and_the_hint_says_how(tmp_path: Path, kind: str) -> None:
    made = (
        loha(tucker_core=False, convolution=False)
        if kind == "LoHa"
        else lokr(first=True, second="whole", convolution=False)
    )
    with pytest.raises(StageError) as error:
        read(tmp_path, LINEAR, made[0], rank=None)
    assert f"{kind} is not a sum of B A" in str(error.value) and "give --rank N" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("loha", {"hada_w2_b": None}),
        ("loha", {"hada_w2_b": torch.ones(2, IN + 1)}),
        ("loha", {"hada_w2_a": torch.ones(OUT + 1, 2)}),
        ("loha", {"hada_t1": torch.ones(2, 2, K, K)}),
        ("loha", {"lokr_w1": torch.ones(2, 2)}),
        ("lokr", {"lokr_w2": None}),
        ("lokr", {"lokr_w1": torch.ones(2)}),
        ("lokr", {"lokr_w2_a": torch.ones(2, 2)}),
        ("lokr", {"lora_down.weight": torch.ones(2, 2)}),
    ],
)
def test_factors_that_do_not_fit_are_named(tmp_path: Path, kind: str, change: dict[str, torch.Tensor | None]) -> None:
    tensors = loha(**PLAIN)[0] if kind == "loha" else lokr(first=False, second="whole", convolution=False)[0]
    kept = {role: tensor for role, tensor in {**tensors, **change}.items() if tensor is not None}
    with pytest.raises(StageError, match=f"the factors of {LINEAR} disagree or are incomplete"):
        read(tmp_path, LINEAR, kept, rank=2)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_1_is_refused(tmp_path: Path, rank: int) -> None:
    with pytest.raises(StageError, match=rf"at least 1 \(got {rank}\)"):
        read(tmp_path, LINEAR, loha(**PLAIN)[0], rank=rank)
