"""Families whose LoRA files are not read, so that an error can name them: by the header, or by names and shapes.

`data/other_families.json` has the facts and says where they come from. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from draft.adapters.files.header import TensorInfo
from draft.adapters.files.keys import split_name

READ = "LoRA files of Stable Diffusion 1, 2, XL, 3, 3.5 and FLUX.1 are read"
"""What is read, for a hint."""

# What trainers write of the model in a header.
_ENTRIES = ("modelspec.architecture", "ss_base_model_version", "ss_network_module")
_PREFIX = re.compile(
    r"(?:lora_unet_+|lora_transformer_|lycoris_|base_model\.model\.|(?:model\.)?diffusion_model\.|transformer\.|unet\.)+"
)
_TEXT = re.compile(r"(?:lora_te\d?_|lora_qwen|text_encoders?[._\d]|clip_[lgh]\.|t5\.|text_model\.)")
_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")
# So many of a file's modules a family must have to be named.
_SHARE = 0.6


@dataclass(frozen=True)
class _Size:
    """One published size of a family: its layers (out, in) by pattern, and how many blocks it has of which kind."""

    title: str
    modules: Mapping[str, tuple[int, ...]]
    blocks: Mapping[str, int]


@dataclass(frozen=True)
class _Module:
    """A module of a file: its path with `#` for numbers, its block's kind and number, and its shape (out, in)."""

    pattern: str
    kind: str
    number: int
    shape: tuple[int, ...] | None


def named_in(metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """The family that a header names, if it is one of those that are not read.

    Args:
        metadata: The header.

    Returns:
        The family's title and the entry that names it; None where none does.
    """
    for entry in _ENTRIES:
        text = metadata.get(entry, "").lower()[:200]
        for title, patterns, _ in _families():
            if text and any(pattern.search(text) for pattern in patterns):
                return title, f"{entry}: {metadata[entry][:60]}"
    return None


def recognised(tensors: Mapping[str, TensorInfo]) -> str:
    """The families that have most of a file's modules in their shapes, of those that are not read.

    Args:
        tensors: What the header says of the file's tensors.

    Returns:
        A title, several joined by `or`, or "" where there is none, or more than three.
    """
    modules = _modules(tensors)
    best, titles = _SHARE * len(modules), dict[str, None]()
    for title, _, names in _families():
        spelled = sum(any(name.fullmatch(module.pattern) for name in names) for module in modules)
        fitting = max((sum(_fits(size, module) for module in modules) for size in _sizes(title)), default=0)
        if (score := max(spelled, fitting)) >= best and score:
            titles = {title: None} if score > best else {**titles, title: None}
            best = score
    return " or ".join(titles) if len(titles) <= 3 else ""


def covered(tensors: Mapping[str, TensorInfo]) -> str:
    """The family of which a file has every block of at least two kinds, and nothing else.

    Attention layers alone may have the shapes of two families; all blocks of a smaller model are no part of a larger.

    Args:
        tensors: What the header says of the file's tensors.

    Returns:
        The title, or "".
    """
    modules = _modules(tensors)
    numbers: dict[str, set[int]] = {}
    for module in modules:
        if module.kind:
            numbers.setdefault(module.kind, set()).add(module.number)
    for title, _, _ in _families():
        for size in _sizes(title):
            whole = all(found == set(range(size.blocks.get(kind, 0))) for kind, found in numbers.items())
            if len(numbers) > 1 and whole and all(_fits(size, module) for module in modules):
                return title
    return ""


def _fits(size: _Size, module: _Module) -> bool:
    shape = size.modules.get(module.pattern)
    return shape is not None and module.shape in (None, shape) and module.number < size.blocks.get(module.kind, 1)


def _modules(tensors: Mapping[str, TensorInfo]) -> list[_Module]:
    parts: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        key = split_name(name)
        if key is not None and not _TEXT.match(name):
            parts.setdefault(_PREFIX.sub("", key.module, count=1), {})[key.role] = info
    modules = []
    for path, roles in parts.items():
        pattern = _NUMBER.sub("#", path).replace(".", "_")
        block = re.match(r"(.+?)[._](\d+)[._]", path)
        down, up = roles.get("down"), roles.get("up")
        shape = (up.shape[0], down.shape[1]) if down and up and down.ndim > 1 and up.ndim > 1 else None
        kind, number = (block[1].replace(".", "_"), int(block[2][:9])) if block else ("", 0)
        modules.append(_Module(pattern, kind, number, shape))
    return modules


def _sizes(title: str) -> tuple[_Size, ...]:
    return tuple(size for size in _all_sizes() if size.title == title)


@cache
def _families() -> tuple[tuple[str, tuple[re.Pattern[str], ...], tuple[re.Pattern[str], ...]], ...]:
    """Title, what headers call it, and further names of its layers, of every family."""
    return tuple(
        (entry["title"], tuple(map(re.compile, entry["header"])), tuple(map(re.compile, entry["names"])))
        for entry in _document()
    )


@cache
def _all_sizes() -> tuple[_Size, ...]:
    return tuple(
        _Size(
            entry["title"],
            {name: tuple(map(int, shape.split("x"))) for name, shape in size["modules"].items()},
            size["blocks"],
        )
        for entry in _document()
        for size in entry["sizes"].values()
    )


def _document() -> list[dict[str, Any]]:
    text = resources.files("draft.adapters").joinpath("data", "other_families.json").read_text(encoding="utf-8")
    return json.loads(text)["families"]
