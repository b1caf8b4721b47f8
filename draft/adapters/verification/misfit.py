"""Why a tool that knows a file's names refuses it all the same: for its tensors' shapes, or for its header."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from draft.adapters.files.config import Alphas
from draft.adapters.verification.contents import Contents
from draft.adapters.verification.layouts import Layout
from draft.adapters.verification.models import BaseModel

_PEFT_RANK = 8


def misfit(
    layout: Layout,
    base: BaseModel,
    contents: Contents,
    names_of: Mapping[str, Sequence[str]],
    ranks: Mapping[str, int],
) -> str:
    """Why the tool refuses the file, "" if it does not.

    Args:
        layout: How the tool reads the file.
        base: The base model.
        contents: The file.
        names_of: Module paths by name.
        ranks: Rank by name, of the modules that the tool knows.

    Returns:
        The reason, with a name.
    """
    for name, rank in ranks.items():
        module = names_of[name][0]
        if layout.kernels and _other_kernel(base.modules[module], _down(layout, contents, name)):
            return f"{layout.kernels} ({name})"
        if layout.alpha.needed and f"{name}.alpha" not in contents.alphas:
            return f"{layout.alpha.needed} ({name})"
        if layout.alpha.targets and contents.targets is not None:
            part = module.partition(".")[0]
            if not any(is_target(other, contents) for other in base.modules if other.startswith(f"{part}.")):
                return f"{layout.alpha.targets} ({part})"
            for entry in layout.alpha.entries:
                if entry not in contents.header.configs.get(part, {}):
                    return f"it stops where the header has no {entry} ({part})"
            if _header_rank(contents.header, module) != rank:
                return f"the header gives {name} another rank than the {rank} of its factors"
    return ""


def is_target(module: str, contents: Contents) -> bool:
    """Whether the header lists a module.

    Args:
        module: Its path.
        contents: The file, which has such a header.

    Returns:
        True if it does by peft's rule: the end of the path, or a pattern of all of it.
    """
    part, _, path = module.partition(".")
    targets = (contents.targets or {}).get(part, ())
    # transformers 5 has no `text_model.` before the path, transformers 4 has.
    paths = (path, path.removeprefix("text_model."))
    if isinstance(targets, str):
        return any(re.fullmatch(targets, each) for each in paths)
    return any(each == target or each.endswith(f".{target}") for each in paths for target in targets)


def _down(layout: Layout, contents: Contents, name: str) -> Sequence[int]:
    return next(contents.shapes[f"{name}{down}"] for _, down in layout.pairs if f"{name}{down}" in contents.shapes)


def _other_kernel(shape: Sequence[int], down: Sequence[int]) -> bool:
    """Whether one is of a linear layer and the other of a convolution, or of one with another kernel."""
    return tuple(shape[2:]) != tuple(down[2:])


def _header_rank(header: Alphas, module: str) -> int:
    """The rank that the header gives a module, by peft's rule of patterns; without an entry peft's default."""
    part, _, path = module.partition(".")
    config = header.configs.get(part, {})
    for pattern, value in (config.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return int(value)
    return int(config.get("r", _PEFT_RANK))
