"""Single-file checkpoints in the original layout, as A1111 and ComfyUI have them, loaded without a network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draft.diffusion.generate import generate_images
from draft.diffusion.models import TextToImage, load_text_to_image, single_file
from draft.diffusion.models.architectures import configuration
from draft.diffusion.models.single_file import settle_prediction
from draft.diffusion.sampling import Schedule
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import DraftError
from draft.progress import Silent
from draft.registry.reward import Reward, Term
from draft.training.settings import TrainSettings
from draft.training.train import train
from draft.types import Prompts

CPU = torch.device("cpu")
PARTS = ("unet", "vae", "text_encoder", "scheduler")

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.": "token_embedding.",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


class Bright(Reward):
    """How bright an image is."""

    name = "bright"

    def load(self, device: torch.device) -> Callable[..., Tensor]:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


def original_unet(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The UNet under the names of CompVis' code, where a block's resnets, attentions and resampling are one list."""
    crossed = {name.split(".")[1] for name in tensors if re.match(r"up_blocks\.\d+\.attentions", name)}

    def rename(name: str) -> str:
        for new, old in UNET.items():
            if name.startswith(f"{new}."):
                return old + name.removeprefix(new)
        side, *rest = name.split(".")
        if side == "mid_block":
            kind, index, inner = rest[0], int(rest[1]), ".".join(rest[2:])
            place = f"middle_block.{1 if kind == 'attentions' else 2 * index}"
        else:
            block, kind, index, inner = rest[0], rest[1], int(rest[2]), ".".join(rest[3:])
            first = int(block) * (layers + 1) + (1 if side == "down_blocks" else 0)
            stem = "input_blocks" if side == "down_blocks" else "output_blocks"
            if kind == "downsamplers":
                return f"{stem}.{first + layers}.0.op{inner.removeprefix('conv')}"
            if kind == "upsamplers":
                return f"{stem}.{first + layers}.{2 if block in crossed else 1}.{inner}"
            place = f"{stem}.{first + index}.{1 if kind == 'attentions' else 0}"
        if kind == "resnets":
            layer, _, leaf = inner.partition(".")
            inner = f"{RESNET[layer]}.{leaf}"
        return f"{place}.{inner}"

    return {f"model.diffusion_model.{rename(name)}": tensor for name, tensor in tensors.items()}


