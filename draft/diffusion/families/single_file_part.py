"""One network out of a checkpoint in one file, by diffusers' loader of the complete file, checked for completeness."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn

from draft.diffusion.families.pretrained import precision
from draft.errors import DraftError

UNET = "model.diffusion_model."
"""What the names of the UNet's tensors begin with in the original layout."""


def read_part(
    path: Path,
    part: str,
    dtype: torch.dtype,
    *,
    pipeline: Any,
    networks: Mapping[str, type[nn.Module]],
    configs: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, list[int]],
    title: str,
    unlike: Callable[[str], DraftError],
    index: Mapping[str, Any] = {},
    **options: Any,
) -> nn.Module:
    """Read one network; the file is mapped into memory, so the others cost nothing.

    Args:
        path: The `.safetensors` file.
        part: The network's component.
        dtype: The precision.
        pipeline: The pipeline's class in diffusers.
        networks: Component to class, of all networks.
        configs: The configurations of all networks and of the scheduler.
        shapes: Name to shape of the tensors in the file.
        title: What errors call the network.
        unlike: Makes the error out of what differs from the family's published model.
        index: More for the `model_index.json` that diffusers is shown.
        **options: More for `from_single_file`: tokenizers, by their components.

    Returns:
        The network, in the CPU's memory.

    Raises:
        DraftError: It is incomplete, or not like the configuration.
    """
    omitted = dict.fromkeys((name for name in networks if name != part), None)
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it warns that no module is kept in float32
    with tempfile.TemporaryDirectory() as folder:
        tokenizers = [name for name in options if name.startswith("tokenizer")]
        _write(Path(folder), {"_class_name": pipeline.__name__, **index}, networks, configs, tokenizers)
        try:
            loaded = pipeline.from_single_file(
                str(path), config=folder, local_files_only=True, **omitted, **options, **precision(dtype, pipeline)
            )
        except (OSError, ValueError, KeyError, SafetensorError, SingleFileComponentError) as error:
            raise unlike((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
        except NotImplementedError as error:  # PyTorch's own, for a tensor on `meta`: no data came for it
            raise unlike(f"it lacks tensors of its {title}") from error
        finally:
            diffusers_logging.set_verbosity(verbosity)
    network: nn.Module = getattr(loaded, part)
    missing = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if missing:
        raise unlike(f"it lacks tensors of its {title}, such as {missing[0]}")
    if part == "unet":
        stored, used = sum(name.startswith(UNET) for name in shapes), len(network.state_dict())
        if stored != used:
            raise unlike(f"its UNet has {stored} tensors instead of {used}")
    vars(network).pop("hf_device_map", None)  # says CPU, which peft would believe after the model has moved
    return network


def _write(
    folder: Path,
    index: Mapping[str, Any],
    networks: Mapping[str, type[nn.Module]],
    configs: Mapping[str, Mapping[str, Any]],
    tokenizers: list[str],
) -> None:
    """The configurations as a folder in diffusers' format, which its loader takes them from."""
    content = {**index, **{name: ["transformers", "CLIPTokenizer"] for name in tokenizers}}
    for part, config in configs.items():
        kind = networks[part].__name__ if part in networks else config.get("_class_name", "DDIMScheduler")
        content[part] = ["transformers" if part.startswith("text_encoder") else "diffusers", kind]
        (folder / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(content), encoding="utf-8")
