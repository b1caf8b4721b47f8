"""How strong a tool applies what it loads of a file, relative to what the file means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from draft.adapters.verification.contents import Contents
from draft.adapters.verification.layouts import Alpha, Layout

# In the order of transformers' modules.
_CLIP_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")


def ratios_of(
    layout: Layout, contents: Contents, names_of: Mapping[str, Sequence[str]], ranks: Mapping[str, int]
) -> tuple[float, ...]:
    """The distinct strengths relative to what the file means.

    Args:
        layout: How the tool reads the file.
        contents: The file.
        names_of: Module paths by name.
        ranks: Rank by name, of the modules that are loaded.

    Returns:
        Ratios, smallest first.
    """
    alphas = {
        name: contents.alphas[f"{name}.alpha"]
        for name in ranks
        if layout.alpha.tensor and f"{name}.alpha" in contents.alphas
    }
    ratios: set[float] = set()
    for members in _by_part(_ordered(ranks, layout), names_of).values():
        given = {name: alphas[name] for name in members if name in alphas}
        taken = _as_patterns(given, members, names_of, layout.alpha) if layout.alpha.pattern and given else given
        for name in members:
            for module in names_of[name]:
                strength = 1.0 if name not in taken or not ranks[name] else taken[name] / ranks[name]
                if layout.alpha.metadata and contents.in_header and (layout.alpha.folded or not given):
                    strength *= contents.header.scale(module, ranks[name])
                elif layout.alpha.first and (layout.alpha.folded or not given):
                    strength *= ranks[_first(members, names_of)] / ranks[name]
                meant = contents.strengths.get(module, 1.0)
                ratios.add(round(strength / meant, 6) if meant else float(strength != 0))
    return tuple(sorted(ratios))


def rank_of(shapes: Mapping[str, Sequence[int]], name: str, down: str) -> int:
    """The rank that a module's alpha is divided by.

    Args:
        shapes: Shapes by tensor name.
        name: The module's name.
        down: The ending of its second factor.

    Returns:
        The rank, 0 where alpha is not used: in a Kronecker product of two whole matrices.
    """
    if not down.startswith(".lokr_"):
        return shapes[f"{name}{down}"][0]
    return next((shapes[key][0] for number in "21" if (key := f"{name}.lokr_w{number}_b") in shapes), 0)


def _first(members: Sequence[str], names_of: Mapping[str, Sequence[str]]) -> str:
    """The module whose rank counts: the first of the file, of a text encoder the first that the encoder has."""
    if not names_of[members[0]][0].startswith("text_encoder"):
        return members[0]
    return min(members, key=lambda name: clip_place(names_of[name][0]))


def clip_place(module: str) -> tuple[int, int]:
    """Where a module comes among those of a CLIP text encoder.

    Args:
        module: Its path.

    Returns:
        The layer's number and its place within it; the end for a module outside layers.
    """
    match = re.search(r"\.layers\.(\d+)\..*?(\w+)$", module)
    return (int(match[1]), _CLIP_ORDER.index(match[2])) if match else (10**9, 0)


def _as_patterns(
    given: Mapping[str, float], members: Sequence[str], names_of: Mapping[str, Sequence[str]], rule: Alpha
) -> dict[str, float]:
    """What peft makes of alphas: one for all, and exceptions whose pattern fits every path that ends with it."""
    common = next(iter(given.values())) if rule.leading else Counter(given.values()).most_common(1)[0][0]
    paths = {name: names_of[name][0].partition(".")[2] for name in members}
    lost = [name for name in given if rule.uneven and rule.uneven.fullmatch(names_of[name][0])]
    exceptions = {paths[name]: alpha for name, alpha in given.items() if alpha != common and name not in lost}
    return {
        name: next((alpha for end, alpha in exceptions.items() if path == end or path.endswith(f".{end}")), common)
        for name, path in paths.items()
    }


def _ordered(names: Iterable[str], layout: Layout) -> list[str]:
    """Names in the order in which the tool goes through them, which decides between alphas that are equally common."""

    def place(name: str) -> tuple[int, int]:
        for index, pattern in enumerate(layout.order):
            match = pattern.fullmatch(name)
            if match:
                return index, int(match[1]) if match.groups() else 0
        return len(layout.order), 0

    return sorted(names, key=place)


def _by_part(ranks: Iterable[str], names_of: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in ranks:
        parts.setdefault(names_of[name][0].partition(".")[0], []).append(name)
    return parts