def original_vae(tensors: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The autoencoder under CompVis' names: attention as 1x1 convolutions, the decoder's blocks counted backwards."""
    found = {}
    for name, tensor in tensors.items():
        old = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        old = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", old)
        old = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", old)
        old = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", old)
        old = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", old)
        old = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", old)
        if "mid_block.attentions.0." in old:
            head, inner = old.split("mid_block.attentions.0.")
            layer, leaf = inner.rsplit(".", 1)
            old = f"{head}mid.attn_1.{ATTENTION[layer]}.{leaf}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[f"first_stage_model.{old}"] = tensor
    return found


def original_text(tensors: dict[str, Tensor], version: str) -> dict[str, Tensor]:
    """The text encoder: CLIP under transformers' own names in version 1, OpenCLIP's in version 2."""
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    if version == "1":
        count = len(tensors["embeddings.position_embedding.weight"])
        ids = {"embeddings.position_ids": torch.arange(count)[None]}
        return {f"cond_stage_model.transformer.text_model.{name}": t for name, t in {**tensors, **ids}.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for new, old in OPENCLIP.items():
            name = name.replace(new, old)
        if ".attn.q_proj." in name:
            head, leaf = name.split("q_proj.")
            source = name.replace("attn", "self_attn").replace("transformer.resblocks", "encoder.layers")
            three = [tensors[source.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            name, tensor = f"{head}in_proj_{leaf}", torch.cat(three)
        elif re.search(r"\.attn\.[kv]_proj\.", name):
            continue
        found[name] = tensor
    width = len(tensors["final_layer_norm.weight"])
    found |= {"text_projection": torch.eye(width), "logit_scale": torch.tensor(4.6)}
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in found.items()}


def original(folder: Path, version: str) -> dict[str, Tensor]:
    """A diffusers folder as the tensors of a single file, with the buffers that published files also hold."""
    config = {part: json.loads((folder / part / "config.json").read_text()) for part in PARTS[:3]}
    unet, vae = (load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae"))
    return {
        **original_unet(unet, config["unet"]["layers_per_block"]),
        **original_vae(vae, len(config["vae"]["block_out_channels"])),
        **original_text(load_file(folder / "text_encoder" / "model.safetensors"), version),
        "betas": torch.linspace(0, 1, 3),
        "model_ema.decay": torch.tensor(0.999),
    }


@pytest.fixture(scope="module")
def whole(tiny_folders: dict[str, Path]) -> dict[str, Tensor]:
    return original(tiny_folders["epsilon"], "1")


@pytest.fixture
def place(tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a checkpoint, and beside it the parts of the folder's configuration that are asked for; offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(single_file, "_from_hub", list)

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


def refusal(model: Path) -> DraftError:
    with pytest.raises(DraftError) as caught:
        load(model)
    return caught.value


def images(model: TextToImage) -> Tensor:
    sampler = SamplerSettings(num_inference_steps=3, guidance_scale=3.0)
    return torch.cat(list(generate_images(model, ["a fox", "b"], [1, 2], sampler)))


def test_a_checkpoint_of_version_1_draws_what_its_folder_draws(
    place: Callable[..., Path], whole: dict[str, Tensor], tiny_folders: dict[str, Path]
) -> None:
    model = load(place(whole, *PARTS, "tokenizer"))
    assert torch.is_grad_enabled()
    assert model.default_resolution == 16 and model.schedule.prediction == "epsilon"
    assert not hasattr(model.unet, "hf_device_map") and not hasattr(model.vae, "hf_device_map")
    wanted = images(load(tiny_folders["epsilon"]))
    assert wanted.std() > 0.01
    torch.testing.assert_close(images(model), wanted, rtol=0, atol=1e-6)


def test_a_checkpoint_of_version_2_draws_what_its_folder_draws(
    place: Callable[..., Path], tiny_module: Any, tmp_path: Path
) -> None:
    folder = tiny_module.save_tiny_model(
        tmp_path / "folder",
        prediction="v_prediction",
        unet={"use_linear_projection": True, "attention_head_dim": (2, 4)},
    )
    model = load(place(original(folder, "2"), *PARTS, "tokenizer", folder=folder))
    assert model.schedule.prediction == "v_prediction"
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
    assert {p.dtype for p in model.unet.parameters()} == {torch.float64}
    assert images(model).isfinite().all()


def test_two_vocabulary_files_beside_the_checkpoint_are_a_tokenizer(
    place: Callable[..., Path], whole: dict[str, Tensor], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    file = place(whole, *PARTS)
    (tmp_path / "model" / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tiny_folders["epsilon"] / name, tmp_path / "model" / "tokenizer")
    tokenizer: Any = single_file._tokenizer(file, tmp_path / "model" / "tokenizer", "1")
    assert tokenizer.model_max_length == 77 and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer("ab").input_ids == load(tiny_folders["epsilon"]).tokenizer("ab").input_ids  # type: ignore[attr-defined]
    assert single_file._tokenizer(file, tmp_path / "model" / "tokenizer", "2").pad_token == "!"


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

    monkeypatch.setattr(single_file, "cached_file", cached_file)
    hub = "openai/clip-vit-large-patch14"
    assert single_file._from_hub() == []
    assert [local for _, local in asked] == [True] * 4 + [False] and asked[-1][0] == hub
    there.add((hub, False))
    assert single_file._from_hub() == [f"{hub}//vocab.json", f"{hub}//merges.txt"]
    there.add(("CompVis/stable-diffusion-v1-4", True))
    assert single_file._from_hub()[0] == "CompVis/stable-diffusion-v1-4/tokenizer/vocab.json"


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
        ("first_stage_model.decoder.mid.block_2.conv1.bias", "lacks tensors of its UNet or its autoencoder"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            "lacks tensors of its text encoder, such as .*final_layer_norm.bias",
        ),
        ("model.diffusion_model.middle_block.0.emb_layers.1.bias", "lacks tensors of its UNet or its autoencoder"),
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
def test_the_embedded_numbers_are_those_of_the_published_models(version: Any, unet: int, text: int) -> None:
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
    names = original_unet(dict(networks[0].state_dict()), 2)
    assert len(names) == 686 and len(original_vae(dict(networks[1].state_dict()), 4)) == 248
    width = {"1": 768, "2": 1024}[version]
    assert names["model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"].shape == (320, width)
    assert names["model.diffusion_model.output_blocks.11.0.skip_connection.weight"].shape == (320, 640, 1, 1)
    assert names["model.diffusion_model.output_blocks.8.2.conv.weight"].shape == (640, 640, 3, 3)
    assert names["model.diffusion_model.input_blocks.9.0.op.weight"].shape == (1280, 1280, 3, 3)


class Guess:
    """The best guess of e or v for normal latents of variance q^2."""

    def __init__(self, prediction: str, variance: float, width: int) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.schedule = Schedule(tuple((1 - betas).cumprod(0).tolist()))
        signal = self.schedule.alphas_cumprod[-1]
        alpha, sigma = signal**0.5, (1 - signal) ** 0.5
        self.factor = sigma if prediction == "epsilon" else alpha * sigma * (1 - variance)
        self.factor /= signal * variance + 1 - signal
        self.unet = SimpleNamespace(config=SimpleNamespace(cross_attention_dim=width, sample_size=64))
        self.unet.register_to_config = lambda sample_size: setattr(self.unet.config, "sample_size", sample_size)
        self.device = CPU

    def latent_shape(self, resolution: int | None) -> tuple[int, ...]:
        return 4, 8, 8

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, 1)

    def denoise(self, latents: Tensor, time: Tensor, embeddings: Tensor) -> Tensor:
        assert int(time) == 999
        return self.factor * latents


@pytest.mark.parametrize("variance", [0.01, 1.0, 9.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_network_itself_says_what_it_predicts(prediction: str, variance: float) -> None:
    model: Any = Guess(prediction, variance, 1024)
    assert settle_prediction(model).prediction == prediction
    assert model.unet.config.sample_size == (64 if prediction == "epsilon" else 96)
    other: Any = Guess(prediction, variance, 768)
    assert settle_prediction(other).prediction == prediction and other.unet.config.sample_size == 64


def test_a_trained_network_says_what_it_predicts() -> None:
    from draft.registry.plugins import model_path

    model: Any = load(Path(model_path("emoji")))
    assert model.schedule.prediction == "v_prediction"
    assert settle_prediction(model).prediction == "v_prediction"
    signal = model.schedule.alphas_cumprod[-1]
    predict_v = model.denoise

    def predict_noise(latents: Tensor, time: Tensor, embeddings: Tensor) -> Tensor:
        return signal**0.5 * predict_v(latents, time, embeddings) + (1 - signal) ** 0.5 * latents

    model.denoise = predict_noise
    assert settle_prediction(model).prediction == "epsilon"


def test_a_file_whose_prediction_nobody_says_is_asked(
    place: Callable[..., Path], whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from draft.diffusion.models import sd

    monkeypatch.setattr(sd, "settle_prediction", lambda model: replace(model.schedule, prediction="v_prediction"))
    model = load(place(whole, *PARTS[:3], "tokenizer"))
    assert model.schedule.prediction == "v_prediction"
    # Scaled-linear from 0.00085 to 0.012, as both versions were trained.
    assert model.schedule.alphas_cumprod[-1] == pytest.approx(0.00466, rel=1e-2)
