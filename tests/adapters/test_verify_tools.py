"""What ComfyUI's and InvokeAI's key maps say of names that their sources map, and of shapes that they reshape."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from draft.adapters.conversion import convert_file
from draft.adapters.files.formats import read_adapter, write_adapter
from draft.adapters.mixture import mix_files
from draft.adapters.verification.models import base_models, data
from draft.adapters.verification.tools import NAMES
from draft.adapters.verification.verdict import Verdict
from draft.adapters.verification.verify import verify

BASES = {base.key: base for base in base_models()}
PEFT = (".lora_B.weight", ".lora_A.weight")
KOHYA = (".lora_up.weight", ".lora_down.weight")
XLABS = (".up.weight", ".down.weight")


def factors(
    name: str, shape: tuple[int, ...], pair: tuple[str, str], *, convolution: bool = False
) -> dict[str, Tensor]:
    """Rank-2 factors of a change of a shape."""
    end = (1, 1) if convolution else ()
    generator = torch.Generator().manual_seed(sum(shape))
    up, down = (
        torch.randn(shape[0], 2, *end, generator=generator),
        torch.randn(2, *shape[1:], *end, generator=generator),
    )
    return {f"{name}{pair[0]}": up, f"{name}{pair[1]}": down}


def verdicts(path: Path) -> dict[str, Verdict]:
    return {verdict.tool: verdict for verdict in verify(path).verdicts}


def statuses(path: Path) -> dict[str, str]:
    return {name: verdict.status for name, verdict in verdicts(path).items()}


@pytest.mark.parametrize(
    ("base", "part", "prefix"),
    [
        ("sd1", "text_encoder", "text_encoders.clip_l.transformer."),
        ("sdxl", "text_encoder", "text_encoders.clip_l.transformer."),
        ("sdxl", "text_encoder_2", "text_encoders.clip_g.transformer."),
        ("sd3", "text_encoder_3", "text_encoders.t5xxl.transformer."),
        ("flux", "text_encoder", "text_encoders.clip_l.transformer."),
        ("flux", "text_encoder_2", "text_encoders.t5xxl.transformer."),
    ],
)
def test_comfyui_maps_the_names_that_begin_with_text_encoders(
    base: str, part: str, prefix: str, tmp_path: Path
) -> None:
    kinds = r"self_attn|SelfAttention|transformer_blocks\.0.*to_k"
    names = [name for name in BASES[base].modules if re.search(kinds, name) and name.startswith((f"{part}.", "unet."))]
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = name.removeprefix(f"{part}.")
        unet = f"lora_unet_{name.removeprefix('unet.').replace('.', '_')}"
        tensors |= factors(unet if name.startswith("unet.") else prefix + path, BASES[base].modules[name], KOHYA)
    header = {"sd3": "stable-diffusion-3-medium/lora", "flux": "flux-1-dev/lora"}.get(base, "")
    save_file(tensors, tmp_path / "a.safetensors", metadata={"modelspec.architecture": header})
    verdict = verdicts(tmp_path / "a.safetensors")["ComfyUI"]
    assert (verdict.status, verdict.dropped) == ("all", ())


def xlabs(blocks: int, *, single: int = 0) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for block in range(blocks):
        for stream in "12":
            name = f"double_blocks.{block}.processor"
            tensors |= factors(f"{name}.qkv_lora{stream}", (9216, 3072), XLABS)
            tensors |= factors(f"{name}.proj_lora{stream}", (3072, 3072), XLABS)
    for block in range(single):
        tensors |= factors(f"single_blocks.{block}.processor.qkv_lora", (9216, 3072), XLABS)
        tensors |= factors(f"single_blocks.{block}.processor.proj_lora", (3072, 15360), XLABS)
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def test_xlabs_processors_of_double_blocks_load_in_diffusers_and_invokeai(tmp_path: Path) -> None:
    save_file(xlabs(1), tmp_path / "a.safetensors")
    assert statuses(tmp_path / "a.safetensors") == {
        "diffusers": "all",
        "ComfyUI": "none",
        "A1111": "unknown",
        "InvokeAI": "all",
    }


def test_xlabs_processors_of_all_blocks_load_in_diffusers_and_comfyui(tmp_path: Path) -> None:
    save_file(xlabs(19, single=38), tmp_path / "a.safetensors")
    assert statuses(tmp_path / "a.safetensors") == {
        "diffusers": "all",
        "ComfyUI": "all",
        "A1111": "unknown",
        "InvokeAI": "refuses",
    }
    assert all(verdict.ratios == (1.0,) for verdict in verdicts(tmp_path / "a.safetensors").values())


def test_kohya_s_endings_under_diffusers_names_lose_their_alpha_in_diffusers_alone(tmp_path: Path) -> None:
    block = "transformer.transformer_blocks.0.attn"
    tensors = {**factors(f"{block}.to_out.0", (3072, 3072), KOHYA), f"{block}.to_out.0.alpha": torch.tensor(0.5)}
    tensors |= {**factors(f"{block}.to_add_out", (3072, 3072), KOHYA), f"{block}.to_add_out.alpha": torch.tensor(0.5)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"modelspec.architecture": "flux-1-dev/lora"})
    found = verdicts(tmp_path / "a.safetensors")
    assert (found["diffusers"].status, found["diffusers"].ratios) == ("all", (4.0,))
    assert found["ComfyUI"].right


KEY, PROJECTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "down_blocks.0.attentions.0.proj_in"


def second(path: Path, *, convolution: bool) -> Path:
    """A file of kohya's for Stable Diffusion 2."""
    tensors = factors(f"lora_unet_{KEY.replace('.', '_')}", (320, 1024), KOHYA)
    tensors |= factors(f"lora_unet_{PROJECTION.replace('.', '_')}", (320, 320), KOHYA, convolution=convolution)
    save_file(tensors, path)
    return path


