"""Where modules are in single-file checkpoints, against diffusers' own converters, and merging into them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import load_file, save_file
from torch import Tensor

from draft.adapters.files.formats import Adapter, Factors, write_adapter
from draft.adapters.model.checkpoint import open_checkpoint
from draft.adapters.model.layout import is_layer, single_file_pieces
from draft.adapters.model.merging import merge_files
from draft.adapters.model.tensors import read_piece
from draft.adapters.verification.models import BaseModel, base_models
from draft.errors import StageError

_SPEC = importlib.util.spec_from_file_location("ldm", Path(__file__).with_name("ldm.py"))
assert _SPEC is not None and _SPEC.loader is not None
ldm = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(ldm)

Converted = dict[str, Tensor]


def convert_unet(tensors: Mapping[str, Tensor]) -> Converted:
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    converted = converters.convert_ldm_unet_checkpoint(dict(tensors), config)
    return {f"unet.{name}": tensor for name, tensor in converted.items()}


def convert_clip(prefix: str, part: str) -> Callable[[Mapping[str, Tensor]], Converted]:
    def convert(tensors: Mapping[str, Tensor]) -> Converted:
        converted = converters.convert_ldm_clip_checkpoint(dict(tensors), remove_prefix=prefix)
        return {f"{part}.{name}": tensor for name, tensor in converted.items()}

    return convert


def convert_open_clip(prefix: str, part: str) -> Callable[[Mapping[str, Tensor]], Converted]:
    def convert(tensors: Mapping[str, Tensor]) -> Converted:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        config = CLIPTextConfig(
            vocab_size=20,
            hidden_size=ldm.TEXT,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            projection_dim=10,
        )
        model = CLIPTextModelWithProjection(config)
        converted = converters.convert_open_clip_checkpoint(model, dict(tensors), prefix=prefix)
        return {f"{part}.{name}": tensor for name, tensor in converted.items()}

    return convert


def convert_flux(tensors: Mapping[str, Tensor]) -> Converted:
    converted = converters.convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    return {f"transformer.{name}": tensor for name, tensor in converted.items()}


def convert_sd3(tensors: Mapping[str, Tensor]) -> Converted:
    converted = converters.convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    return {f"transformer.{name}": tensor for name, tensor in converted.items()}


def flux(width: int = 3072, columns: int = 2) -> dict[str, Tensor]:
    """One block of each kind; the converter assumes the rows of q, k and v, but no columns."""
    shapes = {
        "img_in.weight": (8, 3), "txt_in.weight": (8, 3), "final_layer.linear.weight": (4, 8),
        "final_layer.adaLN_modulation.1.weight": (16, 8), "single_blocks.0.linear1.weight": (7 * width, columns),
        "single_blocks.0.linear2.weight": (8, 40), "single_blocks.0.modulation.lin.weight": (24, 8),
        "single_blocks.0.norm.query_norm.scale": (4,), "single_blocks.0.norm.key_norm.scale": (4,),
        "time_in.in_layer.weight": (8, 3), "time_in.out_layer.weight": (8, 8), "vector_in.in_layer.weight": (8, 3),
        "vector_in.out_layer.weight": (8, 8),
    }  # fmt: skip
    for side in ("img", "txt"):
        base = f"double_blocks.0.{side}"
        shapes |= {f"{base}_attn.qkv.weight": (3 * width, columns), f"{base}_attn.proj.weight": (8, 8)}
        shapes |= {f"{base}_mlp.0.weight": (32, 8), f"{base}_mlp.2.weight": (8, 32), f"{base}_mod.lin.weight": (48, 8)}
        shapes |= {f"{base}_attn.norm.{name}_norm.scale": (4,) for name in ("query", "key")}
    for name in [name for name in shapes if name.endswith(".weight")]:
        shapes[name.replace(".weight", ".bias")] = shapes[name][:1]
    return _random(shapes)


def sd3() -> dict[str, Tensor]:
    """Two blocks, of which the last has a context half without a feed-forward."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 4, 8), "x_embedder.proj.weight": (8, 4, 2, 2), "context_embedder.weight": (8, 5),
        "t_embedder.mlp.0.weight": (8, 4), "t_embedder.mlp.2.weight": (8, 8), "y_embedder.mlp.0.weight": (8, 4),
        "y_embedder.mlp.2.weight": (8, 8), "final_layer.linear.weight": (4, 8),
        "final_layer.adaLN_modulation.1.weight": (16, 8),
    }  # fmt: skip
    for block in range(2):
        for side in ("x_block", "context_block"):
            base, last = f"joint_blocks.{block}.{side}", side == "context_block" and block == 1
            shapes |= {f"{base}.attn.qkv.weight": (24, 8), f"{base}.adaLN_modulation.1.weight": (16 if last else 48, 8)}
            if not last:
                shapes |= {f"{base}.attn.proj.weight": (8, 8), f"{base}.mlp.fc1.weight": (32, 8)}
                shapes[f"{base}.mlp.fc2.weight"] = (8, 32)
    for name in [name for name in shapes if name.endswith(".weight")]:
        shapes[name.replace(".weight", ".bias")] = shapes[name][:1]
    return {f"{ldm.PREFIX}{name}": tensor for name, tensor in _random(shapes).items()}


