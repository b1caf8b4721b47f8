"""A model that this machine is too small for is refused before its weights are read, by what it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from draft.diffusion import memory
from draft.diffusion.families import FAMILIES, count_parameters, load_text_to_image
from draft.diffusion.memory import explain_out_of_memory, free_memory, require_memory
from draft.errors import DraftError, ResourceError

STABLE_DIFFUSION_1 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "sample_size": 64,
}


@pytest.fixture
def without_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A folder with the configuration of Stable Diffusion 1 and no weights."""
    folder = tmp_path / "large"
    (folder / "unet").mkdir(parents=True)
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    for component, kind in FAMILIES[0].components.items():
        (folder / component).mkdir(exist_ok=True)
        index[component] = ["library", kind]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DConditionModel", **STABLE_DIFFUSION_1})
    )
    return folder


def refusal(model: Path | str, device: str = "auto") -> ResourceError:
    with pytest.raises(ResourceError) as caught:
        require_memory(str(model), device, torch.float32)
    return caught.value


@pytest.mark.usefixtures("without_accelerator")
def test_a_large_model_without_an_accelerator_is_refused_and_cpu_insists(large: Path, monkeypatch) -> None:
    assert str(refusal(large)) == (
        f"model {str(large)!r} is too large to go without a GPU, and there is none here\n"
        "  needs: a GPU with room for the denoiser (860 M parameters, 3.4 GB in float32) and for what is computed with "
        "it\n  hint: `device: cpu` insists, if you have the time"
    )
    monkeypatch.setattr(memory, "free_memory", lambda: 10**12)
    require_memory(str(large), "cpu", torch.float32)


@pytest.mark.usefixtures("without_accelerator")
def test_weights_larger_than_the_free_memory_are_refused_even_where_cpu_insists(large: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 3 * 10**9)
    error = refusal(large, "cpu")
    assert error.what == f"model {str(large)!r} does not fit into the memory that is free here (3.0 GB)"
    assert "860 M parameters, 3.4 GB in float32" in error.needs
    require_memory(str(large), "cpu", torch.bfloat16)  # weights are read in the precision that they are used in


def test_an_accelerator_is_asked_only_by_using_it(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "choose_device", lambda device: torch.device("cuda"))
    require_memory(str(large), "auto", torch.float32)


@pytest.mark.usefixtures("without_accelerator")
def test_a_small_model_fits(tiny_folders: dict[str, Path]) -> None:
    require_memory(str(tiny_folders["epsilon"]), "auto", torch.float32)


def test_parameters_are_counted_without_reading_weights(tiny_folders: dict[str, Path], load) -> None:
    model = load(dtype=torch.float32)
    assert count_parameters(str(tiny_folders["epsilon"])) == {
        "unet": sum(p.numel() for p in model.network.parameters()),
        "text_encoder": sum(p.numel() for p in model.encoders["text_encoder"].parameters()),
    }


def test_parameters_of_a_single_file_are_counted_from_its_header(tmp_path: Path) -> None:
    tensors = {"model.diffusion_model.input_blocks.a": torch.zeros(3, 5), "first_stage_model.b": torch.zeros(7)}
    save_file({**tensors, "cond_stage_model.c": torch.zeros(4)}, tmp_path / "one.safetensors")
    assert count_parameters(str(tmp_path / "one.safetensors")) == {"unet": 15, "text_encoder": 4}
    save_file({**tensors, "conditioner.embedders.1.c": torch.zeros(1)}, tmp_path / "xl.safetensors")
    assert count_parameters(str(tmp_path / "xl.safetensors")) == {"unet": 15, "text_encoder": 1}


@pytest.mark.usefixtures("without_accelerator")
def test_what_cannot_be_counted_is_left_to_loading(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"nonsense")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    for model in ("nobody/nothing", tmp_path / "damaged.safetensors", tmp_path / "other", tmp_path / "gone"):
        assert count_parameters(str(model)) == {}
        require_memory(str(model), "auto", torch.float32)


def test_a_model_that_only_the_hub_has_says_what_it_needs() -> None:
    with pytest.raises(ResourceError) as caught:
        load_text_to_image("nobody/nothing", device=torch.device("cpu"), dtype=torch.float32)
    assert caught.value.needs == "the model's files on this machine, or a way to the hub that has them"


def test_a_damaged_folder_is_no_matter_of_resources(tmp_path: Path) -> None:
    with pytest.raises(DraftError) as caught:
        load_text_to_image(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)
    assert not isinstance(caught.value, ResourceError)


def test_memory_that_runs_out_is_told_without_a_traceback() -> None:
    with pytest.raises(ResourceError) as caught, explain_out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of ...")
    assert caught.value.what == "the accelerator's memory is full, and 2.00 GiB more are wanted"
    with pytest.raises(ResourceError) as caught, explain_out_of_memory():
        torch.empty(10**15)
    assert caught.value.what == "this machine's memory is full, and 4000000000000000 bytes more are wanted"
    with pytest.raises(ResourceError) as caught, explain_out_of_memory():
        raise MemoryError
    assert str(caught.value).startswith("this machine's memory is full\n  needs: more memory for this batch_size")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="^a bug$"), explain_out_of_memory():
        raise RuntimeError("a bug")


def test_free_memory_is_that_of_this_machine() -> None:
    assert 10**6 < free_memory() < 10**15
