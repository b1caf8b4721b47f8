"""What one tool makes of one file: which modules it loads, and how strong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from draft.adapters.verification.contents import Contents
from draft.adapters.verification.keymap import key_map, pairs_of
from draft.adapters.verification.layouts import Layout
from draft.adapters.verification.misfit import is_target, misfit
from draft.adapters.verification.models import BaseModel
from draft.adapters.verification.strengths import rank_of, ratios_of
from draft.adapters.verification.tools import Recognition, Tool

Status = Literal["all", "some", "none", "refuses", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What a tool makes of a file.

    Args:
        tool: The tool.
        version: The version that the verdict is about.
        status: `all` modules are loaded, `some` or `none` of them, the tool `refuses` the file, or it has no LoRA for
            the family: `unknown`.
        loaded: How many of the file's modules it loads.
        modules: How many the file has, as the file counts them (q, k and v in one matrix are one).
        dropped: Names of those it leaves out without an error.
        reason: Why it refuses, or what it says of the family.
        ratios: The strengths at which it applies what it loads, relative to what the file means; (1.0,) is right.
        ignored: What it leaves out of the modules that it loads.
    """

    tool: str
    version: str
    status: Status
    loaded: int
    modules: int
    dropped: tuple[str, ...] = ()
    reason: str = ""
    ratios: tuple[float, ...] = (1.0,)
    ignored: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether the tool loads everything at the strength that the file means."""
        exact = not self.ignored and all(abs(ratio - 1) < 1e-3 for ratio in self.ratios)
        return self.status == "all" and exact


def judge(tool: Tool, base: BaseModel, contents: Contents) -> Verdict:
    """Walk a file through a tool's key map.

    Args:
        tool: The tool.
        base: The base model that the file is for.
        contents: The file.

    Returns:
        The verdict.
    """
    names = contents.names
    verdict = _Verdicts(tool, len(names))
    if base.family in tool.unknown:
        return verdict.of("unknown", reason=tool.unknown[base.family])
    if not any(base.key in layout.bases for layout in tool.layouts):
        return verdict.of("unknown", reason=f"has no LoRA for {base.name}")
    recognition = tool.recognition.get(base.family)
    if recognition and (why := _mistaken(recognition, base, contents)):
        return verdict.of("refuses", reason=why)
    layout = _layout(tool, base, contents)
    if layout is None:
        why = tool.otherwise.get(base.family, "")
        return verdict.of("refuses" if why else "none", dropped=() if why else names, reason=why)
    return _walk(verdict, layout, base, contents, names)


@dataclass(frozen=True)
class _Verdicts:
    tool: Tool
    modules: int

    def of(
        self,
        status: Status,
        *,
        loaded: int = 0,
        dropped: tuple[str, ...] = (),
        reason: str = "",
        ratios: tuple[float, ...] = (1.0,),
        ignored: tuple[str, ...] = (),
    ) -> Verdict:
        tool = self.tool
        return Verdict(tool.name, tool.version, status, loaded, self.modules, dropped, reason, ratios, ignored)


def _mistaken(recognition: Recognition, base: BaseModel, contents: Contents) -> str:
    """Why the tool takes the file for another base model, or "" if it does not."""
    bases: tuple[str, ...] = ()
    for name in contents.shapes:
        if any(pattern.fullmatch(name) for pattern in recognition.widths) and (width := _width(name, contents)):
            bases = recognition.bases.get(width, ())
            break
    else:
        widths = [
            next((_width(name, contents) for name in contents.shapes if pattern.fullmatch(name)), None)
            for pattern in recognition.sums
        ]
        if widths and None not in widths:
            bases = recognition.bases.get(sum(width or 0 for width in widths), ())
        elif any(recognition.deep.fullmatch(name) for name in contents.shapes):
            bases = recognition.deep_bases
    if not bases:
        return recognition.otherwise
    return "" if base.key in bases else f"it takes the file for another base model ({', '.join(bases)})"


def _width(name: str, contents: Contents) -> int | None:
    """How many inputs the module of a tensor has; None where a Kronecker product is not of two whole matrices."""
    module, _, role = name.partition(".")
    if not role.startswith("lokr_"):
        return contents.shapes[name][1]
    halves = [contents.shapes.get(f"{module}.lokr_w{number}") for number in "12"]
    return math.prod(half[1] for half in halves if half) if all(halves) else None


def _layout(tool: Tool, base: BaseModel, contents: Contents) -> Layout | None:
    """The first layout of the tool that the file is of."""
    for layout in tool.layouts:
        fits = (
            base.key in layout.bases
            and (layout.every is None or all(layout.every.fullmatch(name) for name in contents.shapes))
            and all(any(map(pattern.fullmatch, contents.shapes)) for pattern in layout.some)
            and (not layout.present or any(contents.shapes.keys() >= set(names) for names in layout.present))
        )
        if fits:
            return layout
    return None


def _walk(verdict: _Verdicts, layout: Layout, base: BaseModel, contents: Contents, names: Sequence[str]) -> Verdict:
    names_of = key_map(layout, base)
    pairs = pairs_of(layout, base)
    known = _known(layout, contents, pairs, names_of)
    why = _refused(layout, contents, names, names_of, known) or misfit(layout, base, contents, pairs, known)
    ranks = _listed(layout, contents, names_of, known)
    dropped = tuple(name for name in names if name not in ranks)
    if not why and dropped and layout.strict:
        why = f"{layout.strict} ({dropped[0]})"
    if not why and layout.alpha.conflict and contents.alphas and contents.in_header:
        why = layout.alpha.conflict
    if why:
        return verdict.of("refuses", reason=why)
    return verdict.of(
        "all" if not dropped else "some" if ranks else "none",
        loaded=len(ranks),
        dropped=dropped,
        ratios=ratios_of(layout, contents, names_of, ranks) or (1.0,),
        ignored=tuple(what for pattern, what in layout.ignores if any(map(pattern.fullmatch, contents.shapes))),
    )


def _listed(
    layout: Layout, contents: Contents, names_of: Mapping[str, Sequence[str]], ranks: Mapping[str, int]
) -> Mapping[str, int]:
    """The names whose modules the tool loads, of those that it knows."""
    if not layout.alpha.targets or contents.targets is None:
        return ranks
    # peft makes a text encoder's layers where the header has them, a denoiser's where the file has them.
    parts = {part for part in contents.targets if part.startswith("text_encoder")}
    modules = {name: names_of[name][0] for name in ranks}
    other = [n for n, m in modules.items() if m.partition(".")[0] in parts and not is_target(m, contents)]
    return {name: rank for name, rank in ranks.items() if name not in other}


def _known(
    layout: Layout,
    contents: Contents,
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    names_of: Mapping[str, Sequence[str]],
) -> dict[str, int]:
    """The names that the tool knows, with their ranks."""
    shapes = contents.shapes
    unmet = [rule for rule in layout.requires if not rule.why and not any(map(rule.needed.fullmatch, shapes))]
    ranks: dict[str, int] = {}
    for name in contents.names:
        for up, down in pairs.get(name, ()):
            whole = f"{name}{up}" in shapes and f"{name}{down}" in shapes
            if whole and not any(rule.name.fullmatch(f"{name}{down}") for rule in unmet):
                ranks.setdefault(name, rank_of(shapes, name, down))
    for displaced, by in layout.displaced:
        if any(map(by.fullmatch, contents.names)):
            ranks = {name: rank for name, rank in ranks.items() if not displaced.fullmatch(name)}
    for name in _apart(layout, names_of, ranks, refused=False):
        del ranks[name]
    return ranks


def _refused(
    layout: Layout,
    contents: Contents,
    names: Sequence[str],
    names_of: Mapping[str, Sequence[str]],
    ranks: Mapping[str, int],
) -> str:
    """Why the tool refuses the file for its names, "" if it does not."""
    for refusal in layout.refusals:
        for name in contents.shapes:
            if refusal.name.fullmatch(name) and (
                not refusal.beside or any(map(refusal.beside.fullmatch, contents.shapes))
            ):
                return f"{refusal.why} ({name})"
    for rule in layout.requires:
        concerned = rule.why and any(map(rule.name.fullmatch, contents.shapes))
        if concerned and not any(map(rule.needed.fullmatch, contents.shapes)):
            return rule.why
    for name in _apart(layout, names_of, ranks, refused=True):
        endings = next(group.endings for group in layout.together if group.modules.fullmatch(names_of[name][0]))
        return f"it takes {', '.join(endings)} of a layer only together ({name})"
    for pattern, why in layout.unmatched:
        concerned = [name for name in names if pattern.fullmatch(name)]
        if concerned and not any(name in ranks for name in concerned):
            return f"{why} ({concerned[0]})"
    return ""


def _apart(
    layout: Layout, names_of: Mapping[str, Sequence[str]], ranks: Mapping[str, int], *, refused: bool
) -> list[str]:
    """Names of modules that are taken only in a set, of sets with gaps."""
    modules = {module for name in ranks for module in names_of[name]}
    apart = []
    for group in layout.together:
        for name in ranks if group.refused == refused else ():
            match = group.modules.fullmatch(names_of[name][0])
            if match and len(names_of[name]) == 1 and not {f"{match[1]}.{end}" for end in group.endings} <= modules:
                apart.append(name)
    return apart
