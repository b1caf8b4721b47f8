"""Why a tool that knows a file's names refuses it all the same: for its tensors' shapes, or for its header."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from draft.adapters.files.config import Alphas
from draft.adapters.verification.contents import Contents
from draft.adapters.verification.keymap import key_map
from draft.adapters.verification.layouts import Layout
from draft.adapters.verification.models import BaseModel
from draft.adapters.verification.strengths import clip_place

_PEFT_RANK = 8


def misfit(
    layout: Layout,
    base: BaseModel,
    contents: Contents,
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    ranks: Mapping[str, int],
) -> str:
    """Why the tool refuses the file, "" if it does not.

    Args:
        layout: How the tool reads the file.
        base: The base model.
        contents: The file.
        pairs: Endings by name.
        ranks: Rank by name, of the modules that the tool knows.

    Returns:
        The reason, with a name.
    """
    names_of = key_map(layout, base)
    if contents.targets is None and (why := _unlike(layout, names_of, ranks)):
        return why
    for name, rank in ranks.items():
        module = names_of[name][0]
        if layout.kernels and _other_kernel(base.modules[module], _down(pairs[name], contents, name)):
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


def _unlike(layout: Layout, names_of: Mapping[str, Sequence[str]], ranks: Mapping[str, int]) -> str:
    """Why a module's rank, which is not the commonest of its part's other modules, makes the tool refuse the file."""
    for pattern, why in layout.alike:
        for name, rank in ranks.items():
            module = names_of[name][0]
            if pattern.fullmatch(module):
                part = f"{module.partition('.')[0]}."
                others = {names_of[n][0]: r for n, r in ranks.items() if n != name and names_of[n][0].startswith(part)}
                counted = Counter(others[other] for other in sorted(others, key=clip_place))
                if counted and counted.most_common(1)[0][0] != rank:
                    return f"{why} ({name})"
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


def _down(pairs: Sequence[tuple[str, str]], contents: Contents, name: str) -> Sequence[int]:
    return next(contents.shapes[f"{name}{down}"] for _, down in pairs if f"{name}{down}" in contents.shapes)


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
