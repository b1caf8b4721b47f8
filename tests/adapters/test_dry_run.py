"""`draft mix --dry-run` predicts what the same command without it writes, to the byte, and fails where that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import write_adapter
from draft.errors import DraftError
from draft_cli.mix import mix

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
UNET = {f"{BLOCK}.attn1.to_q": (24, 20), f"{BLOCK}.attn2.to_k": (24, 20), f"{BLOCK}.ff.net.2": (80, 20)}
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = {"text_encoder.text_model.encoder.layers.3.mlp.fc1": (16, 32)}
FLUX = {
    **{f"transformer.transformer_blocks.0.attn.to_{letter}": (16, 16) for letter in "qkv"},
    "transformer.single_transformer_blocks.0.proj_mlp": (16, 64),
}


def factors(seed: int, rank: int, inner: int, out: int, *kernel: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, inner, *kernel, generator=generator).half()
    return Factors(down, torch.randn(out, rank, *(1 for _ in kernel), generator=generator).half(), 0.7)


def files(folder: Path, shapes: dict[str, tuple[int, int]], family: str, *, conv: bool = False) -> list[str]:
    """Two adapters of different ranks, one of them of several; the second shares an A with itself only."""
    for i in range(2):
        modules = {name: factors(i + 10 * j, 3 + (i * j) % 3, *shape) for j, (name, shape) in enumerate(shapes.items())}
        if conv:
            modules[CONV] = factors(i, 2 + i, 8, 16, 3, 3)
        write_adapter(Adapter(modules, family), folder / f"{i}.safetensors", format="diffusers")
    return [f"{folder / '0.safetensors'}:0.7", f"{folder / '1.safetensors'}:-0.3"]


def written(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"rank": 2},
    {"max_error": 0.3},
    {"energy": 0.8, "dtype": "fp32"},
    {"dtype": "bf16"},
    {"method": "ties", "rank": 3, "density": 0.5},
    {"block": ["*attn1*=0"]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["kohya", "diffusers", "peft", "folder"])
def test_the_size_that_a_dry_run_predicts_is_that_of_the_file(
    tmp_path: Path, capsys, kind: str, options: dict[str, Any]
) -> None:
    inputs = files(tmp_path, UNET if kind in ("peft", "folder") else UNET | TEXT, "sd", conv=True)
    check(tmp_path, capsys, inputs, "peft" if kind == "folder" else kind, options, folder=kind == "folder")


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"max_error": 0.3}], ids=str)
@pytest.mark.parametrize("kind", ["kohya", "diffusers", "peft"])
def test_so_it_is_where_a_format_fuses_layers(tmp_path: Path, capsys, kind: str, options: dict[str, Any]) -> None:
    flux = {name: shape for name, shape in FLUX.items() if "attn" in name or kind != "peft"}
    check(tmp_path, capsys, files(tmp_path, flux, "flux"), kind, options, folder=False)


def check(tmp_path: Path, capsys, inputs: list[str], format: str, options: dict[str, Any], *, folder: bool) -> None:
    target = tmp_path / ("out" if folder else "out.safetensors")
    mix(inputs, output=target, format=format, dry_run=True, json=True, **options)
    predicted = json.loads(capsys.readouterr().out)
    mix(inputs, output=target, format=format, dry_run=True, **options)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("would write"))
    assert not target.exists()
    mix(inputs, output=target, format=format, **options)
    assert line.replace("would write", "wrote") in capsys.readouterr().out.splitlines()
    assert predicted["bytes"] == written(target) > predicted["bytes_of_factors"]
    mix(inputs, output=target, format=format, force=True, json=True, **options)
    told = json.loads(capsys.readouterr().out)
    assert (told["bytes"], told["bytes_of_factors"]) == (predicted["bytes"], predicted["bytes_of_factors"])


def test_an_adapter_with_itself_is_predicted_at_its_own_rank(tmp_path: Path, capsys) -> None:
    inputs = files(tmp_path, UNET, "sd")[:1]
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((tmp_path / "0.safetensors").read_bytes())
    check(tmp_path, capsys, [*inputs, f"{copy}:0.5"], "kohya", {}, folder=False)


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_cannot_be_written_is_refused_in_a_dry_run_too(tmp_path: Path, dry_run: bool) -> None:
    tiny = {f"{BLOCK}.attn1.to_q": Factors(torch.full((2, 24), 1e-9), torch.full((20, 2), 1e-9))}
    write_adapter(Adapter(tiny), tmp_path / "a.safetensors")
    with pytest.raises(DraftError, match="too small for float16"):
        mix([str(tmp_path / "a.safetensors")], output=tmp_path / "b.safetensors", dtype="fp16", dry_run=dry_run)
    write_adapter(Adapter({**tiny, next(iter(TEXT)): factors(0, 2, 16, 32)}), tmp_path / "c.safetensors")
    with pytest.raises(DraftError, match="a peft adapter belongs to one model"):
        mix([str(tmp_path / "c.safetensors")], output=tmp_path / "b.safetensors", format="peft", dry_run=dry_run)
    assert not (tmp_path / "b.safetensors").exists()