def _random(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


UNET, FIRST = ldm.unet(), "cond_stage_model.transformer."
LAYOUTS: dict[str, tuple[dict[str, Tensor], list[Callable[[Mapping[str, Tensor]], Converted]]]] = {
    "sd 1": (UNET | ldm.clip(FIRST), [convert_unet, convert_clip(FIRST, "text_encoder")]),
    "sd 2": (
        UNET | ldm.open_clip("cond_stage_model.model."),
        [convert_unet, convert_open_clip("cond_stage_model.model.", "text_encoder")],
    ),
    "sdxl": (
        ldm.unet(levels=3, depth=2)
        | ldm.clip("conditioner.embedders.0.transformer.")
        | ldm.open_clip("conditioner.embedders.1.model."),
        [
            convert_unet,
            convert_clip("conditioner.embedders.0.transformer.", "text_encoder"),
            convert_open_clip("conditioner.embedders.1.model.", "text_encoder_2"),
        ],
    ),
    "flux": (flux(), [convert_flux]),
    "sd3": (sd3(), [convert_sd3]),
}


def wanted(layout: str, tensors: Mapping[str, Tensor]) -> Converted:
    """What diffusers makes of a checkpoint, without the projection, which its Stable Diffusion 2 does not have."""
    converted = {name: t for convert in LAYOUTS[layout][1] for name, t in convert(dict(tensors)).items()}
    missed = {"sd 2": {"text_encoder.text_projection.weight"}}.get(layout, set())
    return {name: tensor for name, tensor in converted.items() if name not in missed and "position_ids" not in name}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_of_a_single_file_is_where_diffusers_finds_it(tmp_path: Path, layout: str) -> None:
    tensors = LAYOUTS[layout][0]
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.family is not None and checkpoint.family.name == layout.partition(" ")[0]
    converted = wanted(layout, tensors)
    layers = {name for name, t in converted.items() if name.endswith(".weight") and is_layer(name[:-7]) and t.ndim > 1}
    assert len(layers) > 15 and layers <= set(checkpoint.tensors)
    for name, location in checkpoint.tensors.items():
        if name in converted:
            assert location.shape == tuple(converted[name].shape), name
            assert torch.equal(read_piece(location), converted[name]), name
    if layout.startswith("sd ") or layout == "sdxl":
        assert set(converted) <= set(checkpoint.tensors), "norms, biases and embeddings have diffusers' names, too"


@pytest.mark.parametrize("base", base_models(), ids=lambda base: base.key)
def test_every_module_of_the_base_models_is_a_layer_and_known_under_its_original_name(base: BaseModel) -> None:
    assert [name for name in base.modules if not is_layer(name)] == []
    for name, original in base.original.items():
        pieces = single_file_pieces(f"model.diffusion_model.{original}.weight")
        assert name in {piece.module for piece in pieces}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_merged_single_file_is_for_diffusers_the_sum_of_weights_and_change(tmp_path: Path, layout: str) -> None:
    # At FLUX' width nothing would be small; where its rows are, the test above has shown.
    tensors = flux(8, 8) if layout == "flux" else LAYOUTS[layout][0]
    base, out = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, base, metadata={"modelspec.hash_sha256": "0x1", "note": "kept"})

    def read(path: Path) -> Converted:
        if layout == "flux":
            return {name: read_piece(location) for name, location in open_checkpoint(path).tensors.items()}
        return wanted(layout, load_file(path))

    converted = read(base)
    generator = torch.Generator().manual_seed(5)
    modules = {}
    for name, tensor in converted.items():
        if name.endswith(".weight") and is_layer(name[:-7]) and tensor.ndim > 1:
            down = torch.randn(2, *tensor.shape[1:], generator=generator)
            up = torch.randn(len(tensor), 2, *([1] * (tensor.ndim - 2)), generator=generator)
            modules[name.removesuffix(".weight")] = Factors(down, up, 0.5)
    kept = {"sd 1": "sd", "sd 2": "sd"}.get(layout, layout)
    write_adapter(Adapter(modules, kept), tmp_path / "a.safetensors", format="diffusers")
    report = merge_files(base, [(tmp_path / "a.safetensors", 0.3)], out)
    assert report.modules == len(modules)
    written = load_file(out)
    assert list(written) == list(load_file(base))
    after = read(out)
    for name, tensor in converted.items():
        factors = modules.get(name.removesuffix(".weight"))
        if factors is None or not name.endswith(".weight"):
            assert torch.equal(after[name], tensor), name
            continue
        change = 0.15 * factors.up.double().flatten(1) @ factors.down.double().flatten(1)
        torch.testing.assert_close(after[name].double(), tensor.double() + change.reshape(tensor.shape), msg=name)
    header = open_checkpoint(out).files[0].header.metadata
    assert header["note"] == "kept" and "modelspec.hash_sha256" not in header and "draft.recipe" in header


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file({"some.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(StageError, match=r"not a checkpoint whose layout is known \(first tensor 'some.weight'\)"):
        open_checkpoint(tmp_path / "x.safetensors")
