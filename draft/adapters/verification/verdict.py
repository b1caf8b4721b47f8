"""What one tool makes of one file: which modules it loads, and how strong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from draft.adapters.verification.contents import Contents
from draft.adapters.verification.models import BaseModel
from draft.adapters.verification.strengths import ratios_of
from draft.adapters.verification.tools import Layout, Recognition, Tool, key_map

Status = Literal["all", "some", "none", "refuses", "unknown"]

# A tensor's name without the module: every ending that some tool knows.
_ENDING = re.compile(
    r"(?P<name>.+?)(?:(?:\.lora|_lora|\.lora_linear_layer)\.(?:down|up)\.weight|\.lora_(?:down|up)\.weight"
    r"|\.lora_[AB](?:\.\w+)?\.weight|\.alpha|:(?:up|down|alpha))"
)


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
    """

    tool: str
    version: str
    status: Status
    loaded: int
    modules: int
    dropped: tuple[str, ...] = ()
    reason: str = ""
    ratios: tuple[float, ...] = (1.0,)

    @property
    def right(self) -> bool:
        """Whether the tool loads everything at the strength that the file means."""
        return self.status == "all" and all(abs(ratio - 1) < 1e-3 for ratio in self.ratios)


def judge(tool: Tool, base: BaseModel, contents: Contents) -> Verdict:
    """Walk a file through a tool's key map.

    Args:
        tool: The tool.
        base: The base model that the file is for.
        contents: The file.

    Returns:
        The verdict.
    """
    names = tuple(dict.fromkeys(match["name"] for name in contents.shapes if (match := _ENDING.fullmatch(name))))
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
    ) -> Verdict:
        return Verdict(self.tool.name, self.tool.version, status, loaded, self.modules, dropped, reason, ratios)


def _mistaken(recognition: Recognition, base: BaseModel, contents: Contents) -> str:
    """Why the tool takes the file for another base model, or "" if it does not."""
    bases: tuple[str, ...] = ()
    for name, shape in contents.shapes.items():
        if any(pattern.fullmatch(name) for pattern in recognition.widths):
            bases = recognition.bases.get(shape[1], ())
            break
    else:
        widths = [
            next((shape[1] for name, shape in contents.shapes.items() if pattern.fullmatch(name)), None)
            for pattern in recognition.sums
        ]
        if widths and None not in widths:
            bases = recognition.bases.get(sum(width or 0 for width in widths), ())
        elif any(recognition.deep.fullmatch(name) for name in contents.shapes):
            bases = recognition.deep_bases
    if not bases:
        return recognition.otherwise
    return "" if base.key in bases else f"it takes the file for another base model ({', '.join(bases)})"


def _layout(tool: Tool, base: BaseModel, contents: Contents) -> Layout | None:
    """The first layout of the tool that the file is of."""
    for layout in tool.layouts:
        fits = (
            base.key in layout.bases
            and (layout.every is None or all(layout.every.fullmatch(name) for name in contents.shapes))
            and (layout.some is None or any(layout.some.fullmatch(name) for name in contents.shapes))
            and (not layout.present or any(contents.shapes.keys() >= set(names) for names in layout.present))
        )
        if fits:
            return layout
    return None


def _walk(verdict: _Verdicts, layout: Layout, base: BaseModel, contents: Contents, names: Sequence[str]) -> Verdict:
    for pattern, why, other in layout.refusals:
        for name in contents.shapes:
            if pattern.fullmatch(name) and (other is None or any(map(other.fullmatch, contents.shapes))):
                return verdict.of("refuses", reason=f"{why} ({name})")
    names_of = key_map(layout, base)
    ranks: dict[str, int] = {}
    for name in names:
        for up, down in layout.pairs:
            if name in names_of and f"{name}{up}" in contents.shapes and f"{name}{down}" in contents.shapes:
                ranks.setdefault(name, contents.shapes[f"{name}{down}"][0])
    modules = {module for name in ranks for module in names_of[name]}
    for one, needed, why in layout.requires:
        if any(map(one.fullmatch, modules)) and not any(map(needed.fullmatch, modules)):
            return verdict.of("refuses", reason=why)
    for together in layout.together:
        for name in list(ranks):
            match = together.modules.fullmatch(names_of[name][0])
            if match and len(names_of[name]) == 1 and not {f"{match[1]}.{end}" for end in together.endings} <= modules:
                if together.refused:
                    listed = ", ".join(together.endings)
                    return verdict.of("refuses", reason=f"it takes {listed} of a layer only together ({name})")
                del ranks[name]
    dropped = tuple(name for name in names if name not in ranks)
    if dropped and layout.strict:
        return verdict.of("refuses", reason=f"{layout.strict} ({dropped[0]})")
    if layout.conflict and contents.alphas and contents.in_header:
        return verdict.of("refuses", reason=layout.conflict)
    status: Status = "all" if not dropped else "some" if ranks else "none"
    ratios = ratios_of(layout, contents, names_of, ranks)
    return verdict.of(status, loaded=len(ranks), dropped=dropped, ratios=ratios or (1.0,))
