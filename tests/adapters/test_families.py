"""Adapter files of a family that a package brings: no table here knows its modules, its row is enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from draft.adapters.files.formats import (
    Adapter,
    Factors,
    denoiser_factors,
    file_format,
    part_factors,
    read_adapter,
    write_adapter,
)
from draft.adapters.mixture import mix_files
from draft.diffusion import families
from draft.diffusion.families import FAMILIES, AdapterFiles, Family
from draft.errors import DraftError, StageError

TOY = Family(
    name="toy",
    title="Toy",
    pipeline="ToyPipeline",
    part="transformer",
    encoders=("text_encoder",),
    files=AdapterFiles(architecture="toy-flow-1", base_version="toy1", resolution="64x64"),
)
NAMES = ("transformer.layers.0.mix.query", "transformer.layers.1.mix.query", "transformer.head")


@pytest.fixture(autouse=True)
def _offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "offered_families", lambda: [("draft-toy", TOY)])


def toy(seed: int = 0, *names: str) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return Adapter({name: Factors(random(2, 6), random(5, 2), 0.5) for name in names or NAMES}, "toy")


def test_what_is_written_is_read_back_as_the_same_family(tmp_path: Path) -> None:
    adapter, path = toy(), tmp_path / "toy.safetensors"
    write_adapter(adapter, path)
    back = read_adapter(path)
    assert back.family == "toy" and sorted(back.modules) == sorted(NAMES)
    for name, factors in back.modules.items():
        wanted = adapter.modules[name]
        torch.testing.assert_close(factors.up @ factors.down * factors.scale, wanted.up @ wanted.down * 0.5)
    with safe_open(path, "pt") as file:
        assert sorted(file.keys())[0] == "transformer.head.lora_A.weight"
        header = file.metadata()
    assert header["modelspec.architecture"] == "toy-flow-1/lora"
    assert (header["ss_base_model_version"], header["modelspec.resolution"]) == ("toy1", "64x64")


def test_its_denoisers_factors_are_found_by_the_part(tmp_path: Path) -> None:
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    adapter = toy(0, *NAMES, name)
    assert sorted(denoiser_factors(adapter)) == ["head", "layers.0.mix.query", "layers.1.mix.query"]
    assert list(part_factors(adapter, "text_encoder")) == ["text_model.encoder.layers.0.mlp.fc1"]
    assert part_factors(adapter, "unet") == {}
    with pytest.raises(StageError, match="does not touch the transformer"):
        denoiser_factors(toy(0, name))


def test_two_of_them_mix(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_adapter(toy(seed), tmp_path / f"{seed}.safetensors")
    mix_files([(tmp_path / "0.safetensors", 1.0), (tmp_path / "1.safetensors", 0.5)], tmp_path / "mix.safetensors")
    mixed = read_adapter(tmp_path / "mix.safetensors")
    assert mixed.family == "toy"
    for name in NAMES:
        one, two, both = (adapter.modules[name] for adapter in (toy(0), toy(1), mixed))
        wanted = 0.5 * one.up @ one.down + 0.25 * two.up @ two.down
        torch.testing.assert_close(both.scale * both.up @ both.down, wanted, rtol=1e-4, atol=1e-4)


def test_without_its_package_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(toy(), tmp_path / "toy.safetensors")
    monkeypatch.setattr(families, "offered_families", list)
    with pytest.raises(StageError, match="a LoRA of a family that is not read"):
        read_adapter(tmp_path / "toy.safetensors")
    with pytest.raises(DraftError, match="unknown family of models 'toy'"):
        write_adapter(toy(), tmp_path / "again.safetensors")


def test_a_format_that_a_family_shares_with_its_tools_is_auto() -> None:
    assert [file_format(family.name, "auto") for family in FAMILIES] == ["kohya", "kohya", "diffusers", "diffusers"]
    assert file_format("toy", "auto") == "diffusers" and file_format("sd", "peft") == "peft"
