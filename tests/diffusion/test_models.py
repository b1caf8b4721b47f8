"""Loading Stable Diffusion from whatever users have, and refusing the rest by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from draft.diffusion.families import load_text_to_image
from draft.errors import DraftError
from draft.types import Size

CPU = torch.device("cpu")


def _refusal(model: Path | str) -> DraftError:
    with pytest.raises(DraftError) as caught:
        load_text_to_image(str(model), device=CPU, dtype=torch.float32)
    return caught.value


def test_a_model_is_frozen_and_knows_its_shapes(load) -> None:
    model = load(dtype=torch.float32)
    assert model.family.name == "sd" and model.default_size == Size(16, 16)
    assert model.latent_shape(model.default_size) == (4, 8, 8) and model.latent_shape(Size(24, 32)) == (4, 12, 16)
    assert not any(
        p.requires_grad
        for m in (model.network, model.components["vae"], *model.encoders.values())
        for p in m.parameters()
    )
    assert model.encode(["a", "b"], model.default_size).tensors["text"].shape == (2, 16, 16)
    assert torch.is_grad_enabled()
    with pytest.raises(DraftError, match=r"multiple of 2 for this model \(got 17\)"):
        model.latent_shape(Size(17, 17))


def test_decoding_keeps_the_gradient_and_the_range(load) -> None:
    model = load(dtype=torch.float64)
    latents = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    images = model.decode(latents)
    assert images.shape == (2, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    images.sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(load) -> None:
    model = load(dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"prompt cut to 16 tokens \(got \d+\): 'abcdefghijklmnopqrstuvwxyz'"):
        model.encode(["abcdefghijklmnopqrstuvwxyz"], model.default_size)


def test_the_text_encoder_can_be_dropped(load) -> None:
    model = load(dtype=torch.float32)
    model.drop_encoders()
    with pytest.raises(RuntimeError, match="dropped"):
        model.encode(["a"], model.default_size)


def test_missing_weights_are_one_clear_line(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folders["epsilon"], folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    error = _refusal(folder)
    assert error.what.startswith(f"cannot load the weights of model '{folder}': ")
    assert "safetensors" in error.hint
    damaged = folder / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(tiny_folders["epsilon"] / "unet" / "diffusion_pytorch_model.safetensors", folder / "unet")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert _refusal(folder).what.startswith(f"cannot load the weights of model '{folder}': ")


def test_other_families_are_refused_by_name(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "flux"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert _refusal(folder).what == f"model '{folder}' is a FluxPipeline, a family Draft cannot train yet"
    single = tmp_path / "flux.safetensors"
    save_file({name: torch.zeros(1) for name in ("double_blocks.0.x", "single_blocks.0.x")}, single)
    assert _refusal(single).what == f"checkpoint {single} is FLUX.1, a family Draft cannot train yet"
    assert _refusal(single).hint.startswith("Stable Diffusion 1.x and 2.x (StableDiffusionPipeline)")
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, other)
    assert _refusal(other).what == f"checkpoint {other} is of no family of models that Draft knows"


def test_what_is_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no model_index.json" in _refusal(tmp_path).what
    assert "not a .safetensors file" in _refusal(tmp_path / "model.ckpt").what
    assert "no such checkpoint" in _refusal(tmp_path / "model.safetensors").what
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    assert "is damaged" in _refusal(tmp_path / "bad.safetensors").what
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = _refusal("nobody/nothing")
    assert error.what.startswith("cannot load model 'nobody/nothing'") and "HF_HUB_OFFLINE" in error.hint
