"""Two adapters are one if everything that decides their change is equal, and only then."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from draft.adapters.conversion import convert_file
from draft.adapters.files.formats import read_adapter, write_adapter
from draft.adapters.files.stamp import stamp_adapter
from draft.adapters.hub import local_path
from draft.adapters.identity import adapter_digest
from draft.adapters.mixture import mix_files
from draft.adapters.settings import MixSettings
from draft.errors import StageError
from draft.files import sha256
from draft.pipeline.reproduce import reproduce
from draft_cli.reproduce import _digests

PATH = "mid_block.attentions.0.proj_in"
A, B = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.ones(5, 4)


def folder(path: Path, **config: Any) -> Path:
    """A peft folder of the one A and B at rank 4."""
    path.mkdir()
    key = f"base_model.model.{PATH}"
    save_file({f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}, path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, **config}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


def change(path: Path) -> torch.Tensor:
    """dW as the file's own keys give it, at alpha = r."""
    tensors = load_file(path)
    (down,) = (tensor for name, tensor in tensors.items() if "lora_down" in name or "lora_A" in name)
    (up,) = (tensor for name, tensor in tensors.items() if "lora_up" in name or "lora_B" in name)
    return ((up.double() @ down.double()) / (B.double() @ A.double())).float()


@pytest.mark.parametrize("order", [(8, 16), (16, 8)])
@pytest.mark.parametrize(("weights", "strength"), [((1, 1), 6.0), ((1, -1), -2.0)])
def test_equal_tensors_under_two_alphas_are_two_adapters(
    tmp_path: Path, order: tuple[int, int], weights: tuple[int, int], strength: float
) -> None:
    by_alpha: dict[int, int] = dict(zip((8, 16), weights, strict=True))
    inputs = [(folder(tmp_path / str(alpha), lora_alpha=alpha), float(by_alpha[alpha])) for alpha in order]
    report = mix_files(inputs, tmp_path / "mix.safetensors")
    assert len(report.inputs) == 2
    torch.testing.assert_close(change(tmp_path / "mix.safetensors"), torch.full((5, 5), strength))


@pytest.mark.parametrize(
    ("config", "strength"),
    [
        ({"alpha_pattern": {"proj_in": 12}}, 3.0),
        ({"r": 2, "rank_pattern": {"proj_in": 4}, "lora_alpha": 8}, 2.0),
        ({"use_rslora": True}, 2.0),
    ],
)
def test_every_setting_that_decides_about_the_change_tells_two_folders_apart(
    tmp_path: Path, config: dict[str, Any], strength: float
) -> None:
    inputs = [(folder(tmp_path / "plain"), 1.0), (folder(tmp_path / "other", **config), 1.0)]
    assert len({adapter_digest(path) for path, _ in inputs}) == 2
    mix_files(inputs, tmp_path / "mix.safetensors")
    torch.testing.assert_close(change(tmp_path / "mix.safetensors"), torch.full((5, 5), 1 + strength))


