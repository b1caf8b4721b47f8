"""The tools that load LoRA files: which names each of them knows and how it takes alpha, out of `data/tools`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from draft.adapters.verification.layouts import Layout, layout_of
from draft.adapters.verification.models import data

NAMES = ("diffusers", "comfyui", "a1111", "invokeai")


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
        beside: The library beside which it reads files like this, "" for any.
        older: The same tool as older releases read files, the newest of them first, where they differ.
    """

    name: str
    version: str
    layouts: tuple[Layout, ...]
    unknown: Mapping[str, str]
    otherwise: Mapping[str, str]
    recognition: Mapping[str, Recognition]
    beside: str = ""
    older: tuple[Tool, ...] = ()


@cache
def tools() -> tuple[Tool, ...]:
    """All tools that Draft has a key map of.

    Returns:
        The tools; each data file says which sources were read, and when.
    """
    return tuple(_with_older(json.loads(data(f"tools/{name}.json"))) for name in NAMES)


def as_of(tool: Tool, version: str, *, beside: str = "") -> Tool:
    """A tool as one of its releases reads files.

    Args:
        tool: The tool.
        version: The release.
        beside: A library as `Tool.beside` has it, "" for none of those that make a difference.

    Returns:
        The entry of `older` that the release is in; the tool itself for later ones, the oldest for earlier ones.
    """
    wanted = release(version)
    exact = [
        e for e in tool.older if e.beside == beside and first_release(e.version) <= wanted <= last_release(e.version)
    ]
    usual = [entry for entry in reversed(tool.older) if not entry.beside and wanted <= last_release(entry.version)]
    return next(iter([*exact, *usual]), tool)


def first_release(span: str) -> tuple[int, ...]:
    """The first of some releases, `0.37 to 0.38` or one, as `release` has it."""
    return release(span.partition(" to ")[0])


def last_release(span: str) -> tuple[int, ...]:
    """The last of some releases, `0.37 to 0.38` or one, as `release` has it."""
    return release(span.rpartition(" to ")[2])


def release(version: str) -> tuple[int, ...]:
    """What a version is compared by: `0.42.1` as (0, 42).

    Args:
        version: A version of a tool.

    Returns:
        Its first two numbers.
    """
    return tuple(int(number) for number in version.split(".")[:2])


def _with_older(document: Mapping[str, Any]) -> Tool:
    newest, starts = document["version"], document.get("releases", [])
    # Releases between two entries read files alike.
    spans = [(start, _last(start, following)) for start, following in itertools.pairwise(starts)]
    older = []
    for start, last in [*spans, *[(start, release(newest)) for start in starts[-1:]]][::-1]:
        span = start if last == release(start) else f"{start} to {_text(last)}"
        libraries = [rule["name"] for rule in document.get("beside", ()) if _in(rule, last, rule.get("beside", ""))]
        older += [_tool(_as_of(document, start, beside), span, beside) for beside in ("", *libraries)]
    # The last span is that of the newest release, of which only what is beside a library differs.
    older = [entry for entry in older if entry.beside or last_release(entry.version) != release(newest)]
    return replace(_tool(_as_of(document, newest, ""), newest, ""), older=tuple(older))


def _last(start: str, following: str) -> tuple[int, ...]:
    """The release before the one in which something changed."""
    major, minor = release(following)
    return max(release(start), (major, minor - 1))


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _as_of(value: Any, version: str, beside: str) -> Any:
    """The data without the entries of lists that a release does not have: those `since` a later or `until` this one.

    Entries `beside` a library are those of a release beside that library.
    """
    if isinstance(value, dict):
        return {key: _as_of(entry, version, beside) for key, entry in value.items()}
    if not isinstance(value, list):
        return value
    kept = [entry for entry in value if not isinstance(entry, dict) or _in(entry, release(version), beside)]
    return [_as_of(entry, version, beside) for entry in kept]


def _in(entry: Mapping[str, Any], numbers: tuple[int, ...], beside: str) -> bool:
    late = "since" in entry and numbers < release(entry["since"])
    early = "until" in entry and numbers >= release(entry["until"])
    return not late and not early and entry.get("beside", beside) == beside


def _tool(document: Mapping[str, Any], version: str, beside: str) -> Tool:
    recognition = document.get("recognises")
    return Tool(
        name=document["tool"],
        version=version,
        layouts=tuple(layout_of(entry) for entry in document["layouts"]),
        unknown=document.get("unknown", {}),
        otherwise=document.get("otherwise", {}),
        recognition={family: _recognition(recognition) for family in recognition["families"]} if recognition else {},
        beside=beside,
    )


def _recognition(entry: Mapping[str, Any]) -> Recognition:
    return Recognition(
        widths=tuple(map(re.compile, entry["widths"])),
        bases={int(width): tuple(bases) for width, bases in entry["bases"].items()},
        sums=tuple(map(re.compile, entry["sums"])),
        deep=re.compile(entry["deep"]),
        deep_bases=tuple(entry["deep_bases"]),
        otherwise=entry["otherwise"],
    )
