"""Strength per input: another weight for text encoders, factors of blocks, against a sum of dense changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.adapters.files.formats import Adapter, Factors, read_adapter, write_adapter
from draft.adapters.mixture import mix_files
from draft.adapters.settings import MixSettings
from draft.adapters.strength import Strength, added
from draft.errors import ConfigError, StageError
from draft_cli.inputs import parse_blocks, parse_input
from draft_cli.mix import mix

DOWN = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
UP = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
TEXT_2 = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
NAMES = (DOWN, UP, TEXT, TEXT_2)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, (name, modules) in enumerate({"a": NAMES, "b": NAMES, "unet": (DOWN, UP)}.items()):
        generator = torch.Generator().manual_seed(seed)
        factors = {
            module: Factors(torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator))
            for module in modules
        }
        write_adapter(Adapter(factors, "sdxl"), tmp_path / f"{name}.safetensors")
    return tmp_path


def dense(path: Path | str) -> dict[str, Tensor]:
    modules = read_adapter(Path(path)).modules
    return {name: f.scale * f.up.double() @ f.down.double() for name, f in modules.items()}


def assert_is_sum(path: Path | str, weights: Mapping[str, Mapping[str, float]]) -> None:
    """The file is the dense sum of the inputs, each module times the weight given for it."""
    written = dense(path)
    changes = {name: dense(f"{name}.safetensors") for name in weights}
    wanted = {
        name: sum(weights[file][name] * changes[file][name] for file in weights if name in weights[file])
        for name in set().union(*weights.values())
    }
    assert set(written) == set(wanted)
    for name, change in wanted.items():
        torch.testing.assert_close(written[name], change, rtol=1e-5, atol=1e-6)


def test_a_second_weight_is_that_of_the_text_encoders(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix(["a.safetensors:0.7:0.3", "b.safetensors:-0.5"], output=Path("out.safetensors"))
    assert_is_sum(
        "out.safetensors", {"a": {DOWN: 0.7, UP: 0.7, TEXT: 0.3, TEXT_2: 0.3}, "b": dict.fromkeys(NAMES, -0.5)}
    )
    assert "+0.7 x a.safetensors  (4 modules, rank 2, text encoders +0.3)" in capsys.readouterr().out
    recipe = json.loads(read_adapter(Path("out.safetensors")).metadata["draft.recipe"])
    assert [(i["weight"], i.get("text_encoder")) for i in recipe["inputs"]] == [(0.7, 0.3), (-0.5, None)]
    assert read_adapter(Path("out.safetensors")).metadata["modelspec.title"] == "0.7:0.3 a + -0.5 b"


def test_a_block_may_be_weighed_in_one_input_alone(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = ["a:up_blocks.*=0.5", "2:text_encoder_2=-1", "1:*.attn1=0.25", "attn2=2", "*.attn2=2"]
    with pytest.raises(StageError, match="no module of the adapters matches the block 'attn2'"):
        mix(["a.safetensors", "b.safetensors:0.4"], output=Path("out.safetensors"), block=blocks)
    del blocks[3]
    mix(["a.safetensors", "b.safetensors:0.4"], output=Path("out.safetensors"), block=blocks, json=True)
    a = {DOWN: 0.25, UP: 1.0, TEXT: 1.0, TEXT_2: 1.0}
    assert_is_sum("out.safetensors", {"a": a, "b": {DOWN: 0.4, UP: 0.8, TEXT: 0.4, TEXT_2: -0.4}})
    report = json.loads(capsys.readouterr().out)
    assert [entry["blocks"] for entry in report["inputs"]] == [
        {"up_blocks.*": 0.5, "*.attn1": 0.25},
        {"text_encoder_2": -1.0},
    ]
    recipe = json.loads(read_adapter(Path("out.safetensors")).metadata["draft.recipe"])
    assert recipe["inputs"][1]["blocks"] == {"text_encoder_2": -1.0} and recipe["blocks"] == {"*.attn2": 2.0}


def test_one_file_with_several_strengths_counts_with_their_sum(files: Path) -> None:
    inputs = [
        (Path("a.safetensors"), Strength(0.5, 0.2)),
        (Path("b.safetensors"), 1.0),
        (Path("a.safetensors"), Strength(1.0, blocks={"up_blocks.*": 0.5})),
        (Path("a.safetensors"), 0.25),
    ]
    report = mix_files(inputs, Path("out.safetensors"))
    a = {DOWN: 1.75, UP: 1.25, TEXT: 1.45, TEXT_2: 1.45}
    assert_is_sum("out.safetensors", {"a": a, "b": dict.fromkeys(NAMES, 1.0)})
    assert report.strengths == (Strength(0.75, 0.45), inputs[2][1], Strength(1.0))
    assert max(report.ranks) == 4, "its factors are in the sum once"
    assert added([Strength(1.0), Strength(-1.0)]) == [Strength(0.0)]


@pytest.mark.parametrize("options", [{}, {"method": "magnitude", "density": 1.0, "rank": 5}, {"max_error": 0.0}])
def test_every_method_weighs_inputs_module_by_module(files: Path, options: dict[str, Any]) -> None:
    inputs = [(Path("a.safetensors"), Strength(0.7, 0.0)), (Path("b.safetensors"), Strength(2.0, 0.5, {UP: 0.0}))]
    mix_files(inputs, Path("out.safetensors"), settings=MixSettings(**options))
    a, b = {DOWN: 0.7, UP: 0.7, TEXT: 0.0, TEXT_2: 0.0}, {DOWN: 2.0, UP: 0.0, TEXT: 0.5, TEXT_2: 0.5}
    assert_is_sum("out.safetensors", {"a": a, "b": b})


def test_normalize_divides_the_weights_of_text_encoders_by_their_own_sum(files: Path) -> None:
    inputs = [
        (Path("a.safetensors"), Strength(3.0, 1.0)),
        (Path("b.safetensors"), Strength(1.0, 1.0, {"up_blocks.*": 0.5})),
    ]
    mix_files(inputs, Path("out.safetensors"), settings=MixSettings(normalize=True))
    a, b = {DOWN: 0.75, UP: 0.75, TEXT: 0.5, TEXT_2: 0.5}, {DOWN: 0.25, UP: 0.125, TEXT: 0.5, TEXT_2: 0.5}
    assert_is_sum("out.safetensors", {"a": a, "b": b})
    inputs[1] = (Path("b.safetensors"), Strength(1.0, -1.0))
    with pytest.raises(StageError, match=r"weights of text encoders that sum to 0 cannot be normalised \(got 1, -1\)"):
        mix_files(inputs, Path("two.safetensors"), settings=MixSettings(normalize=True))


def test_modules_whose_every_strength_is_set_to_zero_are_left_out(files: Path) -> None:
    inputs = [(Path("a.safetensors"), Strength(0.7, 0.0)), (Path("unet.safetensors"), Strength(1.0))]
    report = mix_files(inputs, Path("out.safetensors"))
    assert report.dropped == (TEXT, TEXT_2)
    assert_is_sum("out.safetensors", {"a": {DOWN: 0.7, UP: 0.7}, "unet": {DOWN: 1.0, UP: 1.0}})


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors:0.7:0.3", "a.safetensors", Strength(0.7, 0.3)),
        ("folder:1:-.5", "folder", Strength(1.0, -0.5)),
        (r"C:\loras\x.safetensors:0:1e-1", r"C:\loras\x.safetensors", Strength(0.0, 0.1)),
    ],
)
def test_an_input_may_have_two_weights(text: str, path: str, strength: Strength) -> None:
    assert parse_input(text) == (Path(path), strength)
    assert str(strength).count(":") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.safetensors:0.7:x", "a weight must be a number (got '0.7:x')"),
        ("a.safetensors:x:0.3", "a weight must be a number (got 'x')"),
        ("a.safetensors:1:nan", "a weight must be a finite number (got nan)"),
        (
            "a.safetensors:1:2:3",
            "an input has at most two weights, of its denoiser and of its text encoders (got 1, 2, 3)",
        ),
    ],
)
def test_a_broken_weight_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_input(text)
    assert str(error.value) == f"draft mix, {text!r}: {message}"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("3:mid_block=1", "there is no input 3 (got 2)\n  hint: 1 is a, 2 is a"),
        ("a:mid_block=1", "several inputs are named 'a'\n  hint: give its number: 1 is a, 2 is a"),
        ("c:mid_block=1", "no input is named 'c'"),
        ("1:mid_block=x", "a block needs a pattern and a number (got 'mid_block=x')"),
        ("1:=1", "a block needs a pattern and a number (got '=1')"),
    ],
)
def test_a_block_of_no_input_is_refused(block: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_blocks([block], [(Path("x/a.safetensors"), Strength()), (Path("y/a.safetensors"), Strength())])
    assert message in str(error.value)


def test_a_strength_that_would_change_nothing_is_refused(files: Path) -> None:
    with pytest.raises(StageError, match=r"it has no text encoder modules, for which a weight is given \(got 0.3\)"):
        mix(["unet.safetensors:0.7:0.3"], output=Path("out.safetensors"))
    with pytest.raises(StageError, match="no module of the adapters matches the block 'mid_block'"):
        mix(["a.safetensors", "unet.safetensors"], output=Path("out.safetensors"), block=["unet:mid_block=2"])
    with pytest.raises(StageError, match=r"a weight must be a finite number \(got inf\)"):
        mix_files([(Path("a.safetensors"), Strength(1.0, float("inf")))], Path("out.safetensors"))
    assert not Path("out.safetensors").exists()
