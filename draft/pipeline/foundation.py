"""What can be wrong with the adapters that a training is built on, found without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from draft.adapters.files.header import read_header
from draft.errors import ConfigError, DraftError
from draft.pipeline.document import Document
from draft.pipeline.document import Path as Keys
from draft.pipeline.graph import parse_reference

# How the names of text encoders begin, in every format.
_TEXT = ("lora_te", "text_encoder", "base_model.model.text_model", "te1_", "te2_")


def check_foundation(files: Mapping[str, str], keys: Keys, document: Document, errors: list[DraftError]) -> None:
    """Check `init_adapter` and `base_adapters`: files that can be read, reach the network, and come once each.

    Ranks and shapes show when the stage begins, before anything is trained.

    Args:
        files: Label to file or reference, as `check_files` found them.
        keys: Where the stage is.
        document: The file, for the places of errors.
        errors: Gets what is wrong.
    """
    beneath: dict[str, str] = {}
    for label, source in files.items():
        group, _, index = label.partition(".")
        if group not in ("init_adapter", "base_adapters"):
            continue
        here: Keys = (*keys, group, int(index), "file") if index else (*keys, group)
        key, place = ".".join(map(str, here)), document.place(here)
        if group == "base_adapters" and source in beneath:
            hint = "give it once, with the sum of both weights"
            what = f"{key} is the adapter of {beneath[source]} once more (got {source!r})"
            errors.append(ConfigError(what, where=place, hint=hint))
        elif group == "base_adapters":
            beneath[source] = label
        if parse_reference(source) or not Path(source).exists():
            continue  # a stage's output, or one that is told already
        try:
            header = read_header(Path(source))
        except DraftError as error:
            errors.append(ConfigError(f"{key}: {error.what} (got {source!r})", where=place, hint=error.hint))
            continue
        if header.tensors and all(name.startswith(_TEXT) for name in header.tensors):
            what = f"{key} changes text encoders alone, and a training has to do with the denoiser (got {source!r})"
            errors.append(ConfigError(what, where=place))