def test_a_projection_of_stable_diffusion_2_as_a_convolution_is_refused_by_diffusers_alone(tmp_path: Path) -> None:
    file = second(tmp_path / "a.safetensors", convolution=True)
    assert statuses(file) == {"diffusers": "refuses", "ComfyUI": "all", "A1111": "all", "InvokeAI": "all"}
    assert set(statuses(second(tmp_path / "b.safetensors", convolution=False)).values()) == {"all"}


def test_converting_makes_a_linear_layer_of_it_that_diffusers_loads(tmp_path: Path) -> None:
    file = second(tmp_path / "a.safetensors", convolution=True)
    assert verify(file).formats["kohya"] == ("diffusers", "ComfyUI", "A1111", "InvokeAI")
    for format in ("kohya", "diffusers"):
        convert_file(file, tmp_path / f"{format}.safetensors", format=format)
        assert verdicts(tmp_path / f"{format}.safetensors")["diffusers"].right
    linear = read_adapter(second(tmp_path / "b.safetensors", convolution=False)).modules[f"unet.{PROJECTION}"]
    assert torch.equal(read_adapter(tmp_path / "kohya.safetensors").modules[f"unet.{PROJECTION}"].down, linear.down)


def test_it_mixes_with_a_file_of_diffusers(tmp_path: Path) -> None:
    file = second(tmp_path / "a.safetensors", convolution=True)
    write_adapter(
        read_adapter(second(tmp_path / "b.safetensors", convolution=False)),
        tmp_path / "c.safetensors",
        format="diffusers",
    )
    mix_files([(file, 1.0), (tmp_path / "c.safetensors", -1.0)], tmp_path / "mix.safetensors")
    mixed = read_adapter(tmp_path / "mix.safetensors").modules[f"unet.{PROJECTION}"]
    assert mixed.down.ndim == 2 and not (mixed.up @ mixed.down).any()


@pytest.mark.parametrize("name", NAMES)
def test_every_key_map_says_where_it_is_from(name: str) -> None:
    document = json.loads(data(f"tools/{name}.json"))
    assert document["source"].startswith("https://github.com/")
    assert document["files"] and re.fullmatch(r"20\d\d-\d\d-\d\d", document["read"]) and document["version"]
    assert name == "diffusers" or "commit" in document or any(" at " in file for file in document["files"])
