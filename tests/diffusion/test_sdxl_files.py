"""Stable Diffusion XL from files: folders, single files in the original layout, adapters, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import write_adapter
from draft.adapters.verification.verify import verify
from draft.diffusion.families import families, load_text_to_image, vocabulary
from draft.diffusion.generate import generate_images
from draft.diffusion.schedule import Schedule
from draft.diffusion.settings import SamplerSettings
from draft.errors import DraftError
from draft.types import Size

PROMPTS = ["a cat", "two dogs", ""]
SQUARE = Size(16, 16)
SAMPLER = SamplerSettings(num_inference_steps=3, guidance_scale=7.0)


def load(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_text_to_image(str(model), device=torch.device("cpu"), dtype=dtype)


def images(model: Path) -> Tensor:
    return torch.cat(list(generate_images(load(model), PROMPTS, [1, 2, 3], SAMPLER)))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0.0, atol=1e-4)


@pytest.fixture
def copied(xl_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(xl_folder, tmp_path / "model"))


def test_a_folder_with_files_in_half_precision_alone_is_read(xl_folder: Path, copied: Path) -> None:
    for file in copied.rglob("*.safetensors"):
        save_file({name: t.half() for name, t in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))
        file.unlink()
    torch.testing.assert_close(images(copied), images(xl_folder), rtol=0.0, atol=2e-2)


def test_what_a_training_of_the_published_architecture_writes_loads_in_every_tool(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    from draft.diffusion.families.sdxl_single_file import PUBLISHED

    family = families()["sdxl"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(PUBLISHED["unet"])
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    modules = {
        f"{family.part}.{name}": Factors(torch.full((1, m.in_features), 0.5), torch.full((m.out_features, 1), 0.5))
        for name, m in unet.named_modules()
        if name.endswith(family.targets) and isinstance(m, torch.nn.Linear)
    }
    assert len(modules) == 2 * 4 * 70
    file = tmp_path / "adapter.safetensors"
    write_adapter(Adapter(modules, family.name), file)
    found = verify(file)
    assert found.base is not None and found.base.family == "sdxl" and found.modules == len(modules)
    assert found.right and {verdict.tool for verdict in found.verdicts if verdict.right} >= {"ComfyUI", "diffusers"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a checkpoint, and next to it what is asked for of a folder's configuration; offline."""
    monkeypatch.setattr(vocabulary, "_from_hub", list)

    def place(tensors: dict[str, Tensor], source: Path, *leave_out: str) -> Path:
        file = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        shutil.copytree(source, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", *leave_out))
        return file

    return place


def test_a_checkpoint_in_the_original_layout_draws_what_its_folder_draws(
    xl_folder: Path, layout: Any, place: Callable[..., Path]
) -> None:
    file = place(layout.original_xl(xl_folder), xl_folder)
    same(images(file), images(xl_folder))
    assert next(load(file, torch.bfloat16).network.parameters()).dtype == torch.bfloat16


def test_the_second_tokenizer_of_a_checkpoint_fills_up_as_the_published_one(
    xl_folder: Path, layout: Any, place: Callable[..., Path]
) -> None:
    file = place(layout.original_xl(xl_folder), xl_folder, "tokenizer_2")
    a, b = load(file).encode(PROMPTS, SQUARE).tensors, load(xl_folder).encode(PROMPTS, SQUARE).tensors
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_marker_tensors_of_a_checkpoint_mean_v_prediction_and_a_schedule_without_terminal_signal(
    xl_zero_snr: Path, xl_folder: Path, layout: Any, place: Callable[..., Path], tmp_path: Path
) -> None:
    tensors = layout.original_xl(xl_zero_snr)
    file = place({**tensors, "v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, xl_zero_snr, "scheduler")
    model = load(file)
    assert model.schedule(SQUARE, 3) == Schedule(load(xl_zero_snr).noise.alphas_cumprod, "v_prediction", 1)
    same(images(file), images(xl_zero_snr))
    save_file({**tensors, "v_pred": torch.tensor([])}, file)
    assert load(file).noise.prediction == "v_prediction" and load(file).noise.alphas_cumprod[-1] > 0.001
    save_file(tensors, file)
    assert load(file).noise.prediction == "epsilon"
    (tmp_path / "model" / "scheduler").mkdir()
    short = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    short.write_text(json.dumps({"prediction_type": "v_prediction"}), encoding="utf-8")
    told = load(file).noise
    assert told.prediction == "v_prediction", "the folder next to it wins"
    assert told.alphas_cumprod == load(xl_folder).noise.alphas_cumprod


def test_checkpoints_that_cannot_be_trained_are_refused(
    xl_folder: Path, layout: Any, place: Callable[..., Path]
) -> None:
    tensors = layout.original_xl(xl_folder)
    file = place(tensors, xl_folder)
    for left_out, missing in (
        ("first_stage_model.", "no autoencoder (VAE)"),
        ("conditioner.embedders.0.", "no first text encoder"),
    ):
        save_file({name: t for name, t in tensors.items() if not name.startswith(left_out)}, file)
        assert refusal(file).what == f"checkpoint {file} has {missing}"
    save_file({**tensors, "edm_mean": torch.zeros(4)}, file)
    assert "is trained in the EDM formulation (it has edm_mean)" in refusal(file).what
    attention = next(name for name in tensors if "middle_block.1.transformer_blocks.1." in name)
    save_file({name: t for name, t in tensors.items() if name != attention}, file)
    with pytest.raises(DraftError, match="is not like Stable Diffusion XL: ") as raised:
        _ = load(file).network
    assert "put its configuration" in raised.value.hint


def refusal(model: Path) -> DraftError:
    with pytest.raises(DraftError) as caught:
        load(model)
    return caught.value


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_a_folder_without_a_component_is_refused_by_its_name(copied: Path) -> None:
    shutil.rmtree(copied / "text_encoder_2")
    error = refusal(copied)
    assert error.what == f"model '{copied}' has no text_encoder_2" and "take the complete model" in error.hint


def test_a_folder_that_names_no_tokenizer_is_refused(copied: Path) -> None:
    edit(copied / "model_index.json", tokenizer=[None, None])
    assert refusal(copied).what == f"model '{copied}' has no tokenizer"


def test_weights_that_are_missing_are_one_clear_line(copied: Path) -> None:
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    error = refusal(copied)
    assert error.what.startswith(f"cannot load the weights of model '{copied}': ") and "safetensors" in error.hint


def test_a_component_of_another_type_is_refused(copied: Path) -> None:
    edit(copied / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    assert (
        refusal(copied).what == f"the vae of model '{copied}' must be of the class AutoencoderKL (got AutoencoderTiny)"
    )


@pytest.mark.parametrize(
    ("part", "changes", "what"),
    [
        ("unet", {"in_channels": 9}, "is an inpainting or editing model"),
        ("unet", {"time_cond_proj_dim": 256}, "is a distilled model that takes the guidance scale as an input"),
        ("unet", {"cross_attention_dim": 20}, "attends to text of width 20, its text encoders make 32"),
        ("unet", {"projection_class_embeddings_input_dim": 60}, "must take six numbers of size and crop"),
        ("scheduler", {"_class_name": "EDMEulerScheduler"}, "is trained in the EDM formulation"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type must be epsilon or v_prediction"),
    ],
)
def test_parts_that_do_not_fit_are_refused(copied: Path, part: str, changes: dict[str, Any], what: str) -> None:
    file = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(copied / part / file, **changes)
    assert what in refusal(copied).what


def test_a_size_that_the_autoencoder_cannot_take_is_refused(xl_folder: Path) -> None:
    with pytest.raises(DraftError, match=r"must be a multiple of 2 for this model \(got 16 x 17\)"):
        load(xl_folder).latent_shape(Size(16, 17))
