"""`draft verify` names the releases of diffusers that read a file otherwise than the newest one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer

from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import write_adapter
from draft.adapters.verification.models import base_models
from draft.adapters.verification.tools import as_of, tools
from draft.adapters.verification.verify import verify
from draft_cli.verify import verify as command

BASES = {base.key: base for base in base_models()}


def make(base: str, ranks: dict[str, int]) -> Adapter:
    """Factors of ones for some modules of a base model."""
    modules = {}
    for name, rank in ranks.items():
        shape = BASES[base].modules[name]
        down = torch.ones(rank, *shape[1:], dtype=torch.bfloat16)
        modules[name] = Factors(down, torch.ones(shape[0], rank, *[1] * (len(shape) - 2), dtype=torch.bfloat16))
    return Adapter(modules, BASES[base].family)


def test_a_module_that_older_releases_drop_is_named_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = "unet.conv_in", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    write_adapter(make("sd1", {first: 2, second: 2}), tmp_path / "a.safetensors")
    report = verify(tmp_path / "a.safetensors")
    assert report.right
    assert [(v.tool, v.version, v.status, v.dropped) for v in report.older] == [
        ("diffusers", "0.36 to 0.38", "some", ("lora_unet_conv_in",))
    ]
    with pytest.raises(typer.Exit) as stop:
        command(tmp_path / "a.safetensors")
    assert stop.value.exit_code == 0
    assert "diffusers 0.36 to 0.38  loads 1 of 2 modules; drops lora_unet_conv_in" in capsys.readouterr().out
    with pytest.raises(typer.Exit):
        command(tmp_path / "a.safetensors", json=True)
    assert json.loads(capsys.readouterr().out)["older"][0]["version"] == "0.36 to 0.38"


def test_what_every_release_reads_alike_gets_no_remark(tmp_path: Path) -> None:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    write_adapter(make("sd1", {name: 2}), tmp_path / "a.safetensors")
    assert verify(tmp_path / "a.safetensors").older == ()


def test_without_alphas_older_releases_give_every_module_the_rank_of_the_first(tmp_path: Path) -> None:
    block = "transformer.transformer_blocks.0.attn"
    ranks = {f"{block}.to_add_out": 1, f"{block}.to_out.0": 4}
    write_adapter(make("flux", ranks), tmp_path / "a.safetensors", format="kohya")
    (older,) = verify(tmp_path / "a.safetensors").older
    assert (older.version, older.ratios) == ("0.36 to 0.39", (1.0, 4.0))
    write_adapter(make("flux", ranks), tmp_path / "a.safetensors", format="diffusers")
    assert verify(tmp_path / "a.safetensors").older == ()


def test_a_library_beside_which_older_releases_differ_is_named_with_them(tmp_path: Path) -> None:
    layer = "text_encoder.text_model.encoder.layers.0.self_attn"
    write_adapter(make("sd1", {f"{layer}.q_proj": 2, f"{layer}.out_proj": 2}), tmp_path / "a.safetensors")
    (older,) = verify(tmp_path / "a.safetensors").older
    assert (older.version, older.status) == ("0.36 to 0.40 with transformers 5", "refuses")
    assert as_of(tools()[0], "0.38.0", beside="transformers 5").beside == "transformers 5"
    assert as_of(tools()[0], "0.41.0", beside="transformers 5") is tools()[0]


@pytest.mark.parametrize(
    ("version", "entry"),
    [
        ("0.36.0", "0.36"),
        ("0.38.1", "0.37 to 0.38"),
        ("0.39.0", "0.39"),
        ("0.40.0", "0.40"),
        ("0.41.0", "0.42.1"),
        ("1.0", "0.42.1"),
    ],
)
def test_a_release_is_read_by_the_newest_entry_that_is_not_later(version: str, entry: str) -> None:
    assert as_of(tools()[0], version).version == entry
