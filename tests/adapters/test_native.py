"""Layers that the original code of a transformer names and fuses its own way, against diffusers' checkpoint converters.

Those converters only move rows about, so that they can be asked what they make of dW X for a few random columns X
instead of the whole dW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import save_file

from draft.adapters.files.container import read_tensors
from draft.adapters.files.formats import Adapter, Factors, read_adapter, write_adapter

F = 3072
Native = dict[str, Factors]


def probe(columns: int) -> torch.Tensor:
    """Three random columns, the same for every module with as many inputs."""
    return torch.randn(columns, 3, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)


def seen(factors: Factors) -> torch.Tensor:
    """dW X."""
    down = factors.down.double().flatten(1)
    return factors.scale * factors.up.double().flatten(1) @ (down @ probe(down.shape[1]))


def make(shapes: Mapping[str, tuple[int, int]], *, rank: int = 2, alpha: float = 3.0) -> Native:
    """Random factors for modules of the given (outputs, inputs)."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: Factors(
            torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator), alpha / rank
        )
        for name, (rows, columns) in shapes.items()
    }


def kohya(native: Native) -> dict[str, torch.Tensor]:
    """As sd-scripts writes them."""
    tensors = {}
    for name, factors in native.items():
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{flat}.lora_down.weight"], tensors[f"{flat}.lora_up.weight"] = factors.down, factors.up
        tensors[f"{flat}.alpha"] = torch.tensor(factors.scale * factors.rank)
    return tensors


def dotted(prefix: str, down: str, up: str, alpha: bool) -> Callable[[Native], dict[str, torch.Tensor]]:
    """As ComfyUI and others write them; without an alpha the scale goes into B."""

    def write(native: Native) -> dict[str, torch.Tensor]:
        tensors = {}
        for name, factors in native.items():
            tensors[f"{prefix}{name}.{down}.weight"] = factors.down
            tensors[f"{prefix}{name}.{up}.weight"] = factors.up if alpha else factors.up * factors.scale
            if alpha:
                tensors[f"{prefix}{name}.alpha"] = torch.tensor(factors.scale * factors.rank)
        return tensors

    return write


SPELLINGS = {
    "kohya": kohya,
    "ComfyUI": dotted("diffusion_model.", "lora_A", "lora_B", False),
    "ComfyUI with alpha": dotted("diffusion_model.", "lora_down", "lora_up", True),
    "bare": dotted("", "lora_A", "lora_B", False),
    "peft": dotted("base_model.model.", "lora_A", "lora_B", False),
}


def check(adapter: Adapter, wanted: Mapping[str, torch.Tensor]) -> None:
    """The adapter changes the modules of a converted checkpoint, all of them and no other, by exactly its dW X."""
    modules = {name.removeprefix("transformer."): factors for name, factors in adapter.modules.items()}
    weights = {name.removesuffix(".weight"): value for name, value in wanted.items() if name.endswith(".weight")}
    changed = {name for name, value in weights.items() if value.abs().max() > 0}
    assert set(modules) == changed
    for name, factors in modules.items():
        torch.testing.assert_close(seen(factors), weights[name].double(), rtol=1e-5, atol=1e-4)


def flux_shapes() -> dict[str, tuple[int, int]]:
    """Every layer of a FLUX.1 of one double and one single block, as Black Forest Labs' code has it."""
    shapes = {
        "img_in": (F, 64),
        "txt_in": (F, 4096),
        "time_in.in_layer": (F, 256),
        "time_in.out_layer": (F, F),
        "vector_in.in_layer": (F, 768),
        "vector_in.out_layer": (F, F),
        "guidance_in.in_layer": (F, 256),
        "guidance_in.out_layer": (F, F),
        "single_blocks.0.linear1": (7 * F, F),
        "single_blocks.0.linear2": (F, 5 * F),
        "single_blocks.0.modulation.lin": (3 * F, F),
        "final_layer.linear": (64, F),
        "final_layer.adaLN_modulation.1": (2 * F, F),
    }
    for stream in ("img", "txt"):
        block = f"double_blocks.0.{stream}"
        shapes |= {
            f"{block}_attn.qkv": (3 * F, F),
            f"{block}_attn.proj": (F, F),
            f"{block}_mlp.0": (4 * F, F),
            f"{block}_mlp.2": (F, 4 * F),
            f"{block}_mod.lin": (6 * F, F),
        }
    return shapes


