"""Which modules of a base model the names of a layout stand for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from draft.adapters.verification.layouts import Layout, Spelling
from draft.adapters.verification.models import BaseModel

_STREAMS = {"img": "1", "txt": "2"}


@cache
def key_map(layout: Layout, base: BaseModel) -> dict[str, tuple[str, ...]]:
    """Every name that stands for a module of a base model in a layout, without the ending.

    Args:
        layout: The layout.
        base: The model.

    Returns:
        Module paths by name; several where the original code has them in one matrix.
    """
    modules_by_name: dict[str, dict[str, None]] = {}
    for module, name, _ in _spelled(layout, base):
        modules_by_name.setdefault(name, {})[module] = None
    return {name: tuple(modules) for name, modules in modules_by_name.items()}


@cache
def pairs_of(layout: Layout, base: BaseModel) -> dict[str, tuple[tuple[str, str], ...]]:
    """The endings of B and A that every name in `key_map` may have.

    Args:
        layout: The layout.
        base: The model.

    Returns:
        Pairs by name.
    """
    pairs: dict[str, dict[tuple[str, str], None]] = {}
    for _, name, spelling in _spelled(layout, base):
        known = layout.pairs if spelling.pairs is None else spelling.pairs
        pairs.setdefault(name, {}).update(dict.fromkeys(known))
    return {name: tuple(known) for name, known in pairs.items()}


def _spelled(layout: Layout, base: BaseModel) -> Iterator[tuple[str, str, Spelling]]:
    """Every module with every name that it may have, and the spelling that it is by."""
    for module in base.modules:
        part, _, path = module.partition(".")
        words = _words(path, base.original.get(module))
        for spelling in layout.spellings.get(part, ()):
            if _applies(spelling, path) and all(word in words for word in re.findall(r"\{(\w+)\}", spelling.template)):
                yield module, spelling.template.format(**words), spelling


def _applies(spelling: Spelling, path: str) -> bool:
    known = spelling.only is None or bool(spelling.only.fullmatch(path))
    return known and not (spelling.apart and spelling.apart.fullmatch(path))


def _words(path: str, original: str | None) -> dict[str, str]:
    """What a spelling may say of a module; without the words that mean nothing for it."""
    words = {"path": path, "flat": path.replace(".", "_"), "processor": _processor(path), "old": _old(path)}
    if original is not None:
        words |= {"original": original, "original_flat": original.replace(".", "_")}
        xlabs = _xlabs(path, original)
        if xlabs:
            words["xlabs"] = xlabs
    return words


def _processor(path: str) -> str:
    """The path that the attention processors of older versions of diffusers gave a module."""
    processor = path.replace(".to_", ".processor.to_")
    return processor.removesuffix(".0") if processor.endswith(".to_out.0") else processor


def _old(path: str) -> str:
    """The path of a text encoder's module in the files of those versions."""
    return re.sub(r"(?<=\.self_attn\.)(q|k|v|out)_proj$", r"to_\1", path)


def _xlabs(path: str, original: str) -> str:
    """The name of XLabs' processor for a module of FLUX.1, "" where there is none."""
    double = re.fullmatch(r"(double_blocks\.\d+)\.(img|txt)_attn\.(qkv|proj)", original)
    if double:
        return f"{double[1]}.processor.{double[3]}_lora{_STREAMS[double[2]]}"
    single = re.fullmatch(r"(single_blocks\.\d+)\.linear([12])", original)
    if single is None or path.endswith(".proj_mlp"):
        return ""
    return f"{single[1]}.processor.{'qkv' if single[2] == '1' else 'proj'}_lora"
