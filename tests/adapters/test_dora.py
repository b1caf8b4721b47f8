"""DoRA with its base model: its change against peft's layers and the formula, and its printed errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from draft.adapters.changes import dense
from draft.adapters.files.formats import read_adapter, read_changes
from draft.adapters.model.checkpoint import open_checkpoint
from draft.adapters.model.tensors import weights_of
from draft.errors import DraftError
from draft_cli.convert import convert
from draft_cli.merge import merge
from draft_cli.mix import mix
from draft_cli.resize import resize

UNET = "unet/diffusion_pytorch_model.safetensors"
Q, CONV = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"
FLAT = {name: f"lora_unet_{name.replace('.', '_')}" for name in (Q, CONV)}


def base(model: Path) -> dict[str, Tensor]:
    tensors = load_file(model / UNET)
    return {name: tensors[f"{name}.weight"].double() for name in (Q, CONV)}


def save_dora(model: Path, path: Path, *, axis: str = "outputs", size: float = 0.1) -> dict[str, Tensor]:
    """A DoRA of a linear layer and a convolution, as LyCORIS writes it; gives its dense changes in float64."""
    draw, tensors, changes = torch.Generator().manual_seed(0), {}, {}
    for name, weight in base(model).items():
        out, columns, *kernel = weight.shape
        down = torch.randn(3, columns, *kernel, generator=draw)
        up = size * torch.randn(out, 3, *([1] * len(kernel)), generator=draw)
        over = (1, *range(2, weight.ndim)) if axis == "outputs" else (0, *range(2, weight.ndim))
        norms = weight.square().sum(over, keepdim=True).sqrt()
        magnitude = (norms * (1 + 0.2 * torch.randn(norms.shape, generator=draw))).float()
        moved = weight + 0.5 * (up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)
        unit = moved / moved.square().sum(over, keepdim=True).sqrt()
        changes[f"unet.{name}"] = (magnitude.double() * unit - weight).flatten(1)
        tensors |= {
            f"{FLAT[name]}.lora_down.weight": down,
            f"{FLAT[name]}.lora_up.weight": up,
            f"{FLAT[name]}.alpha": torch.tensor(1.5),
            f"{FLAT[name]}.dora_scale": magnitude,
        }
    save_file(tensors, path)
    return changes


def read(path: Path, model: Path) -> dict[str, Tensor]:
    changes = read_changes(path, base=weights_of(open_checkpoint(model)))
    return {name: dense(change) for name, change in changes.modules.items()}


def cut(change: Tensor, rank: int) -> Tensor:
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


def off(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    missed = sum(float((got[name] - change).square().sum()) for name, change in wanted.items())
    return math.sqrt(missed / sum(float(change.square().sum()) for change in wanted.values()))


def digits(number: float) -> Any:
    return pytest.approx(number, rel=5e-4)


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
def test_its_change_is_the_formula_s_for_either_axis(tiny_model: Path, tmp_path: Path, axis: str) -> None:
    wanted = save_dora(tiny_model, tmp_path / "a.safetensors", axis=axis)
    got = read(tmp_path / "a.safetensors", tiny_model)
    assert set(got) == set(wanted)
    for name, change in wanted.items():
        torch.testing.assert_close(got[name], change, rtol=1e-9, atol=1e-12)


def test_its_change_is_that_of_peft_s_own_layers(tiny_model: Path, tmp_path: Path) -> None:
    weights = base(tiny_model)

    class Modules(torch.nn.Module):
        """The two layers, under flat names."""

        def __init__(self) -> None:
            super().__init__()
            out, columns = weights[Q].shape
            self.linear = torch.nn.Linear(columns, out, bias=False)
            out, columns = weights[CONV].shape[:2]
            self.conv = torch.nn.Conv2d(columns, out, 3, bias=False)
            for layer, name in ((self.linear, Q), (self.conv, CONV)):
                layer.weight.data = weights[name].float()

    config = LoraConfig(r=3, lora_alpha=6, target_modules=["linear", "conv"], use_dora=True)
    model = get_peft_model(Modules(), config)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    renamed = {"linear": Q, "conv": CONV}
    tensors = {}
    for name, tensor in get_peft_model_state_dict(model).items():
        layer, rest = name.removeprefix("base_model.model.").split(".", 1)
        tensors[f"base_model.model.{renamed[layer]}.{rest}"] = tensor.contiguous()
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_dora": True}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(settings))
    merged = model.merge_and_unload()
    got = read(tmp_path / "a", tiny_model)
    for layer, name in renamed.items():
        change = merged.get_parameter(f"{layer}.weight").double() - weights[name]
        torch.testing.assert_close(got[f"unet.{name}"], change.flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("command", [convert, resize])
def test_its_nearest_lora_has_the_printed_error_before_and_after_rounding(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Any, dtype: str
) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    wanted = save_dora(tiny_model, source)
    command(source, target, rank=2, dtype=dtype, base=str(tiny_model), json=True)
    report = json.loads(capsys.readouterr().out)
    written = {name: dense(factors) for name, factors in read_adapter(target).modules.items()}
    best = off({name: cut(change, 2) for name, change in wanted.items()}, wanted)
    assert report["predicted_error"] == digits(best) and best > 0.1
    assert report["error"] == digits(off(written, wanted))
    recipe = json.loads(read_adapter(target).metadata["draft.recipe"])
    assert recipe["base"]["name"] == tiny_model.name and recipe["error"] == digits(best)


def test_a_merge_adds_it_times_its_weight_and_reports_what_survives(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = save_dora(tiny_model, tmp_path / "a.safetensors")
    before = load_file(tiny_model / UNET)
    merge(str(tiny_model), [f"{tmp_path / 'a.safetensors'}:0.6"], output=tmp_path / "out", dtype="bf16", json=True)
    report, after = json.loads(capsys.readouterr().out), load_file(tmp_path / "out" / UNET)
    got = {name: after[f"{name.removeprefix('unet.')}.weight"].double().flatten(1) for name in wanted}
    old = {name: before[f"{name.removeprefix('unet.')}.weight"].double().flatten(1) for name in wanted}
    scaled = {name: 0.6 * change for name, change in wanted.items()}
    assert report["relative_error"] == digits(off({name: got[name] - old[name] for name in wanted}, scaled))
    exact = {name: old[name] + change for name, change in scaled.items()}
    for name, weight in exact.items():
        assert got[name].equal(weight.bfloat16().double())


def test_what_it_cannot_be_read_with_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_dora(tiny_model, source)
    with pytest.raises(DraftError, match="DoRA is not a sum of B A") as error:
        mix([str(source)], output=target)
    assert "--base MODEL --rank N" in error.value.hint
    with pytest.raises(DraftError, match="DoRA is not a sum of B A"):
        convert(source, target, base=str(tiny_model))
    tensors = load_file(source)
    for name, magnitude, what in (
        ("short", torch.ones(5), "must be 16, one for each output"),
        ("nan", torch.full((16, 1), math.nan), "has NaN or infinite values"),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors | {f"{FLAT[Q]}.dora_scale": magnitude}, path)
        with pytest.raises(DraftError, match=what):
            convert(path, target, rank=2, base=str(tiny_model))
    narrow = {name: tensor for name, tensor in tensors.items() if FLAT[Q] in name}
    narrow[f"{FLAT[Q]}.lora_down.weight"] = torch.ones(3, 8)
    save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(DraftError, match="is 16 x 16 in the base model, its change 16 x 8"):
        convert(tmp_path / "narrow.safetensors", target, rank=2, base=str(tiny_model))
    plain = {name: tensor for name, tensor in tensors.items() if "dora" not in name}
    save_file(plain, tmp_path / "plain.safetensors")
    with pytest.raises(DraftError, match="no DoRA modules, so that it needs no base"):
        resize(tmp_path / "plain.safetensors", target, rank=2, base=str(tiny_model))
    assert not target.exists()
