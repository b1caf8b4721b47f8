"""From files to a checked file: bounds, patterns, dtypes, the recipe, and what happens when something goes wrong."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draft.adapters.algebra.mix import mix
from draft.adapters.files.container import write_tensors
from draft.adapters.files.formats import Adapter, Factors, read_adapter, write_adapter
from draft.adapters.mixture import MixReport, mix_files
from draft.adapters.settings import MixSettings
from draft.errors import DraftWarning, StageError

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def make_adapter(seed: int, *, rank: int = 4, names=(Q, CONV, TEXT), dtype=torch.float32) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name in names:
        tail = (3, 3) if name == CONV else ()
        down = torch.randn(rank, 9, *tail, generator=generator)
        up = torch.randn(11, rank, *[1 for _ in tail], generator=generator)
        modules[name] = Factors(down.to(dtype), up.to(dtype))
    return Adapter(modules)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("a", "b", "out")}
    write_adapter(make_adapter(0), paths["a"], metadata={"modelspec.title": "Ansel", "modelspec.license": "MIT"})
    write_adapter(make_adapter(1, rank=5, names=(Q, CONV)), paths["b"], metadata={"modelspec.license": "CC0"})
    return paths


def mixed(files: dict[str, Path], *, weights: tuple[float, float] = (0.7, 0.3), **options: Any) -> MixReport:
    inputs = [(files["a"], weights[0]), (files["b"], weights[1])]
    return mix_files(inputs, files["out"], settings=MixSettings(**options))


def dense(factors: Factors) -> torch.Tensor:
    return factors.scale * factors.up.double().flatten(1) @ factors.down.double().flatten(1)


def exact(files: dict[str, Path], *, weights: tuple[float, float] = (0.7, 0.3)) -> dict[str, torch.Tensor]:
    inputs = [(read_adapter(files[name]), weight) for name, weight in zip(("a", "b"), weights, strict=True)]
    return {name: dense(factors) for name, factors in mix(inputs).modules.items()}


@pytest.mark.parametrize("options", [{"rank": 3}, {"energy": 0.9}, {"max_error": 0.3}])
def test_the_file_of_a_smaller_rank_has_the_error_that_was_predicted(files, options: dict[str, Any]) -> None:
    report = mixed(files, **options)
    wanted = exact(files)
    written = read_adapter(files["out"]).modules
    missed = sum(float((dense(written[name]) - change).square().sum()) for name, change in wanted.items())
    measured = (missed / sum(float(change.square().sum()) for change in wanted.values())) ** 0.5
    assert report.predicted is not None and report.total is not None and 0.01 < measured < 1
    assert report.predicted == pytest.approx(measured, rel=1e-4)
    assert report.total == pytest.approx(measured, rel=1e-4)
    assert report.ranks == read_adapter(files["out"]).ranks
    assert max(report.ranks) < 9


def test_an_exact_mix_predicts_nothing(files) -> None:
    report = mixed(files)
    assert report.predicted is None and report.error is not None and report.error < 1e-6


def test_components_and_blocks_weigh_the_sum_and_a_factor_of_zero_leaves_modules_out(files) -> None:
    report = mixed(files, components={"text_encoder": 0.0}, blocks={"*.attn1": -0.5})
    assert report.dropped == (TEXT,) and report.modules == 2
    written = read_adapter(files["out"]).modules
    wanted = exact(files)
    assert sorted(written) == [Q, CONV]
    torch.testing.assert_close(dense(written[Q]), -0.5 * wanted[Q], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dense(written[CONV]), wanted[CONV], rtol=1e-5, atol=1e-6)
    with pytest.raises(StageError, match="nothing is left to mix: all 3 modules have the factor 0"):
        mixed(files, components={"*": 0.0})


def test_normalize_divides_the_weights_by_their_sum(files) -> None:
    mixed(files, weights=(3.0, 1.0), normalize=True)
    written = read_adapter(files["out"]).modules
    for name, change in exact(files, weights=(0.75, 0.25)).items():
        torch.testing.assert_close(dense(written[name]), change, rtol=1e-5, atol=1e-6)
    for weights in ((1.0, -1.0), (0.1 + 0.2, -0.3), (0.0, 0.0)):
        with pytest.raises(StageError, match="weights that sum to 0 cannot be normalised"):
            mixed(files, weights=weights, normalize=True)


@pytest.mark.parametrize(
    ("asked", "written", "bound"), [("fp32", "float32", 1e-6), ("fp16", "float16", 2e-3), ("bf16", "bfloat16", 2e-2)]
)
def test_the_dtype_is_the_one_that_was_asked_for(files, asked: str, written: str, bound: float) -> None:
    report = mixed(files, dtype=asked)
    found = read_adapter(files["out"]).modules[Q]
    assert report.dtype == written and str(found.down.dtype) == f"torch.{written}"
    assert report.error is not None and report.error < bound


def test_a_file_that_is_named_twice_counts_once_with_both_weights(files) -> None:
    report = mix_files([(files["a"], 0.5), (files["a"], 0.5)], files["out"])
    assert [(weight, modules) for _, weight, modules, _ in report.inputs] == [(1.0, 3)]
    for name, factors in read_adapter(files["a"]).modules.items():
        found = read_adapter(files["out"]).modules[name]
        assert torch.equal(found.down, factors.down) and torch.equal(found.up, factors.up)


def test_the_header_tells_the_recipe_of_the_whole_chain_without_a_path(files, tmp_path: Path) -> None:
    mixed(files, rank=3, blocks={"mid_block": 0.5})
    second = tmp_path / "second.safetensors"
    mix_files([(files["out"], 2.0), (files["b"], -1.0)], second, settings=MixSettings(dtype="fp16"))
    header = read_adapter(second).metadata
    recipe = json.loads(header["draft.recipe"])
    assert [(each["name"], each["weight"]) for each in recipe["inputs"]] == [("out", 2.0), ("b", -1.0)]
    assert recipe["dtype"] == "fp16" and recipe["method"] == "exact" and recipe["error"] is None
    inner = recipe["inputs"][0]["recipe"]
    assert inner["rank"] == 3 and inner["blocks"] == {"mid_block": 0.5} and inner["error"] > 0
    assert [len(each["sha256"]) for each in inner["inputs"]] == [64, 64] and "recipe" not in inner["inputs"][0]
    assert read_adapter(files["out"]).metadata["modelspec.merged_from"] == "Ansel, b"
    assert read_adapter(files["out"]).metadata["modelspec.license"] == "MIT, CC0"
    assert str(tmp_path) not in "".join(header.values())


def test_the_same_mix_gives_the_same_bytes(files) -> None:
    mixed(files, max_error=0.2)
    first = files["out"].read_bytes()
    mixed(files, max_error=0.2)
    assert files["out"].read_bytes() == first


def test_a_dry_run_knows_ranks_size_and_error_and_writes_nothing(files) -> None:
    inputs = [(files["a"], 0.7), (files["b"], 0.3)]
    for format in ("kohya", "diffusers"):
        settings = MixSettings(energy=0.8, format=format)  # type: ignore[arg-type]
        dry = mix_files(inputs, files["out"], settings=settings, dry_run=True)
        assert not files["out"].exists() and dry.error is None
        wet = mix_files(inputs, files["out"], settings=settings)
        assert (dry.ranks, dry.predicted, dry.modules, dry.size) == (wet.ranks, wet.predicted, wet.modules, wet.size)
        assert 0 < files["out"].stat().st_size - dry.size < 5000
        files["out"].unlink()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "energy": 0.5}, r"rank, energy and max_error exclude each other \(got rank and energy\)"),
        ({"method": "ties", "density": 0.5}, "the method ties needs a rank"),
        ({"method": "dare", "rank": 4}, "the method dare needs a density"),
        ({"density": 0.5}, r"density is for the methods ties, dare and magnitude \(got 0.5 with exact\)"),
        ({"verify": "full"}, r"needs another program's reader \(got none\)"),
    ],
)
def test_settings_that_contradict_each_other_are_named(files, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        mixed(files, **options)
    assert not files["out"].exists()


def test_a_full_disk_leaves_no_trace_and_the_old_file(files, tmp_path: Path, monkeypatch) -> None:
    files["out"].write_text("precious")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError) as error:
        mixed(files)
    assert str(error.value).startswith(
        f"{files['out']}: cannot write the file (No space left on device)\n  needs: free"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_is_not_the_mix_never_gets_its_name(files, tmp_path: Path, monkeypatch) -> None:
    files["out"].write_text("precious")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def spoiling(adapter: Adapter, path: Path, **options: Any) -> None:
        spoilt = {name: Factors(f.down, f.up * 1.01) if name == CONV else f for name, f in adapter.modules.items()}
        write_adapter(Adapter(spoilt), path, **options)

    monkeypatch.setattr("draft.adapters.readback.write_adapter", spoiling)
    with pytest.raises(StageError, match=f"is not what was asked for: {CONV} is off by 1.0e-02"):
        mixed(files)
    with pytest.raises(StageError, match=r"is not what was asked for: .* is off by .*, not "):
        mixed(files, rank=8)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_module_that_got_lost_or_came_in_is_named(files, monkeypatch) -> None:
    def losing(adapter: Adapter, path: Path, **options: Any) -> None:
        write_adapter(Adapter({CONV: adapter.modules[CONV]}), path, **options)

    monkeypatch.setattr("draft.adapters.readback.write_adapter", losing)
    with pytest.raises(StageError, match="read by Draft, lacks text_encoder.*fc1 and 1 more"):
        mixed(files)


def test_another_reader_must_find_the_same(files) -> None:
    inputs = [(files["a"], 0.7), (files["b"], 0.3)]

    def reader(path: Path, family: str) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
        assert family == "sd"
        return {name: (f.down, f.up, f.scale * strength) for name, f in read_adapter(path).modules.items()}

    strength = 1.0
    report = mix_files(inputs, files["out"], settings=MixSettings(verify="full"), reader=reader)
    assert report.peer_error == report.error
    files["out"].unlink()
    strength = 0.5
    with pytest.raises(StageError, match="read by diffusers, is not what was asked for: .* is off by 5.0e-01"):
        mix_files(inputs, files["out"], settings=MixSettings(verify="full"), reader=reader)
    assert not files["out"].exists()


def test_adapters_of_different_base_models_mix_with_a_warning(files, tmp_path: Path) -> None:
    for name, version in (("a", "sd_v1"), ("b", "sd_v2")):
        write_adapter(read_adapter(files[name]), files[name], metadata={"ss_base_model_version": version})
    with pytest.warns(DraftWarning, match=r"trained for different base models, they say \(sd_v1, sd_v2\)"):
        mixed(files)


def test_an_input_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no.safetensors: no such adapter file"):
        mix_files([(tmp_path / "no.safetensors", 1.0)], tmp_path / "out.safetensors")


def test_a_peft_folder_is_written_whole(files, tmp_path: Path) -> None:
    settings = MixSettings(format="peft", components={"text_encoder": 0.0})
    report = mix_files([(files["a"], 1.0)], tmp_path / "folder", settings=settings)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert report.modules == 2 and len(read_adapter(tmp_path / "folder").modules) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_weight_whose_change_the_dtype_cannot_hold_is_told(files) -> None:
    with pytest.raises(StageError, match=r"the change of .* is too small for float32, where all of it becomes 0"):
        mix_files([(files["a"], 2e-105)], files["out"])
    assert not files["out"].exists()


@settings(max_examples=15)
@given(data=st.data())
def test_files_of_any_rank_alpha_dtype_format_and_shape_mix_to_the_weighted_sum(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("any")
    shapes = {name: (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))) for name in (Q, CONV, TEXT)}
    kernel = data.draw(st.sampled_from([1, 3]))
    inputs, wanted = [], {}
    for index in range(data.draw(st.integers(1, 3))):
        names = data.draw(st.lists(st.sampled_from(sorted(shapes)), min_size=1, unique=True))
        dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
        weight = data.draw(st.floats(0.001, 2) | st.floats(-2, -0.001) | st.just(0.0))
        generator = torch.Generator().manual_seed(index)
        modules = {}
        for name in names:
            inner, out = shapes[name]
            rank, tail = data.draw(st.integers(1, 6)), (kernel, kernel) if name == CONV else ()
            down = torch.randn(rank, inner, *tail, generator=generator).to(dtype)
            up = torch.randn(out, rank, *[1 for _ in tail], generator=generator).to(dtype)
            modules[name] = Factors(down, up, data.draw(st.floats(0.1, 4)))
        path = folder / f"{index}.safetensors"
        write_adapter(Adapter(modules), path, format=data.draw(st.sampled_from(["kohya", "diffusers"])))
        inputs.append((path, weight))
        for name, factors in read_adapter(path).modules.items():
            wanted[name] = wanted.get(name, 0) + weight * dense(factors)
    options = {"dtype": "fp32", "format": data.draw(st.sampled_from(["kohya", "diffusers"]))}
    report = mix_files(inputs, folder / "out.safetensors", settings=MixSettings(**options))
    written = read_adapter(folder / "out.safetensors").modules
    assert sorted(written) == sorted(wanted) and report.modules == len(wanted)
    for name, change in wanted.items():
        torch.testing.assert_close(dense(written[name]), change, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_one_file_at_weight_one_is_itself_to_the_bit_in_every_format(files, format: Any) -> None:
    mix_files([(files["a"], 1.0)], files["out"], settings=MixSettings(format=format))
    for name, factors in read_adapter(files["a"]).modules.items():
        found = read_adapter(files["out"]).modules[name]
        assert torch.equal(found.down, factors.down) and torch.equal(found.up, factors.up) and found.scale == 1


def test_mixing_in_one_go_or_in_two_is_the_same(files, tmp_path: Path) -> None:
    third, step = tmp_path / "c.safetensors", tmp_path / "step.safetensors"
    write_adapter(make_adapter(2, rank=2), third)
    mix_files([(files["a"], 0.7), (files["b"], -0.3)], step)
    mix_files([(step, 2.0), (third, 0.5)], files["out"])
    nested = {name: dense(f) for name, f in read_adapter(files["out"]).modules.items()}
    mix_files([(files["a"], 1.4), (files["b"], -0.6), (third, 0.5)], files["out"])
    for name, factors in read_adapter(files["out"]).modules.items():
        torch.testing.assert_close(dense(factors), nested[name], rtol=1e-5, atol=1e-5)


def test_loha_takes_part_where_a_rank_is_given_and_only_there(files, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    loha = tmp_path / "loha.safetensors"
    base = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes = {"hada_w1_a": (11, 2), "hada_w1_b": (2, 9), "hada_w2_a": (11, 2), "hada_w2_b": (2, 9)}
    parts = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    tensors = {f"{base}.{name}": tensor for name, tensor in parts.items()}
    write_tensors({**tensors, f"{base}.alpha": torch.tensor(2.0)}, loha, metadata={})
    with pytest.raises(StageError, match="LoHa"):
        mix_files([(loha, 1.0)], files["out"])
    mix_files([(loha, 0.5), (files["a"], 1.0)], files["out"], settings=MixSettings(rank=9))
    change = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    wanted = 0.5 * change.double() + dense(read_adapter(files["a"]).modules[Q])
    torch.testing.assert_close(dense(read_adapter(files["out"]).modules[Q]), wanted, rtol=1e-4, atol=1e-4)
