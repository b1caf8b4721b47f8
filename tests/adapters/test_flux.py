"""FLUX.1: diffusers loads what we write, and converting there and back loses nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from draft.adapters.files.formats import Adapter, Factors, Format, read_adapter, write_adapter
from draft.adapters.verification.tools import release
from draft.errors import StageError

DOUBLE, SINGLE = "transformer.transformer_blocks.0", "transformer.single_transformer_blocks.0"


def make_transformer() -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=12,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ).eval()


def make_pipeline(*, text_encoder: CLIPTextModel | None) -> FluxPipeline:
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=text_encoder,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=make_transformer(),
    )


def predict(transformer: FluxTransformer2DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 4, 4, generator=generator),
            encoder_hidden_states=torch.randn(1, 3, 12, generator=generator),
            pooled_projections=torch.randn(1, 8, generator=generator),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.0]),
            img_ids=torch.arange(12.0).reshape(4, 3),
            txt_ids=torch.zeros(3, 3),
        ).sample


def make_adapter(*, ranks: tuple[int, ...], scale: float, only: str = "") -> Adapter:
    """Factors for every linear layer of the small model whose path has the given part."""
    generator = torch.Generator().manual_seed(4)
    modules = {}
    linear = [(n, m) for n, m in make_transformer().named_modules() if isinstance(m, torch.nn.Linear) and only in n]
    for i, (name, module) in enumerate(linear):
        rank = ranks[i % len(ranks)]
        rows, columns = module.weight.shape
        modules[f"transformer.{name}"] = Factors(
            torch.randn(rank, columns, generator=generator) * 0.2,
            torch.randn(rows, rank, generator=generator) * 0.2,
            scale,
        )
    return Adapter(modules, "flux")


@pytest.mark.parametrize(
    ("format", "only"), [("auto", ""), ("diffusers", ""), ("kohya", ".attn.a"), ("kohya", "s.1.ff")]
)
def test_a_file_changes_diffusers_own_pipeline_by_exactly_its_dw(tmp_path: Path, format: Format, only: str) -> None:
    # It folds alphas into the factors; before 0.40 every module then gets the rank of the first one as alpha.
    uneven = format != "kohya" or release(diffusers.__version__) >= (0, 40)
    adapter = make_adapter(ranks=(3, 1, 4) if uneven else (3,), scale=-2.0, only=only)
    write_adapter(adapter, tmp_path / "a.safetensors", format=format)
    wanted = make_transformer()
    base = predict(wanted)
    with torch.no_grad():
        for name, module in wanted.named_modules():
            if f"transformer.{name}" in adapter.modules:
                factors = adapter.modules[f"transformer.{name}"]
                module.weight += factors.scale * factors.up @ factors.down
    pipeline = make_pipeline(text_encoder=None)
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    torch.testing.assert_close(predict(pipeline.transformer), predict(wanted), rtol=1e-4, atol=1e-4)
    assert (predict(wanted) - base).abs().max() > 1e-3


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_the_text_encoder_s_modules_load_in_diffusers_too(tmp_path: Path, format: Format) -> None:
    if format == "kohya" and release(diffusers.__version__) < (0, 40):
        pytest.skip("before 0.37 diffusers leaves lora_te1_ names out, before 0.40 it gives all modules one alpha")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
    config = CLIPTextConfig(**sizes, num_hidden_layers=1, projection_dim=8)
    generator = torch.Generator().manual_seed(6)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        loaded = CLIPTextModel(config).eval()
    wanted = copy.deepcopy(loaded)
    ids = torch.arange(7)[None]
    base = wanted(ids).last_hidden_state
    layer = "encoder.layers.0"
    shapes = {"self_attn.q_proj": (16, 16), "self_attn.out_proj": (16, 16), "mlp.fc1": (32, 16)}
    modules = {f"{DOUBLE}.attn.to_out.0": Factors(torch.ones(2, 16), torch.ones(16, 2))}
    linear = {name.removeprefix("text_model."): module for name, module in wanted.named_modules()}
    with torch.no_grad():
        for i, (name, (rows, columns)) in enumerate(shapes.items()):
            down = torch.randn(1 + i, columns, generator=generator)
            factors = Factors(down, torch.randn(rows, 1 + i, generator=generator), -2.0)
            modules[f"text_encoder.text_model.{layer}.{name}"] = factors
            linear[f"{layer}.{name}"].weight += factors.scale * factors.up @ factors.down
    write_adapter(Adapter(modules, "flux"), tmp_path / "a.safetensors", format=format)
    pipeline = make_pipeline(text_encoder=loaded)
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    torch.testing.assert_close(loaded(ids).last_hidden_state, wanted(ids).last_hidden_state, rtol=1e-3, atol=1e-4)
    assert (wanted(ids).last_hidden_state - base).abs().max() > 0.1


@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    chosen=st.lists(st.integers(0, 10_000), min_size=1, max_size=8, unique=True),
    seconds=st.sampled_from(["kohya", "diffusers", "peft"]),
)
def test_converting_there_and_back_changes_no_bit_of_any_factor(
    tmp_path_factory: pytest.TempPathFactory, ranks: list[int], chosen: list[int], seconds: Format
) -> None:
    folder = tmp_path_factory.mktemp("a")
    every = make_adapter(ranks=tuple(ranks), scale=1.0)
    names = sorted(every.modules)
    modules = {name: every.modules[name] for name in {names[i % len(names)] for i in chosen}}
    write_adapter(Adapter(modules, "flux"), folder / "a.safetensors")
    write_adapter(read_adapter(folder / "a.safetensors"), folder / "b.safetensors", format=seconds)
    write_adapter(read_adapter(folder / "b.safetensors"), folder / "c.safetensors")
    back = read_adapter(folder / "c.safetensors").modules
    assert sorted(back) == sorted(modules)
    for name, factors in back.items():
        assert torch.equal(factors.down, modules[name].down) and torch.equal(factors.up, modules[name].up)
    assert (folder / "a.safetensors").read_bytes() == (folder / "c.safetensors").read_bytes()


def fused(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_layers_with_one_a_are_fused_at_its_rank_and_others_stacked(tmp_path: Path) -> None:
    down, other = torch.randn(3, 16), torch.randn(2, 16)
    modules = {
        f"{DOUBLE}.attn.to_q": Factors(down, torch.randn(16, 3)),
        f"{DOUBLE}.attn.to_k": Factors(down.clone(), torch.randn(16, 3)),
        f"{DOUBLE}.attn.to_v": Factors(down.clone(), torch.randn(16, 3)),
        f"{DOUBLE}.attn.add_q_proj": Factors(down, torch.randn(16, 3)),
        f"{DOUBLE}.attn.add_v_proj": Factors(other, torch.randn(16, 2)),
        f"{SINGLE}.proj_mlp": Factors(other, torch.randn(64, 2)),
    }
    write_adapter(Adapter(modules, "flux"), tmp_path / "a.safetensors", format="kohya")
    tensors = fused(tmp_path / "a.safetensors")
    block = "lora_unet_double_blocks_0"
    assert torch.equal(tensors[f"{block}_img_attn_qkv.lora_down.weight"], down)
    assert float(tensors[f"{block}_img_attn_qkv.alpha"]) == 3
    assert tensors[f"{block}_txt_attn_qkv.lora_down.weight"].shape == (5, 16)
    up = tensors[f"{block}_txt_attn_qkv.lora_up.weight"]
    assert up.shape == (48, 5) and not up[16:32].any() and not up[:16, 3:].any() and not up[32:, :3].any()
    up = tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"]
    assert up.shape == (112, 2) and not up[:48].any() and torch.equal(up[48:], modules[f"{SINGLE}.proj_mlp"].up)


def test_the_header_names_flux(tmp_path: Path) -> None:
    write_adapter(make_adapter(ranks=(2,), scale=1.0), tmp_path / "a.safetensors")
    metadata = read_adapter(tmp_path / "a.safetensors").metadata
    assert metadata["modelspec.architecture"] == "flux-1-dev/lora" and metadata["ss_base_model_version"] == "flux1"
    assert metadata["modelspec.resolution"] == "1024x1024"


def test_a_peft_file_holds_the_transformer_alone(tmp_path: Path) -> None:
    text = {"text_encoder.text_model.encoder.layers.0.mlp.fc1": Factors(torch.ones(1, 2), torch.ones(2, 1))}
    adapter = make_adapter(ranks=(2,), scale=1.0)
    with pytest.raises(StageError, match="here the transformer; text_encoder"):
        write_adapter(Adapter({**adapter.modules, **text}, "flux"), tmp_path / "a", format="peft")
    write_adapter(adapter, tmp_path / "a", format="peft")
    assert sorted(read_adapter(tmp_path / "a").modules) == sorted(adapter.modules)
