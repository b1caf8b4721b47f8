"""`draft mix`: what it accepts, what it prints, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from draft.adapters.formats import Adapter, Factors, read_adapter, write_adapter
from draft.errors import ConfigError, DraftError
from draft_cli.mix import mix_command, output_name, parse_input


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    name = "unet.mid_block.attentions.0.proj_in"
    for i, file in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(i)
        factors = Factors(torch.randn(2 + i, 4, generator=generator), torch.randn(3, 2 + i, generator=generator))
        write_adapter(Adapter({name: factors}), tmp_path / f"{file}.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors:0.7", "a.safetensors", 0.7),
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:-1.5e-1", "a.safetensors", -0.15),
        ("a.safetensors:2", "a.safetensors", 2.0),
        ("a.safetensors:.5", "a.safetensors", 0.5),
        (r"C:\loras\x.safetensors:0.7", r"C:\loras\x.safetensors", 0.7),
        (r"C:\loras\x.safetensors", r"C:\loras\x.safetensors", 1.0),
        ("with space:and colon.safetensors", "with space:and colon.safetensors", 1.0),
        ("folder:0.25", "folder", 0.25),
    ],
)
def test_an_input_is_split_at_the_last_colon_if_a_number_follows(text: str, path: str, weight: float) -> None:
    assert parse_input(text) == (Path(path), weight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.safetensors:abc", "draft mix, 'a.safetensors:abc': a weight must be a number (got 'abc')"),
        ("a.safetensors:", "draft mix, 'a.safetensors:': a weight must be a number (got '')"),
        ("a.safetensors:nan", "draft mix, 'a.safetensors:nan': a weight must be a finite number (got nan)"),
        ("a.safetensors:1e999", "draft mix, 'a.safetensors:1e999': a weight must be a finite number (got 1e999)"),
        ("", "draft mix: an input needs a path (got '')"),
    ],
)
def test_a_broken_input_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_input(text)
    assert str(error.value) == message


def test_without_a_name_the_file_is_named_after_inputs_and_weights(files: Path, capsys) -> None:
    mix_command(["a.safetensors:0.7", "b.safetensors:0.3"])
    assert (files / "a_0.7+b_0.3.safetensors").is_file()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "+0.7 x a.safetensors  (1 module, rank 2)"
    assert lines[2].startswith("wrote a_0.7+b_0.3.safetensors  (1 module, rank 5, float32, ")
    assert lines[3].startswith("read back: largest relative error ") and float(lines[3].split()[-1]) < 1e-6
    assert read_adapter(files / "a_0.7+b_0.3.safetensors").ranks == {5: 1}


def test_a_very_long_name_is_shortened() -> None:
    name = output_name([(Path(f"{'x' * 40}{i}.safetensors"), 0.1) for i in range(20)])
    assert len(name) < 200 and name.endswith("+19_more.safetensors")


def test_json_says_the_same(files: Path, capsys) -> None:
    mix_command(["a.safetensors:0.7", "b.safetensors"], output=Path("out.safetensors"), format="diffusers", json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["output"] == "out.safetensors" and said["ranks"] == {"5": 1} and said["largest_relative_error"] < 1e-6
    assert [entry["weight"] for entry in said["inputs"]] == [0.7, 1.0]


def test_nothing_is_overwritten_unasked(files: Path) -> None:
    (files / "out.safetensors").write_text("precious")
    with pytest.raises(DraftError) as error:
        mix_command(["a.safetensors"], output=Path("out.safetensors"))
    assert str(error.value) == (
        "out.safetensors: the output is already there\n  hint: add --force to overwrite it, or -o OTHER"
    )
    assert (files / "out.safetensors").read_text() == "precious"
    mix_command(["a.safetensors"], output=Path("out.safetensors"), force=True)
    assert read_adapter(files / "out.safetensors").ranks == {2: 1}


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        ([], None, "draft mix: nothing to mix"),
        (["no.safetensors:0.5"], None, "no.safetensors: no such adapter file"),
        (["a.safetensors"], "./a.safetensors", "a.safetensors: the output is also an input"),
    ],
)
def test_bad_calls_are_named_and_force_does_not_help(
    files: Path, inputs: list[str], output: str | None, message: str
) -> None:
    before = (files / "a.safetensors").read_bytes()
    with pytest.raises(DraftError) as error:
        mix_command(inputs, output=Path(output) if output else None, force=True)
    assert str(error.value).startswith(message)
    assert (files / "a.safetensors").read_bytes() == before


def test_an_unknown_layout_is_named(files: Path) -> None:
    with pytest.raises(ConfigError, match=r"format must be one of auto, kohya, diffusers, peft \(got 'comfy'\)"):
        mix_command(["a.safetensors"], format="comfy")


def test_importing_the_command_imports_no_torch() -> None:
    code = "import sys, draft_cli.mix; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
