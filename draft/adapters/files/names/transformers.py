"""Where a transformer's module is, whichever of its names a file uses."""

from __future__ import annotations

import re
from collections.abc import Iterator

from draft.adapters.files.names.flux import FLUX
from draft.adapters.files.names.sd3 import SD3
from draft.adapters.files.names.sites import Plan, Site

PLANS: dict[str, Plan] = {"flux": FLUX, "sd3": SD3}
"""The transformer families by name."""

_DOTTED = re.compile(r"(?<=blocks)\.(\d+)\.")
_FLAT = re.compile(r"(?<=blocks)_(\d+)_")


def locate(name: str) -> str | None:
    """The dotted path of a transformer's module, without its part.

    Args:
        name: A path of diffusers' or of the original code (also one of the pieces `qkv.0`, `qkv.1`, ... that OneTrainer
            keeps apart), or one of them with `_` for `.`, as kohya's tools write it.

    Returns:
        diffusers' path where the module is the same in both; the original code's where it is fused or its rows are
        swapped, so that `site_of` finds it; None if no family here has such a module.

    Example:
        >>> locate("double_blocks_3_img_mlp_0"), locate("single_blocks.7.linear1")
        ('transformer_blocks.3.ff.net.0.proj', 'single_blocks.7.linear1')
    """
    for pattern in (_DOTTED, _FLAT):
        match = pattern.search(name)
        number = match[1] if match else ""
        key = name if match is None else f"{name[: match.start(1)]}#{name[match.end(1) :]}"
        if key in _PATHS:
            return _PATHS[key].replace("#", number)
    return None


def site_of(path: str) -> tuple[Site, str] | None:
    """The fused or swapped layer at a path that `locate` gave.

    Args:
        path: A path without its part.

    Returns:
        The layer and the number of its block (empty if it is in none), or None where the path is diffusers' own.
    """
    match = _DOTTED.search(path)
    key = path if match is None else f"{path[: match.start(1)]}#{path[match.end(1) :]}"
    return (_FUSED[key], match[1] if match else "") if key in _FUSED else None


def member_of(path: str, family: str) -> tuple[Site, int, str] | None:
    """The layer of the original code that a module of diffusers belongs to.

    Args:
        path: diffusers' path, without its part.
        family: A name of `PLANS`.

    Returns:
        The layer, which of its members the module is, and the number of the block; None if the family lacks it.
    """
    match = _DOTTED.search(path)
    key = path if match is None else f"{path[: match.start(1)]}#{path[match.end(1) :]}"
    entry = PLANS[family].by_member.get(key)
    return None if entry is None else (entry[0], entry[1], match[1] if match else "")


def _spellings() -> Iterator[tuple[str, str]]:
    for plan in PLANS.values():
        for site in plan.sites:
            yield site.native, site.native if site.native in _FUSED else site.members[0]
            for index, member in enumerate(site.members):
                yield member, member
                if len(site.members) > 1:
                    yield f"{site.native}.{index}", member


_FUSED = {site.native: site for plan in PLANS.values() for site in plan.sites if len(site.members) > 1 or site.swapped}
_PATHS: dict[str, str] = {}
for _name, _path in _spellings():
    _PATHS[_name] = _path
    _PATHS[_name.replace(".", "_")] = _path
