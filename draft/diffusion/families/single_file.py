"""Checkpoints of Stable Diffusion 1.x and 2.x in one file: what the file does not say is known here, or beside it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.models.clip import CLIPTokenizer

from draft.diffusion.families.architectures import PADDING, Version, configuration
from draft.diffusion.families.pretrained import precision
from draft.diffusion.families.vocabulary import clip_tokenizer
from draft.errors import DraftError

if TYPE_CHECKING:
    from draft.diffusion.conditioning import Conditioning
    from draft.diffusion.families import TextToImage
    from draft.diffusion.schedule import Schedule

_LIBRARIES = {
    "unet": ("diffusers", "UNet2DConditionModel", "config.json"),
    "vae": ("diffusers", "AutoencoderKL", "config.json"),
    "text_encoder": ("transformers", "CLIPTextModel", "config.json"),
    "scheduler": ("diffusers", "DDIMScheduler", "scheduler_config.json"),
}
_NAMES = {"unet": "UNet", "vae": "autoencoder", "text_encoder": "text encoder"}
_UNET_KEY = "model.diffusion_model."
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
    tokenizer: CLIPTokenizer
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
    known = configuration(version, channels=shapes[f"{_UNET_KEY}input_blocks.0.0.weight"][1])
    own = {part: read_json(beside / part / file) for part, (_, _, file) in _LIBRARIES.items()}
    configs = {part: dict(own[part] or known[part]) for part in known}
    tokenizer = clip_tokenizer(path, beside / "tokenizer", padding=PADDING[version])
    read = partial(_read, path, version, {part: dict(values) for part, values in configs.items()}, tokenizer, shapes)
    return SingleFile(configs, tokenizer, read, own["scheduler"] is not None)


def _read(
    path: Path,
    version: Version,
    configs: Mapping[str, Mapping[str, Any]],
    tokenizer: CLIPTokenizer,
    shapes: Mapping[str, list[int]],
    part: str,
    dtype: torch.dtype,
) -> nn.Module:
    """One network by diffusers' loader of the whole file, which is mapped into memory: the others cost nothing."""
    others = dict.fromkeys({"unet", "vae", "text_encoder"} - {part}, None)
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it warns that no module is kept in float32
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), configs)
        try:
            pipeline: Any = StableDiffusionPipeline.from_single_file(
                str(path),
                config=folder,
                tokenizer=tokenizer,
                safety_checker=None,
                local_files_only=True,
                **others,
                **precision(dtype, StableDiffusionPipeline),
            )
        except (OSError, ValueError, KeyError, SafetensorError, SingleFileComponentError) as error:
            raise _unlike(path, version, (str(error).strip().splitlines() or [type(error).__name__])[0]) from error
        except NotImplementedError as error:  # PyTorch's own, for a tensor on `meta`: no data came for it
            raise _unlike(path, version, f"it lacks tensors of its {_NAMES[part]}") from error
        finally:
            diffusers_logging.set_verbosity(verbosity)
    network: nn.Module = getattr(pipeline, part)
    missing = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if missing:
        raise _unlike(path, version, f"it lacks tensors of its {_NAMES[part]}, such as {missing[0]}")
    if part == "unet":
        held, used = sum(name.startswith(_UNET_KEY) for name in shapes), len(network.state_dict())
        if held != used:
            raise _unlike(path, version, f"its UNet has {held} tensors instead of {used}")
    vars(network).pop("hf_device_map", None)  # says CPU, which peft would believe after the model has moved
    return network


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
    if f"{_UNET_KEY}input_blocks.0.0.weight" not in shapes:
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
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DraftError(f"{file} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise DraftError(f"{file} must hold a JSON object (got {type(found).__name__})")
    return found


def _write(folder: Path, configuration: Mapping[str, Mapping[str, Any]]) -> None:
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    for part, values in configuration.items():
        library, name, file = _LIBRARIES[part]
        index[part] = [library, values.get("_class_name", name)]
        (folder / part).mkdir()
        (folder / part / file).write_text(json.dumps(values), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _unlike(path: Path, version: Version, why: str) -> DraftError:
    return DraftError(
        f"checkpoint {path} is not like Stable Diffusion {version}.x: {why}",
        hint=f"if it has other numbers, put its configuration, as diffusers writes it, into {path.with_suffix('')}",
    )