def test_settings_that_decide_nothing_do_not(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", base_model_name_or_path="here", inference_mode=True)
    two = folder(tmp_path / "two", base_model_name_or_path="there")
    assert adapter_digest(one) == adapter_digest(two) == adapter_digest(two / "adapter_model.safetensors")
    assert adapter_digest(one) != sha256(one / "adapter_model.safetensors")
    assert len(mix_files([(one, 1.0), (two, 1.0)], tmp_path / "mix.safetensors").inputs) == 1


def test_of_a_file_alone_the_digest_is_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    shutil.copy(folder(tmp_path / "peft") / "adapter_model.safetensors", path)
    assert adapter_digest(path) == sha256(path)


def test_a_header_that_decides_the_scale_tells_two_files_apart(tmp_path: Path) -> None:
    key = f"unet.{PATH}"
    tensors = {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
    for alpha in (8, 16):
        metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": alpha})}
        save_file(tensors, tmp_path / f"{alpha}.safetensors", metadata=metadata)
    inputs = [(tmp_path / f"{alpha}.safetensors", 1.0) for alpha in (8, 16)]
    mix_files(inputs, tmp_path / "mix.safetensors")
    torch.testing.assert_close(change(tmp_path / "mix.safetensors"), torch.full((5, 5), 6.0))


def test_the_file_of_a_folder_is_read_with_the_configuration_beside_it(tmp_path: Path) -> None:
    path = folder(tmp_path / "peft", lora_alpha=16)
    file = path / "adapter_model.safetensors"
    assert read_adapter(file).modules[f"unet.{PATH}"].scale == read_adapter(path).modules[f"unet.{PATH}"].scale == 4.0
    convert_file(file, tmp_path / "of_file.safetensors")
    convert_file(path, tmp_path / "of_folder.safetensors")
    torch.testing.assert_close(change(tmp_path / "of_file.safetensors"), change(tmp_path / "of_folder.safetensors"))
    stamp_adapter(file, tmp_path / "stamped.safetensors", metadata={})
    assert read_adapter(tmp_path / "stamped.safetensors").modules[f"unet.{PATH}"].scale == 4.0
    # Under another name nothing says that the configuration is this file's.
    shutil.copy(file, path / "other.safetensors")
    assert read_adapter(path / "other.safetensors").modules[f"unet.{PATH}"].scale == 1.0


def test_a_link_to_the_file_of_a_folder_is_read_with_the_configuration_there(tmp_path: Path) -> None:
    path = folder(tmp_path / "peft", lora_alpha=16)
    (tmp_path / "link.safetensors").symlink_to("peft/adapter_model.safetensors")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "twice.safetensors").symlink_to("../link.safetensors")
    for link in (tmp_path / "link.safetensors", tmp_path / "links" / "twice.safetensors"):
        assert read_adapter(link).modules[f"unet.{PATH}"].scale == 4.0
        assert adapter_digest(link) == adapter_digest(path)


def test_links_into_a_cache_whose_files_have_other_names_keep_their_configuration(tmp_path: Path) -> None:
    path = folder(tmp_path / "snapshot", lora_alpha=16)
    for number, name in enumerate(("adapter_model.safetensors", "adapter_config.json")):
        (path / name).rename(tmp_path / f"blob{number}")
        (path / name).symlink_to(f"../blob{number}")
    (tmp_path / "link.safetensors").symlink_to("snapshot/adapter_model.safetensors")
    for file in (path, path / "adapter_model.safetensors", tmp_path / "link.safetensors"):
        assert read_adapter(file).modules[f"unet.{PATH}"].scale == 4.0


@pytest.mark.parametrize("format", ["diffusers", "peft", "kohya"])
def test_no_file_is_written_where_the_configuration_of_another_would_be_its_own(tmp_path: Path, format: Any) -> None:
    source, other = folder(tmp_path / "source", lora_alpha=16), folder(tmp_path / "other", lora_alpha=8)
    output = other / "adapter_model.safetensors"
    before = output.read_bytes()
    settings = MixSettings(format=format)
    for write in (
        lambda: convert_file(source, output, format=format),
        lambda: mix_files([(source, 1.0)], output, settings=settings),
        lambda: mix_files([(source, 1.0)], output, settings=settings, dry_run=True),
        lambda: write_adapter(read_adapter(source), output, format=format),
    ):
        with pytest.raises(StageError, match=r"adapter_config\.json beside it, which is of another adapter"):
            write()
    assert output.read_bytes() == before
    (other / "adapter_config.json").unlink()
    convert_file(source, output, format=format)
    torch.testing.assert_close(change(output), torch.full((5, 5), 4.0))


@pytest.mark.parametrize("kind", ["text", "folder", "list", "deep"])
def test_a_configuration_that_is_none_is_not_passed_over(tmp_path: Path, kind: str) -> None:
    file = folder(tmp_path / "peft") / "adapter_model.safetensors"
    config = file.with_name("adapter_config.json")
    config.unlink()
    if kind == "folder":
        config.mkdir()
    else:
        config.write_text({"text": "{", "list": "[]", "deep": "[" * 100_000}[kind])
    for path in (file, file.parent):
        with pytest.raises(StageError) as error:
            mix_files([(path, 1.0)], tmp_path / "mix.safetensors")
        assert error.value.where == str(config)
    assert not (tmp_path / "mix.safetensors").exists()


def test_neither_file_of_a_folder_is_written_over_by_what_is_made_of_it(tmp_path: Path) -> None:
    path = folder(tmp_path / "peft")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        before = (path / name).read_bytes()
        with pytest.raises(StageError, match="the output is also an input"):
            mix_files([(path, 1.0)], path / name)
        with pytest.raises(StageError, match="the output is also the input"):
            convert_file(path, path / name)
        assert (path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("init", "kind"),
    [
        ("pissa", "PiSSA"),
        ("pissa_niter_16", "PiSSA"),
        ("olora", "OLoRA"),
        ("OLoRA", "OLoRA"),
        ("corda", "CorDA"),
        ("lora_ga", "LoRA-GA"),
        ("loftq", "LoftQ"),
        ("eva", "EVA"),
    ],
)
def test_factors_that_hold_a_part_of_the_base_are_refused_with_a_way_out(tmp_path: Path, init: str, kind: str) -> None:
    path = folder(tmp_path / "peft", init_lora_weights=init)
    with pytest.raises(StageError, match=kind) as error:
        read_adapter(path)
    assert f"init_lora_weights: {init}" in str(error.value) and error.value.hint and error.value.where == str(path)
    tensors, name = load_file(path / "adapter_model.safetensors"), tmp_path / "header.safetensors"
    save_file(tensors, name, metadata={"lora_adapter_metadata": json.dumps({"unet.init_lora_weights": init})})
    with pytest.raises(StageError, match=kind):
        read_adapter(name)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "mica", None])
