"""`--skip`: tensors that cannot be read are refused, or left out by name, and each that is left out is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from draft.adapters.files.container import read_tensors
from draft.adapters.files.formats import Adapter, Factors, read_adapter, read_changes, write_adapter
from draft.adapters.model.merging import merge_files
from draft.errors import DraftError, DraftWarning, StageError
from draft.pipeline.load import load_pipeline
from draft.pipeline.reproduce import reproduce
from draft.pipeline.run import run_pipeline
from draft_cli.mix import mix

NAMES = [f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.{end}" for end in ("to_q", "to_k", "to_v")]
Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
K, V = Q.replace("to_q", "to_k"), Q.replace("to_q", "to_v")
ODD = {
    f"{Q}.dora_scale": torch.ones(16, 1),
    "lora_unet_mid_block_attentions_0_norm.w_norm": torch.ones(16),
    f"{V}.diff_b": torch.ones(16),
    "some.unknown.key": torch.ones(3),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain LoRA `plain`, and `odd`, the same with tensors that are none of a LoRA's."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    factors = {
        n: Factors(torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator)) for n in NAMES
    }
    write_adapter(Adapter(factors), Path("plain.safetensors"))
    save_file(load_file("plain.safetensors") | ODD, "odd.safetensors")
    return tmp_path


def assert_same(path: str, names: list[str]) -> None:
    """The file has these modules of the plain one and no others."""
    written, wanted = read_adapter(Path(path)).modules, read_adapter(Path("plain.safetensors")).modules
    assert sorted(written) == sorted(names)
    for name in names:
        torch.testing.assert_close(written[name].up @ written[name].down, wanted[name].up @ wanted[name].down)


def test_what_cannot_be_read_is_refused_and_the_hint_names_the_way_out(folder: Path) -> None:
    with pytest.raises(StageError) as error:
        mix(["odd.safetensors"], output=Path("out.safetensors"))
    tensor = next(name for name in read_tensors(Path("odd.safetensors"))[0] if name in ODD)
    assert f"--skip '{tensor}' leaves it out" in str(error.value)
    assert not Path("out.safetensors").exists()
    left = list(ODD)[:3]
    with pytest.raises(StageError, match=r"the name of tensor 'some.unknown.key' is not understood"):
        mix(["odd.safetensors"], output=Path("out.safetensors"), skip=left)
    assert not Path("out.safetensors").exists()


def test_what_is_skipped_is_left_out_and_named_everywhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix(["odd.safetensors:0.5", "plain.safetensors:0.5"], output=Path("out.safetensors"), skip=list(ODD))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    gone = {*ODD, f"{Q}.lora_down.weight", f"{Q}.lora_up.weight", f"{Q}.alpha"}
    assert {line.split()[1] for line in lines} == gone, "the magnitude takes its A and B along"
    assert f"skipped: {Q}.alpha of odd.safetensors  (DoRA is not a sum of B A" in "\n".join(lines)
    written = read_adapter(Path("out.safetensors"))
    plain = read_adapter(Path("plain.safetensors")).modules
    for name, share in zip(NAMES, (0.5, 1.0, 1.0), strict=True):
        factors = written.modules[name]
        torch.testing.assert_close(factors.up @ factors.down, share * plain[name].up @ plain[name].down)
    recipe = json.loads(written.metadata["draft.recipe"])
    assert set(recipe["inputs"][0]["skipped"]) == gone and "skipped" not in recipe["inputs"][1]
    assert recipe["skip"] == list(ODD)
    mix(["odd.safetensors"], output=Path("two.safetensors"), skip=["*"], json=True)
    report = json.loads(capsys.readouterr().out)
    assert {entry["tensor"] for entry in report["skipped"]} == gone
    assert all(entry["path"] == "odd.safetensors" and entry["reason"] for entry in report["skipped"])
    assert_same("two.safetensors", NAMES[1:])


@pytest.mark.parametrize(
    ("tensors", "pattern", "kept"),
    [
        ({f"{Q}.dora_scale": torch.ones(16, 1)}, f"{Q}.lora_up.weight", NAMES[1:]),
        ({f"{Q}.lora_up.weight": torch.full((16, 2), torch.nan)}, NAMES[0], NAMES[1:]),
        ({f"{Q}.lora_up.weight": torch.ones(16, 3)}, "mid_block.*.to_q", NAMES[1:]),
        ({f"{Q}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "unet.mid_block", NAMES[1:]),
        ({"lora_unet_up_blocks_9_nonsense.lora_up.weight": torch.ones(3, 3)}, "*nonsense", NAMES),
        ({"bundle_emb.word.string_to_param.*": torch.ones(3)}, "bundle_emb", NAMES),
    ],
)
def test_a_module_is_skipped_by_its_path_or_by_any_of_its_tensors(
    folder: Path, tensors: dict[str, torch.Tensor], pattern: str, kept: list[str]
) -> None:
    save_file(load_file("plain.safetensors") | tensors, "odd.safetensors")
    with pytest.raises(StageError):
        mix(["odd.safetensors"], output=Path("out.safetensors"))
    with pytest.raises(StageError):
        mix(["odd.safetensors"], output=Path("out.safetensors"), skip=["other"])
    mix(["odd.safetensors"], output=Path("out.safetensors"), skip=[pattern])
    assert_same("out.safetensors", kept)


def test_what_can_be_read_is_never_skipped_and_an_idle_pattern_is_refused(folder: Path) -> None:
    for inputs, pattern in ((["plain.safetensors"], "*"), (["odd.safetensors"], f"{K}.*")):
        skip = [pattern] if inputs == ["plain.safetensors"] else [*ODD, pattern]
        with pytest.raises(StageError) as error:
            mix(inputs, output=Path("out.safetensors"), skip=skip)
        assert f"no tensor that cannot be read matches the skip {pattern!r}" in str(error.value)
    assert [each.tensor for each in read_changes(Path("plain.safetensors"), skip=["*"]).skipped] == []
    save_file(ODD, "odd.safetensors")
    with pytest.raises(StageError, match="nothing is left of the file: all 4 tensors are skipped"):
        mix(["odd.safetensors"], output=Path("out.safetensors"), skip=["*"])


def test_biases_beside_a_lora_are_skipped_with_the_setting_for_them(folder: Path) -> None:
    plain = read_adapter(Path("plain.safetensors"))
    write_adapter(plain, Path("peft"), format="peft")
    config = json.loads(Path("peft/adapter_config.json").read_text())
    Path("peft/adapter_config.json").write_text(json.dumps(config | {"lora_bias": True}))
    weights = load_file("peft/adapter_model.safetensors")
    bias = f"base_model.model.{NAMES[0].removeprefix('unet.')}.lora_B.bias"
    save_file(weights | {bias: torch.ones(16)}, "peft/adapter_model.safetensors")
    with pytest.raises(StageError, match="a LoRA with biases is not a sum of B A"):
        mix(["peft"], output=Path("out.safetensors"))
    mix(["peft"], output=Path("out.safetensors"), skip=["*.bias"])
    assert_same("out.safetensors", NAMES)


def test_numbered_tensors_stay_in_their_order_when_an_embedding_beside_them_is_skipped(folder: Path) -> None:
    numbered = {"text_encoder:0:up": torch.ones(768, 1), "text_encoder:0:down": torch.ones(1, 768)}
    numbered |= {
        f"text_encoder:{i}:{side}": numbered[f"text_encoder:0:{side}"] for i in (1, 2, 3) for side in ("up", "down")
    }
    save_file({name: t.clone() for name, t in numbered.items()} | {"<word>": torch.ones(768)}, "odd.safetensors")
    with pytest.raises(StageError, match="is no numbered LoRA tensor"):
        read_changes(Path("odd.safetensors"))
    changes = read_changes(Path("odd.safetensors"), skip=["<word>"])
    assert len(changes.modules) == 4 and [each.tensor for each in changes.skipped] == ["<word>"]


def test_a_stage_skips_by_its_key_and_a_reproduction_does_again(folder: Path) -> None:
    stage: dict[str, Any] = {"kind": "mix", "adapters": {"odd": {"from": "odd.safetensors"}}, "skip": ["*"]}
    Path("mix.yaml").write_text(json.dumps({"name": "mix", "stages": {"both": stage}}))
    with pytest.warns(DraftWarning, match="skipped, since they cannot be read: ") as caught:
        run_pipeline(Path("mix.yaml"), runs_dir=Path("runs"))
    assert all(f"{name} of odd" in str(caught[0].message) for name in ODD)
    path = Path("runs/mix/both/adapter.safetensors")
    assert_same(str(path), NAMES[1:])
    again = reproduce(read_changes(path).metadata, name="again")
    assert again.stages["both"]["skip"] == ["*"]
    mix(["odd.safetensors"], output=Path("out.safetensors"), skip=["*"])
    again = reproduce(read_changes(Path("out.safetensors")).metadata, name="again")
    assert again.stages["mix"]["skip"] == ["*"]
    stage["skip"] = "x"
    Path("mix.yaml").write_text(json.dumps({"name": "mix", "stages": {"both": stage}}))
    with pytest.raises(DraftError, match="skip"):
        load_pipeline(Path("mix.yaml"))


def test_a_merge_names_what_it_skips(folder: Path, tiny_model: Path) -> None:
    report = merge_files(tiny_model, [(Path("odd.safetensors"), 1.0)], Path("out"), skip=["*"])
    assert {each.tensor for _, each in report.skipped} == {name for name in ODD if "dora" not in name}
    assert report.modules == 3, "with the model's weights a DoRA can be read"
