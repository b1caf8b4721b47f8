"""Checkpoints of Stable Diffusion 1.x and 2.x in one file: what the file does not say is known here, or beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.models.clip import CLIPTextModel

from draft.diffusion.families.architectures import PADDING, Version, configuration
from draft.diffusion.families.single_file_part import UNET, read_part
from draft.diffusion.families.vocabulary import clip_tokenizer
from draft.errors import DraftError

if TYPE_CHECKING:
    from draft.diffusion.conditioning import Conditioning
    from draft.diffusion.families import TextToImage
    from draft.diffusion.schedule import Schedule

NETWORKS: Mapping[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
"""Component to class, of the networks."""

_FILES = dict.fromkeys(NETWORKS, "config.json") | {"scheduler": "scheduler_config.json"}
_NAMES = {"unet": "UNet", "vae": "autoencoder", "text_encoder": "text encoder"}
_TEXT_KEYS: dict[Version, str] = {"1": "cond_stage_model.transformer.text_model.", "2": "cond_stage_model.model."}


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint whose networks have not been read.

    Args:
        configs: The configurations of unet, vae, text_encoder and scheduler.
        tokenizer: The tokenizer.
        read: Reads a network in a precision, into the CPU's memory.
        settled: Whether the folder beside the file says what the network predicts.
    """

    configs: dict[str, dict[str, Any]]
    tokenizer: Any
    read: Callable[[str, torch.dtype], nn.Module]
    settled: bool


def open_single_file(path: Path) -> SingleFile:
    """Open a checkpoint in the original layout, as A1111 and ComfyUI use it; only the vocabulary may need the hub.

    What stands in the folder of the file's name beside it (`x/` beside `x.safetensors`), laid out as diffusers does it
    (`unet/config.json`, `scheduler/scheduler_config.json`, `tokenizer/vocab.json`, ...), wins over what is known here.

    Args:
        path: The `.safetensors` file.

    Returns:
        The checkpoint.

    Raises:
        DraftError: It is no such checkpoint, is incomplete, or the vocabulary cannot be found.
    """
    shapes = tensor_shapes(path)
    version = _version(path, shapes)
    beside = path.with_suffix("")
    published = configuration(version, channels=shapes[f"{UNET}input_blocks.0.0.weight"][1])
    beside_configs = {part: read_json(beside / part / file) for part, file in _FILES.items()}
    configs = {part: dict(beside_configs[part] or published[part]) for part in published}
    tokenizer = clip_tokenizer(path, beside / "tokenizer", padding=PADDING[version])
    read = partial(_read, path, version, {part: dict(values) for part, values in configs.items()}, tokenizer, shapes)
    return SingleFile(configs, tokenizer, read, beside_configs["scheduler"] is not None)


def _read(
    path: Path,
    version: Version,
    configs: Mapping[str, Mapping[str, Any]],
    tokenizer: Any,
    shapes: Mapping[str, list[int]],
    part: str,
    dtype: torch.dtype,
) -> nn.Module:
    return read_part(
        path,
        part,
        dtype,
        pipeline=StableDiffusionPipeline,
        networks=NETWORKS,
        configs=configs,
        shapes=shapes,
        title=_NAMES[part],
        unlike=partial(_unlike, path, version),
        index={"requires_safety_checker": False},
        tokenizer=tokenizer,
        safety_checker=None,
    )


def settle_prediction(model: TextToImage, schedule: Schedule, blank: Conditioning) -> Schedule:
    """Find out from the network itself whether it predicts the noise e or v = alpha e - sigma x0.

    At the last training time x = alpha x0 + sigma e is noise nearly alone (alpha = 0.07). For x0 of variance q^2 the
    best guesses are E[e|x] = sigma x / (alpha^2 q^2 + sigma^2), nearly x itself, and E[v|x] = alpha sigma (1 - q^2) x
    / (alpha^2 q^2 + sigma^2), nearly nothing of it; the slope of the output over x tells them apart.

    Args:
        model: The model; its text encoder is not needed.
        schedule: Its schedule, the prediction not trusted yet.
        blank: The conditioning of the empty prompt, of length 1.

    Returns:
        The schedule with the prediction.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *model.latent_shape(model.default_size), generator=generator).to(model.device)
    time = torch.tensor(len(schedule.alphas_cumprod) - 1, device=model.device)
    with torch.no_grad():
        out = model.denoise(noise, time, blank)
    slope = float((out * noise).sum() / noise.square().sum())
    return replace(schedule, prediction="epsilon" if slope >= 0.5 else "v_prediction")


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The names and shapes of the tensors in a checkpoint.

    Args:
        path: The `.safetensors` file.

    Returns:
        Name to shape.

    Raises:
        DraftError: It cannot be read or is damaged.
    """
    try:
        with safe_open(str(path), "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DraftError(f"checkpoint {path} cannot be read or is damaged: {error}") from error


def _version(path: Path, shapes: Mapping[str, list[int]]) -> Version:
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        raise DraftError(f"checkpoint {path} is no Stable Diffusion 1.x or 2.x checkpoint")
    versions: list[Version] = [v for v, key in _TEXT_KEYS.items() if any(name.startswith(key) for name in shapes)]
    lacks = [] if versions else ["text encoder"]
    lacks += [] if any(name.startswith(("first_stage_model.", "vae.")) for name in shapes) else ["autoencoder (VAE)"]
    if lacks:
        raise DraftError(
            f"checkpoint {path} has no {' and no '.join(lacks)}",
            hint="take the full checkpoint, with everything baked in",
        )
    return versions[0]


def read_json(file: Path) -> dict[str, Any] | None:
    """A file beside a checkpoint, as JSON.

    Args:
        file: The file.

    Returns:
        Its object; None where there is no such file.

    Raises:
        DraftError: It is no JSON object.
    """
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DraftError(f"{file} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise DraftError(f"{file} must hold a JSON object (got {type(value).__name__})")
    return value


def _unlike(path: Path, version: Version, why: str) -> DraftError:
    return DraftError(
        f"checkpoint {path} is not like Stable Diffusion {version}.x: {why}",
        hint=f"if it has other numbers, put its configuration, as diffusers writes it, into {path.with_suffix('')}",
    )