def test_beginnings_that_leave_the_base_alone_are_read(tmp_path: Path, init: Any) -> None:
    assert read_adapter(folder(tmp_path / "peft", init_lora_weights=init)).ranks == {4: 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "not a LoRA .*peft_type 'LOHA'"),
        ({"kasa_config": {"x": 1}}, "KaSA is not a sum of B A"),
        ({"use_qalora": True}, "QA-LoRA is not a sum of B A"),
        ({"r": 8}, r"gives unet\.mid_block\.attentions\.0\.proj_in the rank 8, its factors have 4"),
        ({"lora_alpha": True}, "an alpha that is no number"),
        ({"lora_alpha": 10**400}, "an alpha that is no number"),
        ({"lora_alpha": float("nan")}, "an alpha that is no number"),
        ({"alpha_pattern": [1]}, "an alpha that is no number"),
        ({"rank_pattern": {"proj_in": "4"}}, "a rank that is no number"),
        ({"use_rslora": "false"}, "neither true nor false"),
        ({"alpha_pattern": {"(proj_in": 4}}, "a broken pattern"),
        ({"alpha_pattern": {"(a+)+b": 4}}, "could take forever"),
        ({"alpha_pattern": {".*" * 9 + "x": 4}}, "could take forever"),
        ({"alpha_pattern": {"a?" * 30 + "a" * 30: 4}}, "could take forever"),
    ],
)
def test_a_configuration_that_cannot_be_the_adapter_s_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    path = folder(tmp_path / "peft", **config)
    with pytest.raises(StageError, match=message):
        read_adapter(path)


def test_the_configuration_of_a_file_on_the_hub_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(repo: str, file: str, *, revision: str | None) -> str:
        asked.append(file)
        if file.endswith("x/adapter_config.json"):
            raise EntryNotFoundError("none")
        return str(tmp_path / "peft" / file.rpartition("/")[2])

    from huggingface_hub.errors import EntryNotFoundError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("draft.hub.ask_once", lambda: None)
    path = folder(tmp_path / "peft", lora_alpha=16)
    assert local_path("hf://o/r/adapter_model.safetensors") == path / "adapter_model.safetensors"
    assert local_path("hf://o/r/sub/adapter_model.safetensors@main") == path / "adapter_model.safetensors"
    local_path("hf://o/r/x/adapter_model.safetensors")
    local_path("hf://o/r/x/a.safetensors")
    name = "adapter_model.safetensors"
    files = ["adapter_config.json", name, "sub/adapter_config.json", f"sub/{name}"]
    assert asked == [*files, "x/adapter_config.json", f"x/{name}", "x/a.safetensors"]


def test_a_configuration_with_a_pattern_per_module_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    names = [f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn1.to_q" for i in range(30) for j in range(30)]
    patterns = {name: index + 1 for index, name in enumerate(names)}
    config = {"unet.r": 1, "unet.lora_alpha": 1, "unet.alpha_pattern": patterns}
    tensors = {f"unet.{name}.lora_{letter}.weight": torch.ones(1, 1) for name in names for letter in "AB"}
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(config)})
    modules = read_adapter(path).modules
    assert [modules[f"unet.{name}"].scale for name in names] == [float(index + 1) for index in range(900)]
    with safe_open(path, "pt") as file:
        assert len(file.keys()) == 1800


def test_a_stage_is_made_anew_when_the_configuration_beside_its_file_changes(tmp_path: Path) -> None:
    from draft.pipeline.identity import _file_identity
    from draft.training.base_adapters import AdapterFiles

    path = folder(tmp_path / "peft", lora_alpha=16)
    file = path / "adapter_model.safetensors"

    def identities() -> list[Any]:
        adapters = AdapterFiles(init=file, base=((path, 1.0), (file, 0.5)))
        return [_file_identity(str(file)), _file_identity(str(path)), *adapters.identity()]

    before = identities()
    (path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    assert all(one != other for one, other in zip(before, identities(), strict=True))


def test_reproducing_finds_a_folder_by_what_recipes_hold_of_it(tmp_path: Path) -> None:
    path = folder(tmp_path / "peft", lora_alpha=16)
    mix_files([(path, 1.0)], tmp_path / "mix.safetensors")
    with safe_open(tmp_path / "mix.safetensors", "pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata["draft.recipe"])
    assert recipe["inputs"][0]["sha256"] == adapter_digest(path)
    digests = _digests([path])
    for digest in (adapter_digest(path), sha256(path / "adapter_model.safetensors")):  # ours, and that of before
        recipe["inputs"][0]["sha256"] = digest
        reproduction = reproduce({"draft.recipe": json.dumps(recipe)}, name="x", input_files=digests)
        assert reproduction.stages["mix"]["adapters"]["peft"]["from"] == str(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are no text")
def test_a_file_whose_name_is_no_text_can_be_mixed(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xffa.safetensors")
    shutil.copy(folder(tmp_path / "peft") / "adapter_model.safetensors", file)
    mix_files([(file, 0.5)], tmp_path / "mix.safetensors")
    with safe_open(tmp_path / "mix.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["draft.recipe"])["inputs"][0]["name"] == "?a"
    convert_file(tmp_path / "mix.safetensors", file)
    assert read_adapter(file).ranks == {4: 1}
