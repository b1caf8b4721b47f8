"""The header of an adapter file, read without torch: the names of its tensors and what it says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from draft.errors import StageError
from draft.files import WEIGHTS, weights_file

_LARGEST = 100_000_000
_TEXT = ("lora_te", "text_encoder", "base_model.model.text_model", "te1_", "te2_")


@dataclass(frozen=True)
class Header:
    """What stands before the numbers of a safetensors file.

    Args:
        names: The tensors' names.
        metadata: What the file says about itself.
    """

    names: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def text_alone(self) -> bool:
        """Whether every tensor belongs to a text encoder."""
        return bool(self.names) and all(name.startswith(_TEXT) for name in self.names)


def read_header(path: Path) -> Header:
    """Read the header of an adapter file.

    Args:
        path: A safetensors file, or a peft folder.

    Returns:
        The header.

    Raises:
        StageError: There is no such file, or it is no safetensors file, or it is damaged.
    """
    file = weights_file(path)
    if not file.is_file():
        what = f"the folder holds no {WEIGHTS}" if path.is_dir() else "no such adapter file"
        raise StageError(what, where=str(path))
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(length) if length <= _LARGEST else b""
    except OSError as error:
        raise StageError(f"cannot read the file ({error.strerror or error})", where=str(path)) from error
    try:
        if not text.startswith(b"{") or len(text) < length:
            raise ValueError
        data = json.loads(text)
        metadata = {str(key): str(value) for key, value in (data.pop("__metadata__", None) or {}).items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise StageError("not an intact safetensors file", where=str(path)) from None
    return Header(tuple(data), metadata)
