"""How strong a tool applies what it loads of a file, relative to what the file means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from draft.adapters.verification.contents import Contents
from draft.adapters.verification.tools import Layout


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
        if layout.alpha_tensor and f"{name}.alpha" in contents.alphas
    }
    ratios: set[float] = set()
    for members in _by_part(ranks, names_of).values():
        listed = Counter(alphas[name] for name in members if name in alphas)
        common = listed.most_common(1)[0][0] if listed else None
        first = ranks[members[0]]
        for name in members:
            rank, alpha = ranks[name], alphas.get(name)
            # peft takes one alpha per adapter and a pattern of exceptions; names that the pattern misses get the one.
            if (
                layout.alpha_uneven
                and common is not None
                and (alpha is None or layout.alpha_uneven.fullmatch(names_of[name][0]))
            ):
                alpha = common
            for module in names_of[name]:
                strength = 1.0 if alpha is None else alpha / rank
                if layout.alpha_metadata and (alpha is None or layout.alpha_folded) and contents.in_header:
                    strength *= contents.header.scale(module, rank)
                elif layout.alpha_first and (common is None or layout.alpha_folded):
                    strength *= first / rank
                meant = contents.strengths.get(module, 1.0)
                ratios.add(round(strength / meant, 6) if meant else float(strength != 0))
    return tuple(sorted(ratios))


def _by_part(ranks: Mapping[str, int], names_of: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in ranks:
        parts.setdefault(names_of[name][0].partition(".")[0], []).append(name)
    return parts
