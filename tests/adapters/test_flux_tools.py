"""FLUX.1 in every tool's names: read as diffusers' own LoRA converters read them; other transformers are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as theirs
from safetensors.torch import save_file

from draft.adapters.files.formats import Adapter, Factors, read_adapter
from draft.errors import StageError

W = 3072
T5, CLIP = "text_encoder_2.encoder.block.2.layer", "text_model.encoder.layers.0"
SINGLE = "transformer.single_transformer_blocks.0"


def probe(columns: int) -> torch.Tensor:
    return torch.randn(columns, 3, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)


def seen(factors: Factors) -> torch.Tensor:
    """dW X for three random columns X."""
    return factors.scale * factors.up.double() @ (factors.down.double() @ probe(factors.down.shape[1]))


def pair(
    name: str, rows: int, columns: int, down: str = ".lora_down", up: str = ".lora_up", rank: int = 4
) -> dict[str, torch.Tensor]:
    """A module's two tensors."""
    generator = torch.Generator().manual_seed(rows + len(name))
    return {
        f"{name}{down}.weight": torch.randn(rank, columns, generator=generator),
        f"{name}{up}.weight": torch.randn(rows, rank, generator=generator),
    }


def by_module(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """dW X of a state dict in diffusers' names."""
    changes = {}
    for name, down in state.items():
        if name.endswith(".lora_A.weight"):
            up = state[name.replace("lora_A", "lora_B")]
            changes[name.removesuffix(".lora_A.weight")] = up.double() @ (down.double() @ probe(down.shape[1]))
    return changes


def same_changes(adapter: Adapter, state: dict[str, torch.Tensor]) -> None:
    wanted = by_module(state)
    assert sorted(adapter.modules) == sorted(wanted)
    for name, factors in adapter.modules.items():
        torch.testing.assert_close(seen(factors), wanted[name], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("file", ["xlabs", "one_trainer", "ai_toolkit", "block_diagonal"])
def test_other_tools_files_are_read_as_diffusers_lora_converters_read_them(tmp_path: Path, file: str) -> None:
    tensors: dict[str, torch.Tensor] = {}
    convert = theirs._convert_kohya_flux_lora_to_diffusers
    if file == "xlabs":
        convert = theirs._convert_xlabs_flux_lora_to_diffusers
        for layer, rows in (("qkv_lora1", 3), ("qkv_lora2", 3), ("proj_lora1", 1), ("proj_lora2", 1)):
            tensors |= pair(f"double_blocks.0.processor.{layer}", rows * W, W, ".down", ".up")
        tensors |= pair("single_blocks.5.processor.qkv_lora", 3 * W, W, ".down", ".up")
        tensors |= pair("single_blocks.5.processor.proj_lora", W, 5 * W, ".down", ".up")
    elif file == "block_diagonal":
        name = "lora_unet_double_blocks_0_img_attn_qkv"
        tensors = pair(name, 3 * W, W, rank=6)
        for i in range(3):
            for j in {0, 1, 2} - {i}:
                tensors[f"{name}.lora_up.weight"][i * W : (i + 1) * W, 2 * j : 2 * j + 2] = 0
    else:
        dots = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0")
        dots += ("transformer_blocks.0.attn.add_k_proj", "single_transformer_blocks.3.attn.to_v")
        for path in dots:
            if file == "ai_toolkit":
                tensors |= pair(f"transformer.{path}", W, W, ".lora_A", ".lora_B")
            else:
                name = f"lora_transformer_{path.replace('.', '_')}"
                tensors |= pair(name, W, W) | {f"{name}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.family == "flux"
    same_changes(adapter, tensors if file == "ai_toolkit" else convert(dict(tensors)))
    assert set(adapter.ranks) == ({2} if file == "block_diagonal" else {4})


def test_the_pieces_that_one_trainer_keeps_apart_are_read_as_their_modules(tmp_path: Path) -> None:
    tensors = {}
    for i, member in enumerate(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")):
        name = f"transformer.single_blocks.0.linear1.{i}"
        tensors[f"{name}.lora_down.weight"] = torch.full((1, W), float(i + 1))
        tensors[f"{name}.lora_up.weight"] = torch.ones(4 * W if member == "proj_mlp" else W, 1)
        tensors[f"{name}.alpha"] = torch.tensor(0.5)
    save_file(tensors, tmp_path / "a.safetensors")
    modules = read_adapter(tmp_path / "a.safetensors").modules
    assert {name: (float(f.down[0, 0]), f.scale) for name, f in modules.items()} == {
        f"{SINGLE}.attn.to_q": (1.0, 0.5),
        f"{SINGLE}.attn.to_k": (2.0, 0.5),
        f"{SINGLE}.attn.to_v": (3.0, 0.5),
        f"{SINGLE}.proj_mlp": (4.0, 0.5),
    }


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te3_encoder_block_2_layer_1_DenseReluDense_wi_0", f"{T5}.1.DenseReluDense.wi_0"),
        ("lora_te2_encoder_block_2_layer_0_SelfAttention_q", f"{T5}.0.SelfAttention.q"),
        ("text_encoders.t5xxl.transformer.encoder.block.2.layer.0.SelfAttention.o", f"{T5}.0.SelfAttention.o"),
        (f"text_encoders.clip_l.transformer.{CLIP}.self_attn.k_proj", f"text_encoder.{CLIP}.self_attn.k_proj"),
    ],
)
def test_flux_has_two_text_encoders_whatever_number_a_tool_gives_its_t5(tmp_path: Path, name: str, module: str) -> None:
    tensors = pair("lora_unet_single_blocks_0_modulation_lin", 3 * W, W) | pair(name, 4, 4)
    save_file(tensors, tmp_path / "a.safetensors")
    assert module in read_adapter(tmp_path / "a.safetensors").modules


def test_an_adapter_that_has_not_learned_yet_keeps_its_a(tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = pair(name, 3 * W, W)
    tensors[f"{name}.lora_up.weight"].zero_()
    save_file(tensors, tmp_path / "a.safetensors")
    modules = read_adapter(tmp_path / "a.safetensors").modules
    assert len(modules) == 3
    assert all(torch.equal(factors.down, tensors[f"{name}.lora_down.weight"]) for factors in modules.values())


@pytest.mark.parametrize(
    ("name", "rows", "columns", "message"),
    [
        ("transformer.transformer_blocks.59.attn.to_q", W, W, "transformer_blocks.59.attn.to_q is beyond the 19"),
        ("transformer.transformer_blocks.3.img_mod.1", 6 * W, W, "not read (tensor 'transformer.transformer_blocks.3"),
        ("diffusion_model.blocks.3.self_attn.q", W, W, "not read (tensor 'diffusion_model.blocks.3.self_attn.q.lora_A"),
        ("diffusion_model.single_blocks.0.linear1", 9 * W, W, "does not divide into 4 layers"),
        ("diffusion_model.single_blocks.0.linear2", W, 4 * W, "which is no layer of FLUX.1 at width"),
        ("diffusion_model.double_blocks.0.img_attn.proj", 6144, 6144, "of width 6144, which is not FLUX.1"),
        ("diffusion_model.double_blocks.0.img_attn.qkv", 3 * W + 1, W, "9217 rows, which must be a multiple of 3"),
        ("transformer.transformer_blocks.0.attn.to_q", 16, 16, "fits two families"),
        ("transformer.transformer_blocks.0.attn2.to_q", W, W, "width 3072, which is not Stable Diffusion 3"),
    ],
)  # fmt: skip
def test_transformers_of_other_families_are_named(
    tmp_path: Path, name: str, rows: int, columns: int, message: str
) -> None:
    save_file(pair(name, rows, columns, ".lora_A", ".lora_B"), tmp_path / "a.safetensors")
    with pytest.raises(StageError) as error:
        read_adapter(tmp_path / "a.safetensors")
    assert message in str(error.value)


def test_a_unet_and_a_transformer_in_one_file_are_refused(tmp_path: Path) -> None:
    tensors = pair("lora_unet_single_blocks_0_modulation_lin", 3 * W, W)
    save_file(tensors | pair("lora_unet_mid_block_attentions_0_proj_in", 4, 4), tmp_path / "a.safetensors")
    with pytest.raises(StageError, match="mixes a UNet's modules"):
        read_adapter(tmp_path / "a.safetensors")
