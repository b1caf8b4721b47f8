"""What the files of families share: reading a folder or hub id with diffusers, and the errors in Draft's words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from draft import hub
from draft.errors import DraftError, ResourceError
from draft.tokenizer import load_tokenizer


def read_index(model: str) -> Mapping[str, Any]:
    """The `model_index.json` of a hub id or folder: the pipeline's class and those of its components.

    Args:
        model: Hub id or folder.

    Returns:
        Its content.

    Raises:
        DraftError: It cannot be read or reached.
    """
    if not Path(model).exists():
        hub.ask_once()
    try:
        index: Any = DiffusionPipeline.load_config(model)
    except (OSError, ValueError) as error:
        raise _not_loaded(f"cannot load model {model!r}: {_first_line(error)}", model, hint=_hint()) from error
    return index


def local_folder(model: str, pipeline: type[DiffusionPipeline], *, without: Iterable[str] = ()) -> Path:
    """The folder that a model is in: itself, or of a hub id that in the hub's cache, fetched first if need be.

    Args:
        model: Folder or hub id.
        pipeline: Its class.
        without: Components that are not fetched.

    Returns:
        The folder.

    Raises:
        DraftError: It cannot be reached, or has weights in pickles alone.
    """
    if Path(model).is_dir():
        return Path(model)
    hub.ask_once()
    with reading_weights(model):
        return Path(pipeline.download(model, use_safetensors=True, **dict.fromkeys(without, None)))


def read_config(folder: Path, component: str) -> dict[str, Any]:
    """The configuration of a component, as its file has it.

    Args:
        folder: The model's.
        component: Its name; a scheduler's file has another name than a network's.

    Returns:
        Name to value.

    Raises:
        DraftError: There is no such file, or it is no JSON object.
    """
    file = folder / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DraftError(
            f"the configuration of the {component} cannot be read ({_first_line(error)})", where=str(folder)
        ) from error
    if not isinstance(content, dict):
        raise DraftError(f"{file} must hold a JSON object (got {type(content).__name__})")
    return content


def read_component(model: str, folder: Path, component: str, kind: Any, dtype: torch.dtype) -> nn.Module:
    """Read a network's weights in the precision that they are used in, from `.safetensors` files alone.

    Args:
        model: The model as the user named it, for errors.
        folder: The folder that it is in.
        component: The network's name.
        kind: Its class in diffusers or transformers.
        dtype: The precision.

    Returns:
        The network, in the CPU's memory.

    Raises:
        DraftError: Weights are missing or damaged, or lack tensors, which the libraries would draw at random.
    """
    options = {**_variant(folder / component), **precision(dtype, kind), **_names(kind)}
    with reading_weights(model):
        loaded: Any = kind.from_pretrained(
            str(folder / component), use_safetensors=True, output_loading_info=True, **options
        )
    network, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise DraftError(
            f"cannot load model {model!r}: the weights of its {component} lack {len(missing)} tensors of "
            f"{kind.__name__}, e.g. {missing[0]!r}",
            hint=f"{component}/ must hold a whole {kind.__name__}",
        )
    return network


def _names(kind: Any) -> dict[str, Any]:
    """The option by which transformers 4 reads a CLIP text encoder that version 5 wrote, whose names are shorter."""
    if kind.__name__ != "CLIPTextModel" or int(transformers.__version__.partition(".")[0]) >= 5:
        return {}
    return {"key_mapping": {r"^(?=(embeddings|encoder|final_layer_norm)\.)": "text_model."}}


def read_tokenizer(model: str, folder: Path, component: str, name: str = "CLIPTokenizer") -> Any:
    """Read a tokenizer, and refuse one without a vocabulary.

    Args:
        model: The model as the user named it, for errors.
        folder: The folder that it is in.
        component: The tokenizer's name, e.g. ``"tokenizer_2"``.
        name: Its class in transformers.

    Returns:
        The tokenizer.

    Raises:
        DraftError: Files are missing or damaged.
    """
    fetch = "" if Path(model).exists() else f"hf download {model} --include '{component}/*'"
    with reading_weights(model):
        return load_tokenizer(
            name.removesuffix("Fast"),
            str(folder / component),
            of=f"model {model!r}",
            fetch=fetch,
            local_files_only=True,
        )


def check_weights(model: str, folder: Path, components: Iterable[str]) -> None:
    """Find out from headers whether components' weights are there and complete; none are read.

    Args:
        model: The model as the user named it, for errors.
        folder: The folder that it is in.
        components: The networks' names.

    Raises:
        DraftError: A file is missing or damaged.
    """
    with reading_weights(model):
        for component in components:
            files = list((folder / component).glob("*.safetensors"))
            if not files:
                raise OSError(f"no .safetensors file in {folder / component}")
            for file in files:
                with safe_open(str(file), "pt"):
                    pass


def precision(dtype: torch.dtype, kind: Any) -> dict[str, torch.dtype]:
    """The option by which a class's `from_pretrained` or `from_single_file` reads in a precision; it was renamed.

    Args:
        dtype: The precision.
        kind: A class of diffusers or transformers.

    Returns:
        The option by its name.
    """
    library, since = (transformers, (4, 56)) if kind.__module__.startswith("transformers.") else (diffusers, (0, 42))
    installed = tuple(int(number) for number in library.__version__.split(".")[:2])
    return {"dtype" if installed >= since else "torch_dtype": dtype}


@contextmanager
def encoding(dtype: torch.dtype) -> Iterator[None]:
    """Call text encoders of a precision inside the block.

    Version 4 of transformers fills its causal masks with the lowest number of the encoder's precision, but in torch's
    default one, which float64's overflows.

    Args:
        dtype: The encoders' precision.

    Yields:
        Nothing.
    """
    before = torch.get_default_dtype()
    if dtype == torch.float64 and int(transformers.__version__.partition(".")[0]) < 5:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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


def _variant(folder: Path) -> dict[str, str]:
    """Which of a component's files to read: the plain one, else that in half precision, the only one of some models."""
    names = [file.name for file in folder.glob("*.safetensors*")]
    return {"variant": "fp16"} if names and all(".fp16." in name for name in names) else {}


def _hint() -> str:
    if reason := hub.unreached():
        return f"{reason}: try again with a connection, download it first, or give a folder"
    if switch := hub.switched_off():
        return f"{switch} is set: download it first, or give a folder"
    return "give a folder, a .safetensors file, a named model (`draft models`), or a hub id that can be reached"


def _not_loaded(what: str, model: str, *, hint: str) -> DraftError:
    if Path(model).exists():
        return DraftError(what, hint=hint)
    return ResourceError(what, needs="the model's files on this machine, or a way to the hub that has them", hint=hint)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
