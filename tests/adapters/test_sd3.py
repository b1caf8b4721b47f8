"""Stable Diffusion 3: diffusers loads what we write, and a header says what is known of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import save_file

from draft.adapters.files.formats import Adapter, Factors, Format, read_adapter, write_adapter

T5 = "text_encoder_3.encoder.block.0.layer.0"


def make_transformer() -> SD3Transformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=12,
            pooled_projection_dim=8,
            pos_embed_max_size=4,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ).eval()


def predict(transformer: SD3Transformer2DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 4, 4, 4, generator=generator),
            encoder_hidden_states=torch.randn(1, 3, 12, generator=generator),
            pooled_projections=torch.randn(1, 8, generator=generator),
            timestep=torch.tensor([500.0]),
        ).sample


def make_adapter(*, ranks: tuple[int, ...], scale: float = 1.0) -> Adapter:
    """Factors for every linear layer and convolution of the small model."""
    generator = torch.Generator().manual_seed(4)
    modules = {}
    layers = [m for m in make_transformer().named_modules() if isinstance(m[1], torch.nn.Linear | torch.nn.Conv2d)]
    for i, (name, module) in enumerate(layers):
        rank = ranks[i % len(ranks)]
        rows, *columns = module.weight.shape
        modules[f"transformer.{name}"] = Factors(
            torch.randn(rank, *columns, generator=generator) * 0.2,
            torch.randn(rows, rank, *([1, 1] if columns[1:] else []), generator=generator) * 0.2,
            scale,
        )
    return Adapter(modules, "sd3")


@pytest.mark.parametrize("ranks", [(2,), (3, 1, 4)])
def test_a_file_changes_diffusers_own_pipeline_by_exactly_its_dw(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    adapter = make_adapter(ranks=ranks, scale=-2.0)
    write_adapter(adapter, tmp_path / "a.safetensors")
    wanted = make_transformer()
    base = predict(wanted)
    with torch.no_grad():
        for name, module in wanted.named_modules():
            if f"transformer.{name}" in adapter.modules:
                factors = adapter.modules[f"transformer.{name}"]
                change = factors.scale * factors.up.flatten(1) @ factors.down.flatten(1)
                module.weight += change.reshape(module.weight.shape)
    pipeline = StableDiffusion3Pipeline(
        transformer=make_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    torch.testing.assert_close(predict(pipeline.transformer), predict(wanted), rtol=1e-4, atol=1e-4)
    assert (predict(wanted) - base).abs().max() > 1e-3


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
def test_converting_there_and_back_changes_no_bit_of_any_factor(tmp_path: Path, format: Format) -> None:
    adapter = make_adapter(ranks=(3, 1, 4))
    write_adapter(adapter, tmp_path / "a.safetensors")
    write_adapter(read_adapter(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", format=format)
    write_adapter(read_adapter(tmp_path / "b.safetensors"), tmp_path / "c.safetensors")
    back = read_adapter(tmp_path / "b.safetensors").modules
    assert sorted(back) == sorted(adapter.modules)
    for name, factors in back.items():
        assert torch.equal(factors.down, adapter.modules[name].down)
        assert torch.equal(factors.up, adapter.modules[name].up)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "width", "architecture"),
    [
        ("attn.to_q", 1536, "stable-diffusion-3"),
        ("attn2.to_q", 1536, "stable-diffusion-3-5-medium"),
        ("attn.to_q", 2432, "stable-diffusion-3-5-large"),
    ],
)
def test_width_and_second_attention_tell_the_models_apart(
    tmp_path: Path, name: str, width: int, architecture: str
) -> None:
    module = f"transformer.transformer_blocks.0.{name}"
    tensors = {f"{module}.lora_A.weight": torch.ones(1, width), f"{module}.lora_B.weight": torch.ones(width, 1)}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.family == "sd3" and list(adapter.modules) == [module]
    write_adapter(adapter, tmp_path / "b.safetensors")
    assert read_adapter(tmp_path / "b.safetensors").metadata["modelspec.architecture"] == f"{architecture}/lora"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_k", f"{T5}.SelfAttention.k"),
        (f"{T5}.SelfAttention.k", f"{T5}.SelfAttention.k"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("alone", [False, True])
def test_its_three_text_encoders_keep_their_places(tmp_path: Path, name: str, module: str, alone: bool) -> None:
    names = [name] if alone else [name, "transformer.transformer_blocks.0.attn.to_q"]
    tensors = {}
    for each in names:
        tensors |= {f"{each}.lora_down.weight": torch.ones(1, 1536), f"{each}.lora_up.weight": torch.ones(1536, 1)}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert module in adapter.modules
    if not (alone and "te2" in name):
        assert adapter.family == "sd3"
        for format in ("kohya", "diffusers"):
            write_adapter(adapter, tmp_path / "b.safetensors", format=format)
            assert sorted(read_adapter(tmp_path / "b.safetensors").modules) == sorted(adapter.modules)
