"""An adapter file as it was given, with something new in its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from draft.adapters.files.config import config_file, read_config
from draft.adapters.files.container import copy_tensors
from draft.adapters.files.metadata import json_text


def stamp_adapter(source: Path, target: Path, *, metadata: Mapping[str, str]) -> None:
    """Copy an adapter with further header entries; tensors, names, format and scale stay what they are.

    Args:
        source: A `.safetensors` file, or a peft folder, whose configuration (with the alpha) moves into the header.
        target: The file to write, atomically; the same inputs give the same bytes.
        metadata: Header entries to add.

    Raises:
        StageError: The source cannot be read or the copy cannot be written.
    """
    config = read_config(config_file(source))
    config_header = {} if config is None else {"lora_adapter_metadata": json_text(config)}
    copy_tensors(source, target, metadata={**config_header, **metadata})
