"""What the files of families share: reading a folder or hub id with diffusers, and the errors in Draft's words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from draft.errors import DraftError, ResourceError


def pipeline_class(model: str) -> str:
    """The pipeline class that a folder or hub id names in its `model_index.json`.

    Args:
        model: Folder or hub id.

    Returns:
        For example `StableDiffusionPipeline`; `unknown` where there is none.

    Raises:
        DraftError: It cannot be read or reached.
    """
    try:
        config: Any = DiffusionPipeline.load_config(model)
    except (OSError, ValueError) as error:
        raise _not_loaded(f"cannot load model {model!r}: {_first_line(error)}", model, hint=_hint()) from error
    return str(config.get("_class_name", "unknown"))


@contextmanager
def reading_weights(model: str) -> Iterator[None]:
    """Read weights inside the block: no progress bars, and what the libraries raise as Draft's errors.

    Args:
        model: The folder or hub id that is read, for the errors.

    Yields:
        Nothing.

    Raises:
        DraftError: Weights are missing, damaged or unreachable.
    """
    with undisturbed():
        try:
            yield
        except (OSError, ValueError, SafetensorError) as error:
            what = f"cannot load the weights of model {model!r}: {_first_line(error)}"
            raise _not_loaded(what, model, hint="Draft reads .safetensors weights only; " + _hint()) from error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Load without progress bars, and put back what loading changes: some releases of diffusers leave gradients off."""
    gradients = torch.is_grad_enabled()
    bars = [(library, library.is_progress_bar_enabled()) for library in (diffusers_logging, transformers_logging)]
    for library, _ in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        for library, enabled in bars:
            if enabled:
                library.enable_progress_bar()


def _hint() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return "HF_HUB_OFFLINE is set: download it first, or give a folder"
    return "give a folder, a .safetensors file, a named model (`draft models`), or a hub id that can be reached"


def _not_loaded(what: str, model: str, *, hint: str) -> DraftError:
    if Path(model).exists():
        return DraftError(what, hint=hint)
    return ResourceError(what, needs="the model's files on this machine, or a way to the hub that has them", hint=hint)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
