"""Single-file checkpoints in the original layout, as A1111 and ComfyUI have them, loaded without a network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from draft.diffusion.families import TextToImage, load_text_to_image, vocabulary
from draft.diffusion.families.architectures import PADDING, configuration
from draft.diffusion.generate import generate_images
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import DraftError
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.training.settings import TrainSettings
from draft.training.train import train
from draft.types import Prompts, Size

CPU = torch.device("cpu")
PARTS = ("unet", "vae", "text_encoder", "scheduler")


class Bright(Reward):
    """How bright an image is."""

    name = "bright"

    def load(self, device: torch.device) -> Callable[..., Tensor]:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def whole(tiny_folders: dict[str, Path], layout: Any) -> dict[str, Tensor]:
    return layout.original(tiny_folders["epsilon"], "1")


@pytest.fixture
def place(tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a checkpoint, and beside it the parts of the folder's configuration that are asked for; offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(vocabulary, "_from_hub", list)

    def place(tensors: dict[str, Tensor], *parts: str, folder: Path | None = None) -> Path:
        file = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        for part in parts:
            source = (folder or tiny_folders["epsilon"]) / part
            keep = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(source, tmp_path / "model" / part, ignore=keep)
        return file

    return place


def load(model: Path, dtype: torch.dtype = torch.float32) -> TextToImage:
    return load_text_to_image(str(model), device=CPU, dtype=dtype)


def read_all(model: Any) -> None:
    """What loading leaves to the first use."""
    for name in ("text_encoder", "unet", "vae"):
        assert model.components[name]


def refusal(model: Path) -> DraftError:
    with pytest.raises(DraftError) as caught:
        read_all(load(model))
    return caught.value


def images(model: TextToImage) -> Tensor:
    sampler = SamplerSettings(num_inference_steps=3, guidance_scale=3.0)
    return torch.cat(list(generate_images(model, ["a fox", "b"], [1, 2], sampler)))


def test_a_checkpoint_of_version_1_draws_what_its_folder_draws(
    place: Callable[..., Path], whole: dict[str, Tensor], tiny_folders: dict[str, Path]
) -> None:
    model = load(place(whole, *PARTS, "tokenizer"))
    assert torch.is_grad_enabled()
    assert model.default_size == Size(16, 16) and model.noise.prediction == "epsilon"
    assert not hasattr(model.network, "hf_device_map") and not hasattr(model.components["vae"], "hf_device_map")
    wanted = images(load(tiny_folders["epsilon"]))
    assert wanted.std() > 0.01
    torch.testing.assert_close(images(model), wanted, rtol=0, atol=1e-6)


def test_a_checkpoint_of_version_2_draws_what_its_folder_draws(
    place: Callable[..., Path], tiny_module: Any, layout: Any, tmp_path: Path
) -> None:
    folder = tiny_module.save_tiny_model(
        tmp_path / "folder",
        prediction="v_prediction",
        unet={"use_linear_projection": True, "attention_head_dim": (2, 4)},
    )
    model = load(place(layout.original(folder, "2"), *PARTS, "tokenizer", folder=folder))
    assert model.noise.prediction == "v_prediction"
    torch.testing.assert_close(images(model), images(load(folder)), rtol=0, atol=1e-6)


def test_training_on_a_checkpoint_gives_the_bytes_that_its_folder_gives(
    place: Callable[..., Path], whole: dict[str, Tensor], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = TrainSettings(
        sampler=SamplerSettings(num_inference_steps=2, guidance_scale=2.0),
        lora=LoraSettings(rank=2),
        max_steps=2,
        batch_size=1,
        device="cpu",
    )
    found = []
    for number, model in enumerate((place(whole, *PARTS, "tokenizer"), tiny_folders["epsilon"])):
        folder = tmp_path / str(number)
        train(
            settings,
            model=str(model),
            prompts=Prompts(["a cat"]),
            terms=[Term("bright", Bright())],
            seed=4,
            folder=folder,
            progress=Silent(),
        )
        found.append((folder / "adapter.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_checkpoint_in_half_precision_loads_in_the_precision_asked_for(
    place: Callable[..., Path], whole: dict[str, Tensor]
) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in whole.items()}
    model = load(place(half, *PARTS, "tokenizer"), torch.float64)
    assert {p.dtype for p in model.network.parameters()} == {torch.float64}
    assert images(model).isfinite().all()


def test_two_vocabulary_files_beside_the_checkpoint_are_a_tokenizer(
    place: Callable[..., Path], whole: dict[str, Tensor], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    file = place(whole, *PARTS)
    (tmp_path / "model" / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tiny_folders["epsilon"] / name, tmp_path / "model" / "tokenizer")
    tokenizer: Any = vocabulary.clip_tokenizer(file, tmp_path / "model" / "tokenizer", padding=PADDING["1"])
    assert tokenizer.model_max_length == 77 and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer("ab").input_ids == load(tiny_folders["epsilon"]).tokenizer("ab").input_ids  # type: ignore[attr-defined]
    assert vocabulary.clip_tokenizer(file, tmp_path / "model" / "tokenizer", padding="!").pad_token == "!"


def test_without_a_vocabulary_the_refusal_says_how_to_get_it(
    place: Callable[..., Path], whole: dict[str, Tensor], tmp_path: Path
) -> None:
    file = place(whole, *PARTS)
    error = refusal(file)
    assert error.what.startswith(f"checkpoint {file} comes without CLIP's vocabulary")
    assert "hf download openai/clip-vit-large-patch14 vocab.json merges.txt" in error.hint
    assert str(tmp_path / "model" / "tokenizer") in error.hint
    # A configuration alone is no vocabulary.
    (tmp_path / "model" / "tokenizer").mkdir()
    (tmp_path / "model" / "tokenizer" / "tokenizer_config.json").write_text("{}")
    assert refusal(file).what == error.what


def test_the_cache_is_asked_before_the_hub_and_the_hub_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    there: set[tuple[str, bool]] = set()

    def cached_file(repository: str, name: str, *, subfolder: str, local_files_only: bool) -> str:
        asked.append((repository, local_files_only))
        if (repository, local_files_only) not in there:
            raise OSError("not there")
        return f"{repository}/{subfolder}/{name}"

    monkeypatch.setattr(vocabulary, "cached_file", cached_file)
    hub = "openai/clip-vit-large-patch14"
    assert vocabulary._from_hub() == []
    assert [local for _, local in asked] == [True] * 4 + [False] and asked[-1][0] == hub
    there.add((hub, False))
    assert vocabulary._from_hub() == [f"{hub}//vocab.json", f"{hub}//merges.txt"]
    there.add(("CompVis/stable-diffusion-v1-4", True))
    assert vocabulary._from_hub()[0] == "CompVis/stable-diffusion-v1-4/tokenizer/vocab.json"


def test_other_numbers_than_the_published_ones_are_refused_unless_they_stand_beside_the_file(
    place: Callable[..., Path], whole: dict[str, Tensor], tmp_path: Path
) -> None:
    error = refusal(place(whole, "tokenizer"))
    assert "is not like Stable Diffusion 1.x: " in error.what and "expected shape" in error.what
    assert error.hint.endswith(f"into {tmp_path / 'model'}")
    (tmp_path / "model" / "unet").mkdir()
    (tmp_path / "model" / "unet" / "config.json").write_text("[]")
    assert refusal(tmp_path / "model.safetensors").what.endswith("must hold a JSON object (got list)")


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("cond_stage_model.", "has no text encoder"),
        ("first_stage_model.", r"has no autoencoder \(VAE\)"),
        ("first_stage_model.decoder.mid.block_2.conv1.bias", "lacks tensors of its autoencoder"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            "lacks tensors of its text encoder, such as .*final_layer_norm.bias",
        ),
        ("model.diffusion_model.middle_block.0.emb_layers.1.bias", "lacks tensors of its UNet"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_by_what_it_lacks(
    place: Callable[..., Path], whole: dict[str, Tensor], without: str, message: str
) -> None:
    left = {name: tensor for name, tensor in whole.items() if not name.startswith(without)}
    assert re.search(message, refusal(place(left, *PARTS, "tokenizer")).what)


def test_a_unet_with_more_than_the_architecture_uses_is_refused(
    place: Callable[..., Path], whole: dict[str, Tensor]
) -> None:
    more = {**whole, "model.diffusion_model.label_emb.0.0.weight": torch.zeros(2, 2)}
    assert "its UNet has 209 tensors instead of 208" in refusal(place(more, *PARTS, "tokenizer")).what


@pytest.mark.parametrize(
    ("version", "unet", "text"), [("1", 859_520_964, 123_060_480), ("2", 865_910_724, 340_387_840)]
)
def test_the_embedded_numbers_are_those_of_the_published_models(
    version: Any, unet: int, text: int, layout: Any
) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    numbers = configuration(version, channels=4)
    numbers["text_encoder"].pop("model_type")
    with torch.device("meta"):
        networks = [
            UNet2DConditionModel.from_config(numbers["unet"]),
            AutoencoderKL.from_config(numbers["vae"]),
            CLIPTextModel(CLIPTextConfig(**numbers["text_encoder"])),
        ]
    assert [sum(p.numel() for p in n.parameters()) for n in networks] == [unet, 83_653_863, text]
    names = layout.original_unet(dict(networks[0].state_dict()), 2)
    assert len(names) == 686 and len(layout.original_vae(dict(networks[1].state_dict()), 4)) == 248
    width = {"1": 768, "2": 1024}[version]
    assert names["model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"].shape == (320, width)
    assert names["model.diffusion_model.output_blocks.11.0.skip_connection.weight"].shape == (320, 640, 1, 1)
    assert names["model.diffusion_model.output_blocks.8.2.conv.weight"].shape == (640, 640, 3, 3)
    assert names["model.diffusion_model.input_blocks.9.0.op.weight"].shape == (1280, 1280, 3, 3)


def test_a_file_whose_prediction_nobody_says_is_asked(
    place: Callable[..., Path], whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from draft.diffusion.families import sd

    monkeypatch.setattr(
        sd, "settle_prediction", lambda model, schedule, blank: replace(schedule, prediction="v_prediction")
    )
    model = load(place(whole, *PARTS[:3], "tokenizer"))
    assert model.noise.prediction == "v_prediction"
    # Scaled-linear from 0.00085 to 0.012, as both versions were trained.
    assert model.noise.alphas_cumprod[-1] == pytest.approx(0.00466, rel=1e-2)
