"""Adapter files: read, written, read back the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from draft.adapters.files.formats import Adapter, Factors, Format, denoiser_factors, read_adapter, write_adapter
from draft.errors import StageError

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
FORMATS: list[Format] = ["kohya", "diffusers", "peft"]


def linear(rank: int, *, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator)
    return Factors(down.to(dtype), up.to(dtype), scale)


def change(factors: Factors) -> torch.Tensor:
    up, down = factors.up.double().flatten(1), factors.down.double().flatten(1)
    return factors.scale * up @ down


@given(
    ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    scale=st.floats(-4, 4).filter(lambda s: abs(s) > 1e-3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    format=st.sampled_from(FORMATS),
    convolution=st.booleans(),
)
def test_any_adapter_reads_back_with_the_same_change_and_alpha_equal_to_the_rank(
    tmp_path_factory: pytest.TempPathFactory,
    ranks: list[int],
    scale: float,
    dtype: torch.dtype,
    format: Format,
    convolution: bool,
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.safetensors"
    names = [f"unet.{BLOCK}.attn{1 + i // 3}.to_{'qkv'[i % 3]}" for i in range(len(ranks))]
    modules = {
        n: linear(r, seed=i, scale=scale, dtype=dtype) for i, (n, r) in enumerate(zip(names, ranks, strict=True))
    }
    if convolution:
        modules["unet.down_blocks.0.resnets.0.conv1"] = Factors(
            torch.randn(2, 3, 3, 3).to(dtype), torch.randn(4, 2, 1, 1).to(dtype), scale
        )
    write_adapter(Adapter(modules), path, format=format)
    back = read_adapter(path)
    assert sorted(back.modules) == sorted(modules)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for name, factors in back.modules.items():
        assert factors.scale == 1.0 and factors.down.dtype == dtype
        wanted = change(modules[name])
        assert torch.linalg.norm(change(factors) - wanted) <= tolerance * torch.linalg.norm(wanted)


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_converting_there_and_back_changes_no_bit_of_the_factors(tmp_path: Path, first: Format, second: Format) -> None:
    adapter = Adapter({f"unet.{BLOCK}.attn1.to_q": linear(3), f"unet.{BLOCK}.attn1.to_out.0": linear(5, seed=1)})
    write_adapter(adapter, tmp_path / "a.safetensors", format=first)
    write_adapter(read_adapter(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", format=second)
    write_adapter(read_adapter(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", format=first)
    for name, factors in read_adapter(tmp_path / "c.safetensors").modules.items():
        assert torch.equal(factors.down, adapter.modules[name].down)
        assert torch.equal(factors.up, adapter.modules[name].up)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes() or first != second


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_adapter_gives_the_same_bytes_in_another_process_and_order(tmp_path: Path, format: Format) -> None:
    modules = {f"unet.{BLOCK}.attn1.to_{x}": linear(2 + i, seed=i) for i, x in enumerate("qkv")}
    write_adapter(Adapter(modules, metadata={"b": "2", "a": "1"}), tmp_path / "one.safetensors", format=format)
    script = (
        "import sys; from pathlib import Path; from draft.adapters.files.formats import *;"
        "a = read_adapter(Path(sys.argv[1]));"
        "a = Adapter(dict(reversed(a.modules.items())), a.family, dict(reversed(a.metadata.items())));"
        "write_adapter(a, Path(sys.argv[2]), format=sys.argv[3])"
    )
    paths = [str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors")]
    subprocess.run([sys.executable, "-c", script, *paths, format], check=True, cwd=tmp_path)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_the_header_says_what_tools_look_for_and_nothing_about_when_or_where(tmp_path: Path) -> None:
    adapter = Adapter({f"unet.{BLOCK}.attn2.to_k": Factors(torch.ones(4, 768), torch.ones(8, 4))})
    write_adapter(adapter, tmp_path / "a.safetensors", metadata={"draft.recipe": "{}"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = file.metadata()
        assert float(file.get_tensor("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.alpha")) == 4
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert (header["format"], header["ss_network_module"], header["ss_network_dim"]) == ("pt", "networks.lora", "4")
    assert header["ss_network_alpha"] == "4.0" and header["draft.recipe"] == "{}" and header["draft.version"]
    text = json.dumps(header)
    assert str(tmp_path) not in text and os.uname().nodename not in text.split('"') and "date" not in text


@pytest.mark.parametrize(
    ("tensors", "scale"),
    [({}, 1.0), ({"alpha": torch.tensor(2.0)}, 0.5), ({"alpha": torch.tensor([8.0])}, 2.0)],
)
def test_alpha_tensors_are_honoured_and_a_missing_one_is_the_rank(
    tmp_path: Path, tensors: dict[str, torch.Tensor], scale: float
) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(4, 3), f"{name}.lora_up.weight": torch.ones(2, 4)}
        | {f"{name}.{key}": value for key, value in tensors.items()},
        tmp_path / "a.safetensors",
    )
    assert read_adapter(tmp_path / "a.safetensors").modules["unet.mid_block.attentions.0.proj_in"].scale == scale


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 1}}, 0.25),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn2.to_q": 1}}, 2.0),
        ({}, 1.0),
    ],
)
def test_a_peft_folder_s_alpha_and_the_header_s_are_honoured(
    tmp_path: Path, config: dict[str, object], scale: float
) -> None:
    down, up = torch.ones(4, 3), torch.ones(2, 4)
    plain = f"base_model.model.{BLOCK}.attn1.to_q"
    save_file({f"{plain}.lora_A.weight": down, f"{plain}.lora_B.weight": up}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_adapter(tmp_path).modules[f"unet.{BLOCK}.attn1.to_q"].scale == scale

    header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    full = f"unet.{BLOCK}.attn1.to_q"
    file = tmp_path / "x.safetensors"
    save_file({f"{full}.lora_A.weight": down, f"{full}.lora_B.weight": up}, file, metadata=header)
    assert read_adapter(file).modules[full].scale == scale


def test_a_kohya_file_has_one_rank_and_reads_back_with_the_ranks_it_came_from(tmp_path: Path) -> None:
    modules = {f"unet.{BLOCK}.attn1.to_{x}": linear(2 + i, seed=i) for i, x in enumerate("qkv")}
    write_adapter(Adapter(modules), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert {file.get_tensor(k).shape[0] for k in file.keys() if "lora_down" in k} == {4}  # noqa: SIM118
        assert {float(file.get_tensor(k)) for k in file.keys() if "alpha" in k} == {4.0}  # noqa: SIM118
    assert read_adapter(tmp_path / "a.safetensors").ranks == {2: 1, 3: 1, 4: 1}


def test_denoiser_factors_fold_the_scale_and_drop_the_prefix() -> None:
    factors = linear(3, scale=-0.25)
    text = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    folded = denoiser_factors(Adapter({f"unet.{BLOCK}.attn1.to_q": factors, text: linear(2)}))
    assert list(folded) == [f"{BLOCK}.attn1.to_q"]
    down, up = folded[f"{BLOCK}.attn1.to_q"]
    torch.testing.assert_close(up.double() @ down.double(), change(factors), rtol=1e-5, atol=1e-6)


def test_an_adapter_of_the_text_encoder_alone_has_nothing_for_the_unet() -> None:
    with pytest.raises(StageError, match="does not touch the UNet"):
        denoiser_factors(Adapter({"text_encoder.text_model.encoder.layers.0.mlp.fc1": linear(2)}))


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.safetensors"
    write_adapter(Adapter({f"unet.{BLOCK}.attn1.to_q": linear(2)}), path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match=r"cannot write the file \(No space left on device\)"):
        write_adapter(Adapter({f"unet.{BLOCK}.attn1.to_q": linear(3)}), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_values_that_overflow_their_dtype_are_not_written(tmp_path: Path) -> None:
    big = Factors(torch.full((1, 2), 6e4, dtype=torch.float16), torch.ones(2, 1, dtype=torch.float16), 16.0)
    with pytest.raises(StageError, match="not finite in float16"):
        write_adapter(Adapter({f"unet.{BLOCK}.attn1.to_q": big}), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_terms_that_are_zero_on_both_sides_are_dropped_wherever_they_are(tmp_path: Path) -> None:
    down, up = torch.randn(5, 6), torch.randn(4, 5)
    down[[0, 3]], up[:, [0, 3]] = 0, 0
    # These two stay: one side is not zero, so that training could still use them.
    down[1], up[:, 4] = 0, 0
    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "a.safetensors")
    factors = read_adapter(tmp_path / "a.safetensors").modules["unet.mid_block.attentions.0.proj_in"]
    assert torch.equal(factors.down, down[[1, 2, 4]]) and torch.equal(factors.up, up[:, [1, 2, 4]])


def test_alpha_is_over_the_rank_in_the_file_and_not_over_the_rank_without_zeros(tmp_path: Path) -> None:
    down, up = torch.ones(4, 6), torch.ones(5, 4)
    down[2:], up[:, 2:] = 0, 0
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    factors = read_adapter(tmp_path / "a.safetensors").modules["unet.mid_block.attentions.0.proj_in"]
    assert (factors.rank, factors.scale) == (2, 0.5)


@pytest.mark.parametrize("value", [65504.0, -65504.0])
def test_numbers_whose_sum_overflows_are_still_numbers(tmp_path: Path, value: float) -> None:
    for dtype, size in ((torch.float16, value), (torch.float32, 3e38), (torch.float64, 1.7e308)):
        factors = Factors(torch.full((2, 6), size, dtype=dtype), torch.zeros(5, 2, dtype=dtype))
        write_adapter(Adapter({f"unet.{BLOCK}.attn1.to_q": factors}), tmp_path / "a.safetensors")
        assert len(read_adapter(tmp_path / "a.safetensors").modules) == 1


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k", 2048, "stable-diffusion-xl-v1-base"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 1024, "stable-diffusion-v2"),
    ],
)
def test_the_header_names_the_base_model_as_far_as_the_modules_tell(
    tmp_path: Path, name: str, columns: int, expected: str
) -> None:
    adapter = Adapter({name: Factors(torch.ones(1, columns), torch.ones(4, 1))}, "sdxl" if "xl" in expected else "sd")
    write_adapter(adapter, tmp_path / "a.safetensors")
    metadata = read_adapter(tmp_path / "a.safetensors").metadata
    assert metadata["modelspec.architecture"] == f"{expected}/lora"
    assert metadata.get("ss_base_model_version") == ("sdxl_base_v1-0" if "xl" in expected else None)


@pytest.mark.parametrize(
    ("columns", "family"), [(64, "sdxl"), (768, "sd"), (1024, "sd")], ids=["a toy's", "version 1", "version 2"]
)
def test_the_header_decides_between_unets_where_the_modules_do_not(tmp_path: Path, columns: int, family: str) -> None:
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    factors = Factors(torch.ones(1, columns), torch.ones(4, 1))
    write_adapter(Adapter({name: factors}, "sdxl"), tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").family == family
    write_adapter(Adapter({name: factors}, "sd"), tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").family == "sd"


def test_a_peft_pattern_of_an_outer_module_does_not_reach_the_inner_ones_of_its_name(tmp_path: Path) -> None:
    outer, inner = "transformer.proj_out", "transformer.single_transformer_blocks.0.proj_out"
    other = "transformer.single_transformer_blocks.1.proj_out"
    modules = {
        outer: Factors(torch.ones(2, 16), torch.ones(4, 2)),
        inner: Factors(torch.ones(1, 80), torch.ones(16, 1)),
        other: Factors(torch.ones(1, 80), torch.ones(16, 1)),
    }
    write_adapter(Adapter(modules, "flux"), tmp_path / "a.safetensors")
    config = json.loads(read_adapter(tmp_path / "a.safetensors").metadata["lora_adapter_metadata"])
    assert config["transformer.rank_pattern"] == {"^proj_out": 2} and config["transformer.r"] == 1
    assert {f.scale for f in read_adapter(tmp_path / "a.safetensors").modules.values()} == {1.0}
