"""When two adapters are one: if everything that decides their change is equal, wherever they lie. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draft.adapters.files.config import config_file, read_config
from draft.adapters.files.grouping import modules_of
from draft.adapters.files.header import read_header
from draft.adapters.files.skipping import without_unreadable
from draft.errors import StageError
from draft.files import sha256, weights_file

# peft's settings that decide about the change, beside the tensors; others, such as the base model's name, do not.
_DECISIVE = ("alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora")


def adapter_digest(path: Path, *, weights: str = "", skip: Sequence[str] = ()) -> str:
    """Digest everything that decides an adapter's change: its file with the header, and peft's settings beside it.

    Of a file alone this is its sha256. The same tensors under another `lora_alpha` are another adapter.

    Args:
        path: A `.safetensors` file, or a peft folder; a folder and the file of weights in it are one.
        weights: The sha256 of the file with the numbers, where it is known already.
        skip: Patterns of tensors that need not be readable, as in `without_unreadable`.

    Returns:
        64 hexadecimal digits.

    Raises:
        StageError: It is no adapter by its header, which is seen before more of it is read, or it cannot be read.
    """
    if not weights:
        header, _ = without_unreadable(read_header(path), skip, where=str(path))
        modules_of(header, where=str(path))
        weights = file_digest(path)
    config = read_config(config_file(path))
    decisive = {} if config is None else _decisive(config)
    if not decisive:
        return weights
    return hashlib.sha256(f"{weights}\0{json.dumps(decisive, sort_keys=True)}".encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Digest the file with an adapter's numbers.

    Args:
        path: A `.safetensors` file, or a peft folder.

    Returns:
        64 hexadecimal digits.

    Raises:
        StageError: It cannot be read.
    """
    file = weights_file(path)
    try:
        return sha256(file)
    except OSError as error:
        raise StageError(f"cannot read the file ({error.strerror or error})", where=str(file)) from error


def name_of(path: Path) -> str:
    """What a header calls an adapter: its file's name without the suffix, bytes that are no text replaced."""
    return (path.stem or path.name).encode("utf-8", "replace").decode()


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that an adapter is read from.

    Args:
        path: A `.safetensors` file, or a peft folder.

    Returns:
        The file with the numbers, and peft's configuration where there is one.
    """
    config = config_file(path)
    return (weights_file(path), *([] if config is None else [config]))


def writes_over(output: Path, source: Path) -> bool:
    """Whether writing an output would destroy an adapter that is read.

    Args:
        output: The file or folder to write.
        source: A `.safetensors` file, or a peft folder.

    Returns:
        True if the output is the adapter, or one of its files.
    """
    # Unlike `Path.resolve` this raises nothing for links in a circle.
    return os.path.realpath(output) in {os.path.realpath(path) for path in (source, *files_of(source))}


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    # diffusers' keys have the part of the pipeline before them: unet.lora_alpha.
    return {key: value for key, value in config.items() if key.rpartition(".")[2] in _DECISIVE and value}
