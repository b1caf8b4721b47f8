"""`inspect` and `verify` show what LoHa, LoKr, LoCon and DoRA files hold, their header included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from draft.adapters.inspect import inspect_adapter
from draft.adapters.verification.verify import verify
from draft_cli.inspect import inspect as inspect_command
from draft_cli.verify import verify as verify_command

ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"
HEADER = {"ss_output_name": "sample", "modelspec.title": "Sample"}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def hadamard(name: str) -> dict[str, Tensor]:
    factors = {
        f"{name}.hada_w{n}_{side}": random(*shape) for n in "12" for side, shape in (("a", (320, 4)), ("b", (4, 768)))
    }
    return {**factors, f"{name}.alpha": torch.tensor(2.0)}


def kronecker(name: str) -> dict[str, Tensor]:
    return {f"{name}.lokr_w1": random(8, 8), f"{name}.lokr_w2_a": random(40, 4), f"{name}.lokr_w2_b": random(4, 96)}


def plain(name: str) -> dict[str, Tensor]:
    return {f"{name}.lora_up.weight": random(320, 4), f"{name}.lora_down.weight": random(4, 768)}


def core(name: str) -> dict[str, Tensor]:
    up, down = random(320, 4, 1, 1), random(4, 320, 1, 1)
    return {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": down,
        f"{name}.lora_mid.weight": random(4, 4, 3, 3),
    }


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    inspect_command(path)
    return capsys.readouterr().out


def checked(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as stop:
        verify_command(path)
    return stop.value.exit_code, capsys.readouterr().out


def test_a_loha_is_shown_with_its_exact_size_and_its_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = hadamard(ATTENTION)
    save_file(tensors, tmp_path / "a.safetensors", metadata=HEADER)
    facts = inspect_adapter(tmp_path / "a.safetensors")
    pairs = [tensors[f"{ATTENTION}.hada_w{n}_a"].double() @ tensors[f"{ATTENTION}.hada_w{n}_b"].double() for n in "12"]
    assert facts.norm == pytest.approx(float((pairs[0] * pairs[1]).norm()) * 2 / 4, rel=1e-9)
    assert (facts.facts.kinds, facts.facts.ranks, facts.facts.alphas) == ({"LoHa": 1}, {"LoHa": 1}, {2.0: 1})
    text = shown(tmp_path / "a.safetensors", capsys)
    assert "LoHa 1" in text and "trained as" in text and "sample" in text and "Stable Diffusion 1" in text


def test_a_lokr_is_shown_with_its_exact_size(tmp_path: Path) -> None:
    tensors = kronecker(ATTENTION)
    save_file(tensors, tmp_path / "a.safetensors")
    second = tensors[f"{ATTENTION}.lokr_w2_a"].double() @ tensors[f"{ATTENTION}.lokr_w2_b"].double()
    facts = inspect_adapter(tmp_path / "a.safetensors")
    assert facts.norm == pytest.approx(
        float(torch.kron(tensors[f"{ATTENTION}.lokr_w1"].double(), second).norm()), rel=1e-9
    )
    assert facts.facts.kinds == {"LoKr": 1} and facts.model == "Stable Diffusion 1"


def test_a_dora_is_shown_as_the_factors_that_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({**plain(ATTENTION), f"{ATTENTION}.dora_scale": torch.ones(320, 1)}, tmp_path / "a.safetensors", HEADER)
    assert inspect_adapter(tmp_path / "a.safetensors").facts.kinds == {"DoRA": 1}
    text = shown(tmp_path / "a.safetensors", capsys)
    assert "||dW|| without DoRA's magnitudes" in text and "Sample" in text
    inspect_command(tmp_path / "a.safetensors", json=True)
    assert json.loads(capsys.readouterr().out)["metadata"]["ss_output_name"] == "sample"


def test_the_kinds_of_a_mixed_file_are_counted(tmp_path: Path) -> None:
    other = ATTENTION.replace("to_k", "to_v")
    save_file({**hadamard(ATTENTION), **plain(other), **core(CONVOLUTION)}, tmp_path / "a.safetensors")
    assert inspect_adapter(tmp_path / "a.safetensors").facts.kinds == {"LoCon": 1, "LoHa": 1, "LoRA": 1}


@pytest.mark.parametrize(
    ("make", "statuses"),
    [
        (hadamard, {"diffusers": "refuses", "ComfyUI": "all", "A1111": "all", "InvokeAI": "all"}),
        (kronecker, {"diffusers": "refuses", "ComfyUI": "all", "A1111": "all", "InvokeAI": "refuses"}),
    ],
)
def test_who_loads_a_loha_or_a_lokr_is_said(
    make: Callable[[str], dict[str, Tensor]],
    statuses: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_file(make(ATTENTION), tmp_path / "a.safetensors")
    report = verify(tmp_path / "a.safetensors")
    assert {verdict.tool: verdict.status for verdict in report.verdicts} == statuses
    assert {verdict.ratios for verdict in report.verdicts} == {(1.0,)}
    code, text = checked(tmp_path / "a.safetensors", capsys)
    assert code == 1 and "--format kohya --rank N loads whole" in text


def test_a_program_that_leaves_dora_s_magnitudes_out_is_not_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({**plain(ATTENTION), f"{ATTENTION}.dora_scale": torch.ones(320, 1)}, tmp_path / "a.safetensors")
    code, text = checked(tmp_path / "a.safetensors", capsys)
    right = {verdict.tool for verdict in verify(tmp_path / "a.safetensors").verdicts if verdict.right}
    assert code == 1 and right == {"ComfyUI", "A1111", "InvokeAI"} and "hint" not in text
    assert "loads its module; without DoRA's magnitudes, so that the change is another" in text
