"""The tools that load LoRA files: which names each of them knows and how it takes alpha, out of `data/tools`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from draft.adapters.verification.models import BaseModel, data

NAMES = ("diffusers", "comfyui", "a1111", "invokeai")


@dataclass(frozen=True)
class Spelling:
    """One way to write the names of a part's modules.

    Args:
        template: With `{path}` (the module's path within its part), `{flat}` (the same with underscores), `{processor}`
            (as the old attention processors had it), `{original}` and `{original_flat}` (the original code's path).
        only: Modules that it is known for, a pattern of whole paths within the part.
        apart: Modules that it is not known for, another pattern.
    """

    template: str
    only: re.Pattern[str] | None = None
    apart: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Together:
    """Modules that a tool takes only as a set.

    Args:
        modules: A pattern of whole module paths with one group, what the set has in common.
        endings: The last components of the set's members.
        refused: Whether a set with gaps makes the tool refuse the file; else it leaves the set out.
    """

    modules: re.Pattern[str]
    endings: tuple[str, ...]
    refused: bool


@dataclass(frozen=True, eq=False)
class Layout:
    """A kind of file that a tool tells from others, and how it reads it.

    Args:
        name: What the kind is called.
        bases: Keys of the base models it is known for.
        every: All tensor names must match this to be of the kind.
        some: At least one tensor name must match this to be of the kind.
        present: Of one of these sets, every tensor must be there.
        refusals: Pattern and reason: a tensor name that matches makes the tool refuse the file, where there is a third
            pattern only if another name matches that.
        requires: Pattern, pattern and reason: where a module matches the first, one must match the second.
        spellings: Per part of the pipeline the spellings known.
        pairs: Endings of the names of B and of A.
        alpha_tensor: Whether `.alpha` tensors are read.
        alpha_metadata: Whether `lora_adapter_metadata` in the header is read.
        alpha_uneven: Modules that get their part's most common alpha instead of their own where alphas differ.
        alpha_folded: Whether they are multiplied into the factors, so that any other scale comes on top.
        alpha_first: Whether, without any alpha, every module of a part gets the rank of its first as alpha.
        conflict: Why the tool refuses a file that has alphas in both places; "" if it does not.
        together: Modules taken only as a set.
        strict: Why the tool refuses a file with names it does not know; "" if it leaves them out.
    """

    name: str
    bases: tuple[str, ...]
    every: re.Pattern[str] | None
    some: re.Pattern[str] | None
    present: tuple[tuple[str, ...], ...]
    refusals: tuple[tuple[re.Pattern[str], str, re.Pattern[str] | None], ...]
    requires: tuple[tuple[re.Pattern[str], re.Pattern[str], str], ...]
    spellings: Mapping[str, tuple[Spelling, ...]]
    pairs: tuple[tuple[str, str], ...]
    alpha_tensor: bool
    alpha_metadata: bool
    alpha_uneven: re.Pattern[str] | None
    alpha_folded: bool
    alpha_first: bool
    conflict: str
    together: tuple[Together, ...]
    strict: str


@dataclass(frozen=True)
class Recognition:
    """How a tool guesses the base model from a file before it reads it.

    Args:
        widths: Pattern of tensor names; the first tensor that matches one, in the file's order, decides by its second
            size.
        bases: That size to the keys of base models.
        sums: Patterns of which each must match a tensor; their second sizes are added up.
        deep: A tensor whose name matches this means one of `deep_bases`.
        deep_bases: Keys of base models.
        otherwise: Why a file that it cannot tell is refused.
    """

    widths: tuple[re.Pattern[str], ...]
    bases: Mapping[int, tuple[str, ...]]
    sums: tuple[re.Pattern[str], ...]
    deep: re.Pattern[str]
    deep_bases: tuple[str, ...]
    otherwise: str


@dataclass(frozen=True)
class Tool:
    """A program that loads LoRA files.

    Args:
        name: What it is called.
        version: The version whose source was read.
        layouts: The kinds of files it reads, tried in this order.
        unknown: Per family that it has no LoRA for, what to say.
        otherwise: Per family, why it refuses a file that is of none of its layouts; without an entry nothing is loaded.
        recognition: How it guesses the base model, for the families given there.
        older: The same tool as older releases read files, the newest of them first, where they differ.
    """

    name: str
    version: str
    layouts: tuple[Layout, ...]
    unknown: Mapping[str, str]
    otherwise: Mapping[str, str]
    recognition: Mapping[str, Recognition]
    older: tuple[Tool, ...] = ()


@cache
def tools() -> tuple[Tool, ...]:
    """All tools that Draft has a key map of.

    Returns:
        The tools; each data file says which sources were read, and when.
    """
    return tuple(_with_older(json.loads(data(f"tools/{name}.json"))) for name in NAMES)


def as_of(tool: Tool, version: str) -> Tool:
    """A tool as one of its releases reads files.

    Args:
        tool: The tool.
        version: The release.

    Returns:
        The entry of `older` that the release is in; the tool itself for later ones, the oldest for earlier ones.
    """
    entries = [(release(older.version.partition(" to ")[2] or older.version), older) for older in tool.older]
    return next((older for last, older in reversed(entries) if release(version) <= last), tool)


@cache
def key_map(layout: Layout, base: BaseModel) -> dict[str, tuple[str, ...]]:
    """Every name that stands for a module of a base model in a layout, without the ending.

    Args:
        layout: The layout.
        base: The model.

    Returns:
        Module paths by name; several where the original code has them in one matrix.
    """
    modules_by_name: dict[str, list[str]] = {}
    for module in base.modules:
        part, _, path = module.partition(".")
        words = {"path": path, "flat": path.replace(".", "_"), "processor": _processor(path)}
        if module in base.original:
            words |= {"original": base.original[module], "original_flat": base.original[module].replace(".", "_")}
        for spelling in layout.spellings.get(part, ()):
            if "{original" in spelling.template and "original" not in words:
                continue
            if spelling.only and not spelling.only.fullmatch(path):
                continue
            if spelling.apart and spelling.apart.fullmatch(path):
                continue
            modules = modules_by_name.setdefault(spelling.template.format(**words), [])
            if module not in modules:
                modules.append(module)
    return {name: tuple(modules) for name, modules in modules_by_name.items()}


def release(version: str) -> tuple[int, ...]:
    """What a version is compared by: `0.42.1` as (0, 42).

    Args:
        version: A version of a tool.

    Returns:
        Its first two numbers.
    """
    return tuple(int(number) for number in version.split(".")[:2])


def _with_older(document: Mapping[str, Any]) -> Tool:
    # Releases between two entries read files alike.
    starts = [*document.get("releases", ())]
    spans = [
        (start, start if _last(start, following) == release(start) else f"{start} to {_text(_last(start, following))}")
        for start, following in itertools.pairwise(starts)
    ]
    newest = document["version"]
    older = tuple(_tool(_as_of(document, start), span) for start, span in reversed(spans))
    return replace(_tool(_as_of(document, newest), newest), older=older)


def _last(start: str, following: str) -> tuple[int, ...]:
    """The release before the one in which something changed."""
    major, minor = release(following)
    return max(release(start), (major, minor - 1))


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _as_of(value: Any, version: str) -> Any:
    """The data without the entries of lists that a release does not have: those `since` a later or `until` this one."""
    if isinstance(value, dict):
        return {key: _as_of(entry, version) for key, entry in value.items()}
    if not isinstance(value, list):
        return value
    return [_as_of(entry, version) for entry in value if not isinstance(entry, dict) or _in(entry, release(version))]


def _in(entry: Mapping[str, Any], numbers: tuple[int, ...]) -> bool:
    late = "since" in entry and numbers < release(entry["since"])
    return not late and not ("until" in entry and numbers >= release(entry["until"]))


def _tool(document: Mapping[str, Any], version: str) -> Tool:
    recognition = document.get("recognises")
    return Tool(
        name=document["tool"],
        version=version,
        layouts=tuple(_layout(entry) for entry in document["layouts"]),
        unknown=document.get("unknown", {}),
        otherwise=document.get("otherwise", {}),
        recognition={family: _recognition(recognition) for family in recognition["families"]} if recognition else {},
    )


def _layout(entry: Mapping[str, Any]) -> Layout:
    # A list has one entry for the release that is read, and says the rest.
    alpha = entry.get("alpha", {})
    alpha = {key: value for part in alpha for key, value in part.items()} if isinstance(alpha, list) else alpha
    return Layout(
        name=entry["layout"],
        bases=tuple(entry["bases"]),
        every=_pattern(entry.get("every")),
        some=_pattern(entry.get("some")),
        present=tuple(tuple(names) for names in entry.get("present", ())),
        refusals=tuple(map(_refusal, entry.get("refuses", ()))),
        requires=tuple((re.compile(one), re.compile(other), why) for one, other, why in entry.get("requires", ())),
        spellings={part: tuple(map(_spelling, listed)) for part, listed in entry["spellings"].items()},
        pairs=tuple((up, down) for up, down in entry["pairs"]),
        alpha_tensor=alpha.get("tensor", False),
        alpha_metadata=alpha.get("metadata", False),
        alpha_uneven=_pattern(alpha.get("uneven")),
        alpha_folded=alpha.get("folded", False),
        alpha_first=alpha.get("first", False),
        conflict=alpha.get("conflict", ""),
        together=tuple(
            Together(re.compile(group["modules"]), tuple(group["endings"]), group["else"] == "refused")
            for group in entry.get("together", ())
        ),
        strict=entry.get("strict", ""),
    )


def _refusal(entry: Mapping[str, str]) -> tuple[re.Pattern[str], str, re.Pattern[str] | None]:
    return re.compile(entry["name"]), entry["why"], _pattern(entry.get("with"))


def _recognition(entry: Mapping[str, Any]) -> Recognition:
    return Recognition(
        widths=tuple(map(re.compile, entry["widths"])),
        bases={int(width): tuple(bases) for width, bases in entry["bases"].items()},
        sums=tuple(map(re.compile, entry["sums"])),
        deep=re.compile(entry["deep"]),
        deep_bases=tuple(entry["deep_bases"]),
        otherwise=entry["otherwise"],
    )


def _spelling(entry: str | Mapping[str, str]) -> Spelling:
    if isinstance(entry, str):
        return Spelling(entry)
    return Spelling(entry["name"], _pattern(entry.get("only")), _pattern(entry.get("except")))


def _pattern(text: str | None) -> re.Pattern[str] | None:
    return None if text is None else re.compile(text)


def _processor(path: str) -> str:
    """The path as diffusers' attention processors had it: `attn1.processor.to_q`, `attn1.processor.to_out`."""
    path = path.replace(".to_", ".processor.to_")
    return path.removesuffix(".0") if path.endswith(".to_out.0") else path