def flux_checkpoint(native: Native) -> dict[str, torch.Tensor]:
    checkpoint = {f"{name}.weight": seen(factors) for name, factors in native.items()}
    checkpoint |= {f"{name}.bias": torch.zeros(len(factors.up)) for name, factors in native.items()}
    norms = [
        f"double_blocks.0.{stream}_attn.norm.{which}_norm" for stream in ("img", "txt") for which in ("query", "key")
    ]
    norms += [f"single_blocks.0.norm.{which}_norm" for which in ("query", "key")]
    checkpoint |= {f"{name}.scale": torch.zeros(1) for name in norms}
    return convert_flux_transformer_checkpoint_to_diffusers(checkpoint)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_layer_of_flux_is_read_as_diffusers_converts_the_checkpoint_itself(tmp_path: Path, spelling: str) -> None:
    native = make(flux_shapes())
    save_file(SPELLINGS[spelling](native), tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.family == "flux" and len(adapter.modules) == 30
    check(adapter, flux_checkpoint(native))


def sd3_shapes(*, dual: bool) -> dict[str, tuple[int, int]]:
    """Every layer of a Stable Diffusion 3 of two blocks, as Stability AI's code has it; `dual` as in 3.5 medium."""
    w = 48
    shapes = {
        "context_embedder": (w, 20),
        "t_embedder.mlp.0": (w, 256),
        "t_embedder.mlp.2": (w, w),
        "y_embedder.mlp.0": (w, 30),
        "y_embedder.mlp.2": (w, w),
        "final_layer.linear": (64, w),
        "final_layer.adaLN_modulation.1": (2 * w, w),
    }
    for block in (0, 1):
        for side in ("x_block", "context_block"):
            path = f"joint_blocks.{block}.{side}"
            shapes |= {f"{path}.attn.qkv": (3 * w, w)}
            if block == 1 and side == "context_block":
                # The last block's context goes no further: it has no output and no feed-forward.
                shapes |= {f"{path}.adaLN_modulation.1": (2 * w, w)}
                continue
            twice = dual and block == 0 and side == "x_block"
            shapes |= {
                f"{path}.attn.proj": (w, w),
                f"{path}.mlp.fc1": (4 * w, w),
                f"{path}.mlp.fc2": (w, 4 * w),
                f"{path}.adaLN_modulation.1": ((9 if twice else 6) * w, w),
            }
            if twice:
                shapes |= {f"{path}.attn2.qkv": (3 * w, w), f"{path}.attn2.proj": (w, w)}
    return shapes


def sd3_checkpoint(native: Native) -> dict[str, torch.Tensor]:
    checkpoint = {f"{name}.weight": seen(factors) for name, factors in native.items()}
    checkpoint |= {f"{name}.bias": torch.zeros(len(factors.up)) for name, factors in native.items()}
    checkpoint |= {"pos_embed": torch.zeros(1)}
    checkpoint |= {"x_embedder.proj.weight": torch.zeros(1), "x_embedder.proj.bias": torch.zeros(1)}
    converted = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    del converted["pos_embed.pos_embed"]
    return converted


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("dual", [False, True])
def test_every_layer_of_sd3_is_read_as_diffusers_converts_the_checkpoint_itself(
    tmp_path: Path, spelling: str, dual: bool
) -> None:
    native = make(sd3_shapes(dual=dual))
    save_file(SPELLINGS[spelling](native), tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.family == "sd3" and len(adapter.modules) == (36 if dual else 32)
    check(adapter, sd3_checkpoint(native))


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_kohya_s_names_are_written_as_they_were_read(tmp_path: Path, family: str) -> None:
    native = make(flux_shapes() if family == "flux" else sd3_shapes(dual=True), alpha=2.0)
    save_file(kohya(native), tmp_path / "a.safetensors")
    write_adapter(read_adapter(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", format="kohya")
    first, second = read_tensors(tmp_path / "a.safetensors")[0], read_tensors(tmp_path / "b.safetensors")[0]
    assert sorted(first) == sorted(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
