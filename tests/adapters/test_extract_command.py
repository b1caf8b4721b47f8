"""`draft extract`: the difference of two models as a LoRA, its error, and what no LoRA holds."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import load_file, save_file
from torch import Tensor

from draft.adapters.files.formats import Adapter, Factors, read_adapter, write_adapter
from draft.adapters.model.merging import merge_files
from draft.errors import ConfigError, StageError
from draft_cli.extract import extract

_SPEC = importlib.util.spec_from_file_location("ldm", Path(__file__).with_name("ldm.py"))
assert _SPEC is not None and _SPEC.loader is not None
ldm = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(ldm)

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "base")
    return Path("base")


def changed(model: Path, target: str, *, noise: float = 0.1, only: str = "", dtype: Any = None) -> dict[str, Tensor]:
    """A copy of a model with other weights; gives the differences in float64 by adapters' names."""
    shutil.copytree(model, target)
    generator, differences = torch.Generator().manual_seed(3), {}
    for file in (UNET, TEXT):
        part = file.partition("/")[0]
        before, after = load_file(model / file), {}
        for name, tensor in before.items():
            moved = tensor + noise * torch.randn(tensor.shape, generator=generator) if only in name else tensor
            after[name] = moved.to(dtype or tensor.dtype)
            plain = f"text_model.{name.removeprefix('text_model.')}" if part == "text_encoder" else name
            differences[f"{part}.{plain}"] = after[name].double() - tensor.double()
        save_file(after, Path(target) / file, metadata={"format": "pt"})
    return differences


def is_layer(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.ndim > 1 and "embedding" not in name.replace("time_embedding", "")


def dense(factors: Factors) -> Tensor:
    return factors.scale * factors.up.double().flatten(1) @ factors.down.double().flatten(1)


@pytest.mark.parametrize("options", [{"rank": 3}, {"energy": 0.8}, {"max_error": 0.4}, {"rank": 3, "dtype": "bf16"}])
def test_the_printed_error_is_that_of_a_dense_computation(
    model: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    differences = changed(model, "tuned", dtype=torch.float16)
    extract("base", "tuned", output=Path("out.safetensors"), json=True, **options)
    report = json.loads(capsys.readouterr().out)
    written = read_adapter(Path("out.safetensors"))
    layers = {n.removesuffix(".weight"): d.flatten(1) for n, d in differences.items() if is_layer(n, d)}
    assert set(written.modules) == set(layers) and report["modules"] == len(layers)
    missed = {name: float((d - dense(written.modules[name])).square().sum()) for name, d in layers.items()}
    size = {name: float(d.square().sum()) for name, d in layers.items()}
    error = math.sqrt(sum(missed.values()) / sum(size.values()))
    assert report["error"] == pytest.approx(error, rel=1e-3)
    largest = {name: math.sqrt(missed[name] / size[name]) for name in layers}
    assert report["largest_error"] == pytest.approx(max(largest.values()), rel=1e-3)
    assert largest[report["worst_module"]] == pytest.approx(max(largest.values()), rel=1e-3)
    if "max_error" in options:
        assert 0.3 < error <= 0.401
    if "rank" in options:
        best = sum(float(torch.linalg.svdvals(d)[3:].square().sum()) for d in layers.values())
        assert report["predicted_error"] == pytest.approx(math.sqrt(best / sum(size.values())), rel=1e-6)
    lost = {n: float(d.norm()) for n, d in differences.items() if not is_layer(n, d) and "position_ids" not in n}
    assert set(report["lost"]) == set(lost) and list(report["lost"]) == sorted(lost, key=lambda name: -lost[name])
    for name, norm in lost.items():
        assert report["lost"][name]["norm"] == pytest.approx(norm, rel=1e-3)
    lost_squared = sum(norm**2 for norm in lost.values())
    overall = math.sqrt((sum(missed.values()) + lost_squared) / (sum(size.values()) + lost_squared))
    assert report["error_with_what_is_lost"] == pytest.approx(overall, rel=1e-3)
    recipe = json.loads(written.metadata["draft.recipe"])
    assert recipe["kind"] == "extract" and recipe["error"] == pytest.approx(error, rel=1e-3)
    assert recipe["lost"]["tensors"] == len(lost) and recipe["error_with_what_is_lost"] == pytest.approx(overall, 1e-3)
    assert str(Path.cwd()) not in json.dumps(recipe)


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-5), ("same", 1e-5), ("fp16", 2e-3)])
def test_what_was_merged_is_extracted_again(model: Path, dtype: str, bound: float) -> None:
    generator, modules = torch.Generator().manual_seed(1), {}
    for file in (UNET, TEXT):
        part = file.partition("/")[0]
        for name, tensor in load_file(model / file).items():
            if is_layer(name, tensor) and "conv_out" not in name:
                path = f"text_model.{name.removeprefix('text_model.')}" if part == "text_encoder" else name
                down = torch.randn(2, *tensor.shape[1:], generator=generator)
                up = torch.randn(len(tensor), 2, *([1] * (tensor.ndim - 2)), generator=generator)
                modules[f"{part}.{path.removesuffix('.weight')}"] = Factors(down, up)
    write_adapter(Adapter(modules), Path("a.safetensors"))
    merge_files(model, [(Path("a.safetensors"), 0.5)], Path("tuned"))
    extract("base", "tuned", output=Path("out.safetensors"), rank=2, dtype=dtype)
    again = read_adapter(Path("out.safetensors")).modules
    assert set(again) == set(modules)
    for name, factors in modules.items():
        wanted = 0.5 * dense(factors)
        assert (dense(again[name]) - wanted).norm() <= bound * wanted.norm(), name


