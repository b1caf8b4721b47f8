"""An adapter file as diffusers, or for peft's own names peft, reads it: names, alphas, LoRA layers."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import lora_pipeline
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils.peft_utils import _create_lora_config
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from draft.diffusion.families import families
from draft.errors import StageError
from draft.files import WEIGHTS, weights_file


class _Skeleton(nn.Module, PeftAdapterMixin):
    """Layers of the right names and shapes without weights: what diffusers needs of a model to load an adapter."""


def read_as_diffusers(path: Path, family: str) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Read an adapter file by the pipeline class of its family, down to the LoRA layers that peft builds.

    Args:
        path: A `.safetensors` file, or a peft folder.
        family: The name of its family.

    Returns:
        By module, beginning with its part, A, B and the scale at which diffusers applies their product.

    Raises:
        StageError: diffusers cannot read the file, or has no reader for this family.
    """
    row = next((row for row in families().values() if row.name == family), None)
    if row is None or not row.files.reader:
        known = ", ".join(row.name for row in families().values() if row.files.reader)
        raise StageError(f"no reader for the family {family!r}", where=str(path), hint=f"known: {known}")
    loader, main = row.files.reader, row.part
    file = weights_file(path)
    folder, name = file.parent, file.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if plain := _peft_tensors(folder / name):
                return _layers(_peft_model(plain, folder / name), main)
            tensors, alphas, metadata = _converted(getattr(lora_pipeline, loader), folder, name)
            factors = _denoiser(tensors, alphas, metadata, main)
            for part in sorted({key.partition(".")[0] for key in tensors} - {main}):
                factors |= _text_encoder(tensors, alphas, metadata, part)
        except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            # Whatever their converters stumble over: to the user it is one thing, diffusers cannot load the file.
            raise StageError(
                f"diffusers cannot read the file ({type(error).__name__}: {error})", where=str(path)
            ) from error
    return factors


def _peft_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file with peft's own names, which peft reads and diffusers does not; empty for others."""
    prefix = "base_model.model."
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        if not all(name.startswith(prefix) for name in names):
            return {}
        return {name.removeprefix(prefix): opened.get_tensor(name) for name in names}


def _peft_model(named: Mapping[str, Tensor], file: Path) -> _Skeleton:
    config = file.parent / "adapter_config.json"
    if file.name == WEIGHTS and config.is_file():
        options = json.loads(config.read_text(encoding="utf-8"))
    else:
        with safe_open(file, framework="pt") as opened:
            options = json.loads((opened.metadata() or {})["lora_adapter_metadata"])
    model = _skeleton(named)
    inject_adapter_in_model(LoraConfig(**options), model)
    set_peft_model_state_dict(model, dict(named))
    return model


def _converted(loader: Any, folder: Path, name: str) -> tuple[dict[str, Tensor], Any, Any]:
    options: dict[str, Any] = {"weight_name": name, "local_files_only": True, "return_lora_metadata": True}
    if "return_alphas" in inspect.signature(loader.lora_state_dict).parameters:
        options["return_alphas"] = True
    tensors, *alphas, metadata = loader.lora_state_dict(str(folder), **options)
    return tensors, alphas[0] if alphas else None, metadata


def _denoiser(tensors: Mapping[str, Tensor], alphas: Any, metadata: Any, part: str) -> dict[str, Any]:
    weights = {key: tensor for key, tensor in tensors.items() if key.startswith(f"{part}.")}
    if not weights:
        return {}
    named = {key.removeprefix(f"{part}."): tensor for key, tensor in weights.items()}
    if "lora_A" not in next(iter(named)):
        named = convert_unet_state_dict_to_peft(named)
    model = _skeleton(named)
    model.load_lora_adapter(weights, prefix=part, network_alphas=alphas, metadata=metadata, low_cpu_mem_usage=True)
    return _layers(model, part)


def _text_encoder(tensors: Mapping[str, Tensor], alphas: Any, metadata: Any, part: str) -> dict[str, Any]:
    """What `_load_lora_into_text_encoder` does, up to transformers, which wants a model of its own for the rest."""
    weights = {key.removeprefix(f"{part}."): tensor for key, tensor in tensors.items() if key.startswith(f"{part}.")}
    named = convert_state_dict_to_peft(convert_state_dict_to_diffusers(weights))
    model = _skeleton(named)
    ranks = {key: tensor.shape[1] for key, tensor in named.items() if ".lora_B." in key}
    own_alphas, own_metadata = (
        None
        if entries is None
        else {k.removeprefix(f"{part}."): v for k, v in entries.items() if k.startswith(f"{part}.")}
        for entries in (alphas, metadata)
    )
    config = _create_lora_config(named, own_alphas, own_metadata, ranks, is_unet=False)
    inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
    set_peft_model_state_dict(model, named, low_cpu_mem_usage=True)
    return _layers(model, part)


def _skeleton(named: Mapping[str, Tensor]) -> _Skeleton:
    root = _Skeleton()
    for key, down in named.items():
        path, _, role = key.rpartition(".lora_A.")
        if role != "weight":
            continue
        up = named[f"{path}.lora_B.weight"]
        if down.ndim == 4:
            kernel = (down.shape[2], down.shape[3])
            layer = nn.Conv2d(down.shape[1], up.shape[0], kernel, bias=False, device="meta")
        else:
            layer = nn.Linear(down.shape[1], up.shape[0], bias=False, device="meta")
        # peft moves its factors to where the weight is; this one takes no memory.
        layer.weight = nn.Parameter(torch.zeros(()).expand(layer.weight.shape), requires_grad=False)
        *outer, last = path.split(".")
        parent: nn.Module = root
        for atom in outer:
            if atom not in parent._modules:
                parent.add_module(atom, nn.Module())
            parent = parent.get_submodule(atom)
        parent.add_module(last, layer)
    return root


def _layers(model: nn.Module, part: str) -> dict[str, tuple[Tensor, Tensor, float]]:
    factors = {}
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Module) and isinstance(layer, LoraLayer) and layer.scaling:
            adapter = next(iter(layer.scaling))
            down = layer.get_parameter(f"lora_A.{adapter}.weight")
            up = layer.get_parameter(f"lora_B.{adapter}.weight")
            if torch.device("meta") in (down.device, up.device):
                raise ValueError(f"{part}.{path} got no weights")
            factors[f"{part}.{path}"] = (down.detach(), up.detach(), float(layer.scaling[adapter]))
    return factors
