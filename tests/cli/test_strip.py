"""`draft strip`: its options are the stage's, and what is wrong with them is told before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from draft.adapters.files.formats import Adapter, Factors, write_adapter
from draft.errors import ConfigError
from draft_cli.strip import parse_rewards, parse_scales, parse_seeds, strip_stage

PLACE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def adapter(folder: Path) -> Path:
    """An adapter that fits the embedded model; its name is no label as it is."""
    from safetensors import safe_open

    from draft.rewards.extensions import model_path

    weights = Path(model_path("emoji")) / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(weights, "pt") as file:
        out, inner = file.get_slice(f"{PLACE.removeprefix('unet.')}.weight").get_shape()
    write_adapter(
        Adapter({PLACE: Factors(torch.randn(1, inner), torch.randn(out, 1), 1.0)}, "sd", {}),
        folder / "_my cat.safetensors",
    )
    return Path("_my cat.safetensors")


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        ("0:1.5:7", [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]),
        ("0:1:4", [0, 0.333333, 0.666667, 1]),
        ("1:-1:3", [1, 0, -1]),
        ("0, 0.5,2", [0, 0.5, 2]),
        ("1", [1]),
    ],
)
def test_scales_are_a_range_with_both_ends_or_a_list(text: str, scales: list[float]) -> None:
    assert parse_scales(text) == scales


def test_seeds_are_a_count_or_a_list() -> None:
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("1,5, 9") == [1, 5, 9]
    assert parse_seeds("7,") == [7]


def test_rewards_have_options_in_braces() -> None:
    found = parse_rewards(["jpeg", "kb={use: jpeg_size, quality: 50}"])
    assert found == {"jpeg": None, "kb": {"use": "jpeg_size", "quality": 50}}


@pytest.mark.parametrize("text", ["", "0:1", "0:1:1", "a:b:c", "0:1:2.5", "nan", "0,inf", "0:1:5000", "1;2"])
def test_what_is_no_scale_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--scale must"):
        parse_scales(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "x", "1,x", ",", "100000"])
def test_what_is_no_seed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds must be a number from 1 to 1000 or a list"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--prompt", "x"], "a strip needs a model"),
        (["--model", "emoji"], "give either --prompt or --prompts (got neither)"),
        (["--model", "emoji", "--prompt", "x", "--prompts", "y"], "give either --prompt or --prompts (got both)"),
        (["--model", "emoji", "--prompt", "a cat", "--scale-b", "0:1:2"], "--scale-b needs a second adapter"),
        (["--model", "emoji", "--prompt", "a cat", "--scale", "0,0"], "stages.strip.scales has 0 twice"),
        (["--model", "emojy", "--prompt", "a cat"], "no such model (got 'emojy')"),
        (["--model", "emoji", "--prompts", "nowhere.txt"], "the prompt file does not exist"),
        (["--model", "emoji", "--prompt", "a cat", "--reward", "jpg"], "jpg"),
        (["--model", "emoji", "--prompt", "a cat", "--reward", "jpeg=50"], "the options of a reward are a mapping"),
        (["--model", "emoji", "--prompt", "a cat", "--reward", "jpeg", "--reward", "jpeg"], "'jpeg' is given twice"),
        (["--model", "emoji", "--prompt", "a cat", "--steps", "0"], "num_inference_steps must be at least 1"),
        (["--model", "emoji", "--prompt", "a cat", "-o", "taken"], "there is something else than a strip"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(command, adapter: Path, folder: Path, words, error: str) -> None:
    (folder / "taken").mkdir()
    code, out, err = command("strip", str(adapter), *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and error in err
    assert sorted(path.name for path in folder.iterdir()) == ["_my cat.safetensors", "taken"]


def test_a_missing_adapter_is_told(command, folder: Path) -> None:
    code, _, err = command("strip", "nowhere.safetensors", "--model", "emoji", "--prompt", "a cat")
    assert code == 2 and "no such file (got " in err


def test_a_strip_of_the_embedded_model_is_written_and_replaced_by_force_alone(command, adapter, folder: Path) -> None:
    words = ["strip", str(adapter), "--model", "emoji", "--prompt", "a cat", "--scale", "0,1", "--seeds", "1",
             "--reward", "jpeg_size", "--steps", "1", "--guidance", "1"]  # fmt: skip
    code, out, err = command(*words)
    assert code == 0, err
    made = folder / "_my cat_strip"
    assert sorted(path.name for path in made.iterdir()) == [
        "images", "strip.csv", "strip.html", "strip.json", "strip.png"
    ]  # fmt: skip
    found = json.loads((made / "strip.json").read_text())
    assert found["adapters"] == ["my_cat"] and found["cells"] == [[0.0], [1.0]]
    assert [row["seed"] for row in found["rows"]] == [0]
    assert "jpeg_size is highest at " in out and "results in " in out
    code, _, err = command(*words)
    assert code == 2 and "the output is already there" in err
    before = (made / "strip.png").read_bytes()
    assert command(*words, "--force")[0] == 0
    assert (made / "strip.png").read_bytes() == before
    assert [path.name for path in folder.iterdir() if "partial" in path.name or "old" in path.name] == []


def test_the_command_makes_the_stage_that_a_pipeline_would_have() -> None:
    stage = strip_stage(
        [Path("a/x.safetensors"), Path("b/x.safetensors")], model="emoji", prompts=["a cat"], scales=[0, 1],
        scales_b=[0, 2], seeds=[4], rewards={"jpeg": None}, sampler={"num_inference_steps": None, "guidance_scale": 1},
        device="auto",
    )  # fmt: skip
    assert stage == {
        "kind": "strip", "model": "emoji", "prompts": ["a cat"], "device": "auto", "rewards": {"jpeg": None},
        "adapters": {"x": {"from": "a/x.safetensors"}, "x_2": {"from": "b/x.safetensors"}},
        "scales": [0, 1], "scales_b": [0, 2], "seeds": [4],
        "sampler": {"num_inference_steps": 10, "guidance_scale": 1},
    }  # fmt: skip


def test_a_mix_is_swept_from_nothing_to_all_of_it(command, adapter: Path, folder: Path) -> None:
    words = ["mix", f"{adapter}:0.5", "-o", "mixed.safetensors", "--sweep", "0:1:2", "--base", "emoji"]
    code, _, err = command(*words)
    assert code == 2 and "--sweep needs a prompt" in err
    words += ["--prompt", "a cat"]
    for extra, error in (
        (["--dry-run"], "--sweep draws with the written mix"),
        (["--sweep", "0:1"], "--sweep must be A:B:N"),
        (["--model", "emojy"], "no such model (got 'emojy')"),
    ):
        code, _, err = command(*words, *extra)
        assert code == 2 and error in err
    assert not (folder / "mixed.safetensors").exists()  # told before anything is mixed
    code, _, err = command("mix", str(adapter), "--model", "emoji")
    assert code == 2 and "--model and --prompt are for --sweep" in err
    code, out, err = command(*words)
    assert code == 0, err
    assert "wrote mixed.safetensors" in out and "strip in mixed_strip/strip.png" in out
    found = json.loads((folder / "mixed_strip" / "strip.json").read_text())
    assert found["cells"] == [[0.0], [1.0]] and found["adapters"] == ["mix"]
    assert len(list((folder / "mixed_strip" / "images" / "1").iterdir())) == 3
