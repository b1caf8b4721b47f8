"""`draft convert` and `draft resize`: the change stays, or its error is the predicted one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from draft.adapters.conversion import convert_file, resize_file
from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.container import write_tensors
from draft.adapters.files.formats import Format, read_adapter, write_adapter
from draft.adapters.files.header import read_header
from draft.errors import ConfigError, StageError
from draft_cli.convert import convert
from draft_cli.resize import resize

Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
K = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "unet.mid_block.resnets.0.conv1"
MLP = "text_encoder.text_model.encoder.layers.3.mlp.fc1"


def factors(seed: int, rank: int, *, conv: bool = False, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *((8, 3, 3) if conv else (24,)), generator=generator)
    return Factors(down, torch.randn(16, rank, *([1, 1] if conv else []), generator=generator), scale)


def adapter(*, text: bool = True) -> Adapter:
    modules = {Q: factors(1, 6), K: factors(2, 4, scale=-0.5), CONV: factors(3, 5, conv=True, scale=2.0)}
    return Adapter(modules | ({MLP: factors(4, 6)} if text else {}))


def dense(one: Factors) -> torch.Tensor:
    return one.up.double().flatten(1) @ one.down.double().flatten(1) * one.scale


def total_error(path: Path, wanted: Adapter) -> float:
    found = read_adapter(path).modules
    missed = sum(float((dense(found[n]) - dense(f)).square().sum()) for n, f in wanted.modules.items())
    return (missed / sum(float(dense(f).square().sum()) for f in wanted.modules.values())) ** 0.5


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_adapter(adapter(), tmp_path / "source.safetensors", metadata={"modelspec.author": "me", "note": "kept"})
    return tmp_path / "source.safetensors"


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_there_and_back_is_the_same_change(source: Path, tmp_path: Path, format: Format) -> None:
    first = convert_file(source, tmp_path / "first.safetensors", format=format)
    convert_file(tmp_path / "first.safetensors", tmp_path / "second.safetensors")
    assert first.after.format == format and first.read_back.error < 1e-6
    assert total_error(tmp_path / "second.safetensors", adapter()) < 1e-6
    one, two = read_adapter(source), read_adapter(tmp_path / "second.safetensors")
    assert all(torch.equal(one.modules[n].down, two.modules[n].down) for n in one.modules)


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-6), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_a_dtype_rounds_and_no_more(source: Path, tmp_path: Path, dtype: str, error: float) -> None:
    found = convert_file(source, tmp_path / "a.safetensors", dtype=dtype)  # type: ignore[arg-type]
    names = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
    assert names[dtype] in found.after.dtypes
    assert total_error(tmp_path / "a.safetensors", adapter()) == pytest.approx(
        found.read_back.total, rel=1e-2, abs=1e-7
    )
    assert found.read_back.error < error


def test_a_peft_folder_becomes_a_file_and_a_file_a_folder(tmp_path: Path) -> None:
    write_adapter(adapter(text=False), tmp_path / "folder", format="peft")
    convert_file(tmp_path / "folder", tmp_path / "a.safetensors")
    convert_file(tmp_path / "a.safetensors", tmp_path / "again", format="peft")
    assert total_error(tmp_path / "again", adapter(text=False)) < 1e-6
    assert (tmp_path / "again" / "adapter_config.json").exists()


def test_an_alpha_is_folded_in(tmp_path: Path) -> None:
    base = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{base}.lora_down.weight": torch.randn(4, 8), f"{base}.lora_up.weight": torch.randn(6, 4)}
    write_tensors({**tensors, f"{base}.alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors", metadata={})
    found = convert_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert found.before is not None and found.before.alphas == {1: 1} and found.after.alphas == {4: 1}
    wanted = tensors[f"{base}.lora_up.weight"] @ tensors[f"{base}.lora_down.weight"] / 4
    got = dense(read_adapter(tmp_path / "b.safetensors").modules["unet.mid_block.attentions.0.proj_in"])
    torch.testing.assert_close(got.float(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bound", [{"rank": 2}, {"energy": 0.8}, {"max_error": 0.4}])
@pytest.mark.parametrize("dtype", ["same", "bf16"])
def test_a_resize_is_off_by_what_it_predicts(source: Path, tmp_path: Path, bound: dict[str, float], dtype: str) -> None:
    found = resize_file(source, tmp_path / "a.safetensors", **bound, dtype=dtype)  # type: ignore[arg-type]
    real = total_error(tmp_path / "a.safetensors", adapter())
    room = 1e-5 if dtype == "same" else 1e-3
    assert found.predicted == pytest.approx(real, abs=room) and found.read_back.total == pytest.approx(real, abs=1e-6)
    assert 0.01 < real <= bound.get("max_error", 1.0) + room
    assert max(found.after.ranks) <= bound.get("rank", 6)


def test_a_resize_is_the_best_that_a_rank_allows(source: Path, tmp_path: Path) -> None:
    resize_file(source, tmp_path / "a.safetensors", rank=3)
    found = read_adapter(tmp_path / "a.safetensors").modules
    for name, wanted in adapter().modules.items():
        rest = torch.linalg.svdvals(dense(wanted))[3:]
        assert float((dense(found[name]) - dense(wanted)).norm()) == pytest.approx(float(rest.norm()), rel=1e-4)


def test_the_recipe_tells_what_was_done_to_which_file(source: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    resize_file(source, tmp_path / "small.safetensors", rank=2)
    convert_file(tmp_path / "small.safetensors", tmp_path / "other.safetensors", format="diffusers", dtype="fp16")
    header = read_header(tmp_path / "other.safetensors").metadata
    recipe = json.loads(header["draft.recipe"])
    assert (recipe["kind"], recipe["format"], recipe["dtype"]) == ("convert", "diffusers", "fp16")
    inner = recipe["inputs"][0]["recipe"]
    assert (inner["kind"], inner["rank"], inner["inputs"][0]["sha256"]) == ("resize", 2, digest)
    assert 0 < inner["error"] < 1
    assert (header["modelspec.author"], header["note"]) == ("me", "kept")


def test_an_evaluation_goes_on_with_the_same_change_and_not_with_a_smaller_one(tmp_path: Path) -> None:
    write_adapter(adapter(), tmp_path / "a.safetensors", metadata={"draft.evaluation": "{}"})
    convert_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", format="diffusers")
    resize_file(tmp_path / "a.safetensors", tmp_path / "c.safetensors", rank=2)
    assert read_header(tmp_path / "b.safetensors").metadata["draft.evaluation"] == "{}"
    assert "draft.evaluation" not in read_header(tmp_path / "c.safetensors").metadata


def loha(path: Path, *, rank: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    base = "lora_unet_mid_block_attentions_0_proj_in"
    parts = {
        f"{base}.hada_w{i}_{side}": torch.randn(*((6, rank) if side == "a" else (rank, 8)), generator=generator)
        for i in (1, 2)
        for side in "ab"
    }
    write_tensors(parts, path, metadata={})
    return (parts[f"{base}.hada_w1_a"] @ parts[f"{base}.hada_w1_b"]) * (
        parts[f"{base}.hada_w2_a"] @ parts[f"{base}.hada_w2_b"]
    )


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_loha_is_written_as_the_nearest_lora_and_its_error_is_told(tmp_path: Path, rank: int) -> None:
    wanted = loha(tmp_path / "a.safetensors").double()
    with pytest.raises(StageError, match="LoHa is not a sum of B A"):
        convert_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    found = convert_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=rank)
    got = dense(read_adapter(tmp_path / "b.safetensors").modules["unet.mid_block.attentions.0.proj_in"])
    assert found.nearest == pytest.approx(float((got - wanted).norm() / wanted.norm()), abs=1e-5)
    assert found.nearest == pytest.approx(float(torch.linalg.svdvals(wanted)[rank:].norm() / wanted.norm()), abs=1e-5)


def test_a_rank_for_a_plain_lora_points_to_resize(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="needs no rank") as error:
        convert_file(source, tmp_path / "a.safetensors", rank=4)
    assert "draft resize" in error.value.hint


def test_the_same_file_gives_the_same_bytes_in_every_process(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "draft", "resize", str(source), "-o", str(tmp_path / "one.safetensors")]
    done = subprocess.run([*command, "--energy", "0.9"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "as predicted" in done.stdout and done.stderr == ""
    resize_file(source, tmp_path / "two.safetensors", energy=0.9)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_the_commands_print_what_changed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(source, tmp_path / "a.safetensors", format="diffusers", dtype="fp16")
    text = capsys.readouterr().out
    assert f"read {source}  (kohya, 4 modules, rank 4 (1), 5 (1), 6 (2)" in text
    assert "(diffusers, 4 modules" in text and "F16" in text and "read back: largest relative error" in text
    resize(source, tmp_path / "b.safetensors", rank=2, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["output"]["ranks"] == {"2": 4} and told["predicted_error"] == pytest.approx(told["error"], abs=1e-5)
    loha(tmp_path / "loha.safetensors")
    convert(tmp_path / "loha.safetensors", tmp_path / "c.safetensors", rank=2)
    assert "LoHa, LoKr and DoRA at that rank: relative error" in capsys.readouterr().out


@pytest.mark.parametrize("command", [convert, resize])
def test_outputs_in_the_way_and_inputs_that_are_not_there_are_refused(
    source: Path, tmp_path: Path, command: object
) -> None:
    options = {"rank": 2} if command is resize else {}
    before = source.read_bytes()
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    for file, output, message in (
        (source, tmp_path / "there.safetensors", "the output is already there"),
        (source, source, "the output is also the input"),
        (tmp_path / "gone.safetensors", tmp_path / "a.safetensors", "no such adapter file"),
    ):
        with pytest.raises(ConfigError, match=message):
            command(file, output, **options)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="format must be one of .* \\(got 'kohia'\\)"):
        command(source, tmp_path / "a.safetensors", format="kohia", **options)  # type: ignore[operator]
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine" and source.read_bytes() == before
    command(source, tmp_path / "there.safetensors", force=True, **options)  # type: ignore[operator]
    assert read_adapter(tmp_path / "there.safetensors").modules
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.safetensors", "there.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got none"),
        ({"rank": 2, "energy": 0.5}, "got --rank and --energy"),
        ({"rank": 0}, "--rank must be at least 1 \\(got 0\\)"),
        ({"energy": 1.5}, "--energy must be greater than 0 and at most 1"),
        ({"max_error": -0.1}, "--max-error must be at least 0"),
    ],
)
def test_a_resize_needs_one_bound_in_its_range(
    source: Path, tmp_path: Path, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resize(source, tmp_path / "a.safetensors", **options)  # type: ignore[arg-type]


def test_what_cannot_be_written_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    big = Adapter({Q: Factors(torch.full((1, 24), 3e4), torch.full((16, 1), 3e10))})
    write_adapter(big, tmp_path / "big.safetensors")
    with pytest.raises(StageError, match="not finite in float16"):
        convert_file(tmp_path / "big.safetensors", tmp_path / "a.safetensors", dtype="fp16")
    (tmp_path / "blocked").write_bytes(b"")
    with pytest.raises(StageError, match="cannot write"):
        convert_file(source, tmp_path / "blocked" / "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.safetensors", "blocked", "source.safetensors"]