def test_lines_name_what_is_lost_and_what_is_the_same(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(model, "tuned", only="mid_block")
    extract("base", "tuned", output=Path("out.safetensors"), rank=4)
    out = capsys.readouterr().out
    assert "over all modules, against the dense difference; " in out and "the same in both models: " in out
    assert "lost, as no LoRA holds them: " in out and "  unet.mid_block.resnets.1.conv2.bias: ||dW|| " in out
    assert "smaller ones (--json names all)" in out
    assert all(name.startswith("unet.mid_block.") for name in read_adapter(Path("out.safetensors")).modules)


def test_a_folder_and_a_single_file_are_compared_by_what_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prefix = "cond_stage_model.model."
    base = ldm.unet() | ldm.open_clip(prefix) | {"first_stage_model.conv.weight": torch.ones(2)}
    generator = torch.Generator().manual_seed(2)
    tuned = {name: tensor + torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    save_file(base, "base.safetensors")
    save_file(tuned, "tuned.safetensors")
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    Path("folder/unet").mkdir(parents=True)
    save_file(converters.convert_ldm_unet_checkpoint(dict(tuned), config), "folder/" + UNET)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    Path("folder/model_index.json").write_text(json.dumps(index))
    reports = []
    for name in ("folder", "tuned.safetensors"):
        extract("base.safetensors", name, output=Path(f"{name}.out.safetensors"), rank=4, json=True)
        reports.append(json.loads(capsys.readouterr().out))
    folder, file = reports
    apart = ("text_encoder.", "first_stage_model.", "cond_stage_model.model.text_projection")
    assert folder["not_compared"] and all(name.startswith(apart) for name in folder["not_compared"])
    assert not file["not_compared"] and "first_stage_model.conv.weight" in file["lost"]
    one, two = (read_adapter(Path(f"{name}.out.safetensors")).modules for name in ("folder", "tuned.safetensors"))
    assert set(one) == {name for name in two if name.startswith("unet.")} < set(two)
    for name, factors in one.items():
        torch.testing.assert_close(dense(factors), dense(two[name]), rtol=1e-4, atol=1e-4)
    assert set(folder["lost"]) == {name for name in file["lost"] if name.startswith("unet.")}
    q = "text_encoder.text_model.encoder.layers.1.self_attn.k_proj"
    rows = slice(ldm.TEXT, 2 * ldm.TEXT)
    packed = f"{prefix}transformer.resblocks.1.attn.in_proj_weight"
    wanted = (tuned[packed].double() - base[packed].double())[rows]
    best = torch.linalg.svdvals(wanted)[4:].square().sum().sqrt()
    assert float((wanted - dense(two[q])).norm()) == pytest.approx(float(best), rel=1e-4)


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises((ConfigError, StageError)) as error:
        extract(*arguments, output=options.pop("output", Path("out.safetensors")), **options)
    assert not Path("out.safetensors").exists() and not list(Path().glob(".*partial*"))
    return str(error.value)


def test_models_that_do_not_go_together_are_refused(model: Path) -> None:
    assert "both models are the same" in refusal("base", "base", rank=4)
    assert "there is no model 'none'" in refusal("base", "none", rank=4)
    shutil.copytree(model, "copy")
    assert "no linear layer or convolution differs between the models" in refusal("base", "copy", rank=4)
    changed(model, "norms", only="norm1")
    text = refusal("base", "norms", rank=4)
    assert "no linear layer or convolution differs" in text and "0 other tensors" not in text
    assert "the models are of different families (got sd and sdxl)" in refusal("base", "emoji_xl", rank=4)
    assert "the models disagree about the shape of text_encoder." in refusal("base", "emoji", rank=4)
    tensors = {name: tensor.clone() for name, tensor in load_file(Path("copy") / UNET).items()}
    save_file(tensors | {"conv_in.weight": torch.full_like(tensors["conv_in.weight"], torch.inf)}, Path("copy") / UNET)
    assert "unet.conv_in.weight has values that are not finite" in refusal("base", "copy", rank=4)
    save_file(tensors | {"conv_in.weight": tensors["conv_in.weight"].to(torch.float8_e5m2)}, Path("copy") / UNET)
    assert "(got F8_E5M2)" in refusal("base", "copy", rank=4)


def test_options_that_do_not_go_together_are_refused(model: Path) -> None:
    shutil.copytree(model, "tuned")
    assert "give one of --rank, --energy and --max-error (got none)" in refusal("base", "tuned")
    assert "(got --rank and --energy)" in refusal("base", "tuned", rank=4, energy=0.5)
    assert "--rank must be at least 1 (got 0)" in refusal("base", "tuned", rank=0)
    assert "the output is one of the models, or in it" in refusal("base", "tuned", rank=1, output=Path("tuned/x"))
    Path("there.safetensors").write_text("x")
    assert "the output is already there" in refusal("base", "tuned", rank=1, output=Path("there.safetensors"))
    assert Path("there.safetensors").read_text() == "x"
    Path("circle").symlink_to("circle")
    assert "circle: the path cannot be used" in refusal("base", "tuned", rank=1, output=Path("circle"))
