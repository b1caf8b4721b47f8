"""`draft mix`: what it accepts, what it prints, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.adapters.files.formats import Adapter, Factors, read_adapter, write_adapter
from draft.adapters.strength import Strength
from draft.errors import ConfigError, DraftError
from draft_cli.inputs import parse_input
from draft_cli.mix import mix, output_name


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
    assert parse_input(text) == (Path(path), Strength(weight))


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
    mix(["a.safetensors:0.7", "b.safetensors:0.3"])
    assert (files / "a_0.7+b_0.3.safetensors").is_file()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "+0.7 x a.safetensors  (1 module, rank 2)"
    assert lines[2].startswith("wrote a_0.7+b_0.3.safetensors  (1 module, rank 5, float32, ")
    assert lines[3].startswith("read back: largest relative error ") and float(lines[3].split()[-1]) < 1e-6
    assert read_adapter(files / "a_0.7+b_0.3.safetensors").ranks == {5: 1}


def test_a_very_long_name_is_shortened() -> None:
    name = output_name([(Path(f"{'x' * 40}{i}.safetensors"), Strength(0.1)) for i in range(20)])
    assert len(name) < 200 and name.endswith("+19_more.safetensors")


def test_json_says_the_same(files: Path, capsys) -> None:
    mix(["a.safetensors:0.7", "b.safetensors"], output=Path("out.safetensors"), format="diffusers", json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["output"] == "out.safetensors" and said["ranks"] == {"5": 1} and said["largest_relative_error"] < 1e-6
    assert [entry["weight"] for entry in said["inputs"]] == [0.7, 1.0]


def test_nothing_is_overwritten_unasked(files: Path) -> None:
    (files / "out.safetensors").write_text("precious")
    with pytest.raises(DraftError) as error:
        mix(["a.safetensors"], output=Path("out.safetensors"))
    assert str(error.value) == (
        "out.safetensors: the output is already there\n  hint: add --force to overwrite it, or -o OTHER"
    )
    assert (files / "out.safetensors").read_text() == "precious"
    mix(["a.safetensors"], output=Path("out.safetensors"), force=True)
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
        mix(inputs, output=Path(output) if output else None, force=True)
    assert str(error.value).startswith(message)
    assert (files / "a.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "comfy"}, "draft mix: --format must be one of auto, kohya, diffusers, peft (got 'comfy')"),
        ({"method": "tiess"}, "one of exact, ties, dare, magnitude (got 'tiess')\n  hint: did you mean 'ties'?"),
        ({"dtype": "fp8"}, "--dtype must be one of same, fp32, fp16, bf16 (got 'fp8')"),
        ({"verify": "none"}, "--verify must be one of factors, full (got 'none')"),
        ({"rank": 0}, "draft mix: --rank must be at least 1 (got 0)"),
        ({"energy": 1.5}, "draft mix: --energy must be greater than 0 and at most 1 (got 1.5)"),
        ({"max_error": 1.0}, "draft mix: --max-error must be at least 0 and less than 1 (got 1)"),
        ({"max_error": float("nan")}, "draft mix: --max-error must be at least 0 and less than 1 (got nan)"),
        ({"density": 0.0}, "draft mix: --density must be greater than 0 and at most 1 (got 0)"),
        ({"seed": -1}, "draft mix: --seed must be at least 0 and less than 2^63 (got -1)"),
        ({"rank": 2, "max_error": 0.1}, "rank, energy and max_error exclude each other (got rank and max_error)"),
        ({"block": ["up_blocks"]}, "a block needs a pattern and a number (got 'up_blocks')"),
        ({"block": ["up=x"]}, "a block needs a pattern and a number (got 'up=x')"),
        ({"block": ["up=inf"]}, "a block needs a pattern and a number (got 'up=inf')"),
        ({"component": ["unet=1", "unet=2"]}, "draft mix, --component 'unet=2': the pattern 'unet' is there twice"),
        ({"component": ["unt=1"]}, "matches the component 'unt'\n  hint: did you mean 'unet'?"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(files: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DraftError) as error:
        mix(["a.safetensors"], **options)
    assert message in str(error.value)
    assert sorted(path.name for path in files.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_smaller_rank_says_its_error_before_and_after(files: Path, capsys) -> None:
    mix(["a.safetensors:0.7", "b.safetensors:0.3"], output=Path("out.safetensors"), rank=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("smaller rank: relative error 0.") and lines[2].endswith(
        "over all modules, against the exact sum"
    )
    predicted, measured = lines[2].split()[4], lines[5].split()[4]
    assert lines[5] == f"read back: relative error {measured} over all modules"
    assert float(measured) == pytest.approx(float(predicted), rel=1e-2)


def test_a_dry_run_says_what_would_be_and_writes_nothing_even_where_a_file_is(files: Path, capsys) -> None:
    (files / "out.safetensors").write_text("precious")
    mix(["a.safetensors", "b.safetensors"], output=Path("out.safetensors"), max_error=0.5, dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("would write out.safetensors  (1 module, rank ") and len(lines) == 4
    mix(["a.safetensors"], dry_run=True, json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["written"] is False and said["relative_error"] is None and said["bytes_of_factors"] == 2 * (4 + 3) * 4
    assert (files / "out.safetensors").read_text() == "precious" and len(list(files.iterdir())) == 3


def test_what_is_left_out_is_counted_and_listed(files: Path, capsys) -> None:
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    modules = {name: Factors(torch.ones(1, 4), torch.ones(4, 1)), **read_adapter(files / "a.safetensors").modules}
    write_adapter(Adapter(modules), files / "c.safetensors")
    mix(["c.safetensors"], output=Path("out.safetensors"), component=["text_encoder=0"])
    assert "left out: 1 module (1 of text_encoder)" in capsys.readouterr().out.splitlines()
    mix(["c.safetensors"], output=Path("two.safetensors"), component=["text_encoder=0"], json=True)
    assert json.loads(capsys.readouterr().out)["left_out"] == [name]


def test_verify_full_reads_the_file_with_diffusers_too(files: Path, capsys) -> None:
    mix(["a.safetensors", "b.safetensors:-1"], output=Path("out.safetensors"), verify="full")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("read by diffusers: largest relative error ") and float(last.split()[-1]) < 1e-6


def test_the_home_folder_and_addresses_on_the_hub_are_inputs(files: Path, monkeypatch) -> None:
    asked = []

    def download(repo: str, file: str, *, revision: str | None) -> str:
        asked.append((repo, file, revision))
        return str(files / "b.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setenv("HOME", str(files))
    assert parse_input("~/a.safetensors:0.7") == (files / "a.safetensors", Strength(0.7))
    assert parse_input("hf://org/repo/sub/b.safetensors@main:0.5") == (files / "b.safetensors", Strength(0.5))
    assert parse_input("hf://org/repo/b.safetensors") == (files / "b.safetensors", Strength(1.0))
    assert asked == [("org/repo", "sub/b.safetensors", "main"), ("org/repo", "b.safetensors", None)]


def test_an_address_on_the_hub_that_leads_nowhere_is_named(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DraftError, match=r"not an address on the hub \(got 'hf://org'\)"):
        parse_input("hf://org:0.5")
    # No network in the tests: what is not in the cache cannot be had.
    with pytest.raises(DraftError) as error:
        parse_input("hf://no-such-org/no-such-repo/x.safetensors:0.5")
    assert str(error.value) == (
        "hf://no-such-org/no-such-repo/x.safetensors: not in the cache, and the hub cannot be reached\n"
        "  hint: go online, or give a file"
    )


def test_importing_the_command_imports_no_torch() -> None:
    code = "import sys, draft_cli.mix; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
