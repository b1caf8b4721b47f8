"""CLIP's vocabulary, which checkpoints in one file do not carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from draft import hub
from draft.errors import ResourceError
from draft.tokenizer import check_tokenizer, load_tokenizer, tokenizer_class

_VOCABULARY = ("vocab.json", "merges.txt")
_HUB = "openai/clip-vit-large-patch14"
# All hold the same vocabulary; the first is also what A1111 leaves in the hub's cache.
_CACHED = (
    (_HUB, ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer"),
    ("CompVis/stable-diffusion-v1-4", "tokenizer"),
)


def clip_tokenizer(path: Path, beside: Path, *, padding: str) -> Any:
    """CLIP's tokenizer, which checkpoints do not carry: from the folder beside, from the hub's cache, or from the hub.

    Args:
        path: The checkpoint, for errors.
        beside: The folder beside it that may hold the vocabulary.
        padding: What it fills prompts up with, where the folder does not say.

    Returns:
        The tokenizer.

    Raises:
        DraftError: The vocabulary is nowhere, or it is empty or damaged.
    """
    files = [str(beside / name) for name in _VOCABULARY if (beside / name).is_file()]
    whole = len(files) == len(_VOCABULARY)
    if (beside / "tokenizer.json").is_file() or (whole and (beside / "tokenizer_config.json").is_file()):
        return load_tokenizer("CLIPTokenizer", str(beside), of=f"checkpoint {path}", local_files_only=True)
    if not whole:
        hub.ask_once()
        files = _from_hub()
    if not files:
        raise ResourceError(
            f"checkpoint {path} comes without CLIP's vocabulary, and it could not be fetched from the hub",
            needs=f"{' and '.join(_VOCABULARY)} of {_HUB}, 1.5 MB",
            hint=f"with a connection: `hf download {_HUB} {' '.join(_VOCABULARY)}`; without: put these two files "
            f"(ComfyUI has them in comfy/sd1_tokenizer) into {beside}",
        )
    tokenizer = tokenizer_class("CLIPTokenizer")(*files, model_max_length=77, pad_token=padding)
    check_tokenizer(tokenizer, str(Path(files[0]).parent), of=f"checkpoint {path}")
    return tokenizer


def _from_hub() -> list[str]:
    for local in (True, False):
        for repository, folder in _CACHED if local else _CACHED[:1]:
            try:
                files = [
                    cached_file(repository, name, subfolder=folder, local_files_only=local) for name in _VOCABULARY
                ]
            except (OSError, ValueError):
                continue
            if all(files):
                return [str(file) for file in files]
    return []
