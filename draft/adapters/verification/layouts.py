"""The kinds of files that a tool tells apart, and how it reads each, out of `data/tools`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spelling:
    """One way to write the names of a part's modules.

    Args:
        template: With `{path}` (the module's path within its part), `{flat}` (the same with underscores), `{processor}`
            (as the old attention processors had it), `{old}` (as the old text encoders had it), `{original}` and
            `{original_flat}` (the original code's path), `{xlabs}` (as XLabs' attention processors had it).
        only: Modules that it is known for, a pattern of whole paths within the part.
        apart: Modules that it is not known for, another pattern.
        pairs: Endings of the names of B and of A with which it is known; None: those of the layout.
    """

    template: str
    only: re.Pattern[str] | None = None
    apart: re.Pattern[str] | None = None
    pairs: tuple[tuple[str, str], ...] | None = None


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


@dataclass(frozen=True)
class Refusal:
    """Tensors that make a tool refuse a file.

    Args:
        name: A pattern of whole tensor names.
        why: The reason.
        beside: Another pattern that a name must match for it; None where none need to.
    """

    name: re.Pattern[str]
    why: str
    beside: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Requirement:
    """Tensors that a tool understands only beside others.

    Args:
        name: A pattern of whole tensor names.
        needed: Another one, which one of the names must match.
        why: Why the tool refuses the file without; "" if it leaves their modules out.
    """

    name: re.Pattern[str]
    needed: re.Pattern[str]
    why: str


@dataclass(frozen=True)
class Alpha:
    """How a tool takes the scale of a change.

    Args:
        tensor: Whether `.alpha` tensors are read.
        metadata: Whether `lora_adapter_metadata` in the header is read.
        pattern: Whether a part gets its most common alpha and patterns for the exceptions, as peft has it.
        leading: Whether it is the first alpha instead of the most common one.
        uneven: Modules whose alphas are lost on the way to these patterns, so that they get the most common one.
        folded: Whether alphas are multiplied into the factors, so that any other scale comes on top.
        first: Whether, without any alpha, every module of a part gets the rank of its first as alpha.
        conflict: Why the tool refuses a file that has alphas in both places; "" if it does not.
        targets: Why the tool refuses a file whose header does not name the modules of a part; "" if it does not.
        entries: Entries without which of a part in the header the tool stops.
        needed: Why the tool refuses a file with a module without `.alpha`; "" if it does not.
    """

    tensor: bool = False
    metadata: bool = False
    pattern: bool = False
    leading: bool = False
    uneven: re.Pattern[str] | None = None
    folded: bool = False
    first: bool = False
    conflict: str = ""
    targets: str = ""
    entries: tuple[str, ...] = ()
    needed: str = ""


@dataclass(frozen=True, eq=False)
class Layout:
    """A kind of file that a tool tells from others, and how it reads it.

    Args:
        name: What the kind is called.
        bases: Keys of the base models it is known for.
        every: All tensor names must match this to be of the kind.
        some: For each of these at least one tensor name must match it to be of the kind.
        present: Of one of these sets, every tensor must be there.
        refusals: Tensors that make the tool refuse the file.
        requires: Tensors that need others.
        spellings: Per part of the pipeline the spellings known.
        pairs: Endings of the names of B and of A, or of two other factors.
        alpha: How it takes the scale.
        together: Modules taken only as a set.
        order: Patterns in whose order the tool goes through the names, then by the number that is a pattern's group.
        alike: Modules whose rank must be the commonest of their part, and why the tool refuses the file otherwise.
        displaced: Names that are left out where another pattern matches one.
        unmatched: Names of one part and why the tool refuses the file if it knows none of them.
        kernels: Why the tool refuses a linear layer's factors for a 1x1 convolution and the reverse; "" if it does not.
        ignores: Tensors that it leaves out of modules that it loads, and what is lost with them.
        strict: Why the tool refuses a file with names it does not know; "" if it leaves them out.
    """

    name: str
    bases: tuple[str, ...]
    every: re.Pattern[str] | None
    some: tuple[re.Pattern[str], ...]
    present: tuple[tuple[str, ...], ...]
    refusals: tuple[Refusal, ...]
    requires: tuple[Requirement, ...]
    spellings: Mapping[str, tuple[Spelling, ...]]
    pairs: tuple[tuple[str, str], ...]
    alpha: Alpha
    together: tuple[Together, ...]
    order: tuple[re.Pattern[str], ...]
    alike: tuple[tuple[re.Pattern[str], str], ...]
    displaced: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]
    unmatched: tuple[tuple[re.Pattern[str], str], ...]
    kernels: str
    ignores: tuple[tuple[re.Pattern[str], str], ...]
    strict: str


def layout_of(entry: Mapping[str, Any]) -> Layout:
    """Take a layout from the data.

    Args:
        entry: An entry of `layouts`, without what the release in question does not have.

    Returns:
        The layout.
    """
    some = entry.get("some", ())
    return Layout(
        name=entry["layout"],
        bases=tuple(entry["bases"]),
        every=_pattern(entry.get("every")),
        some=tuple(map(re.compile, [some] if isinstance(some, str) else some)),
        present=tuple(tuple(names) for names in entry.get("present", ())),
        refusals=tuple(
            Refusal(re.compile(rule["name"]), rule["why"], _pattern(rule.get("with")))
            for rule in entry.get("refuses", ())
        ),
        requires=tuple(
            Requirement(re.compile(rule["name"]), re.compile(rule["needed"]), rule.get("why", ""))
            for rule in entry.get("requires", ())
        ),
        spellings={part: tuple(map(_spelling, listed)) for part, listed in entry["spellings"].items()},
        pairs=tuple((up, down) for up, down in entry["pairs"]),
        alpha=_alpha(entry.get("alpha", {})),
        together=tuple(
            Together(re.compile(group["modules"]), tuple(group["endings"]), group["else"] == "refused")
            for group in entry.get("together", ())
        ),
        order=tuple(map(re.compile, entry.get("order", ()))),
        alike=tuple((re.compile(rule["modules"]), rule["why"]) for rule in entry.get("alike", ())),
        displaced=tuple((re.compile(rule["name"]), re.compile(rule["by"])) for rule in entry.get("displaced", ())),
        unmatched=tuple((re.compile(rule["name"]), rule["why"]) for rule in entry.get("unmatched", ())),
        kernels=entry.get("kernels", ""),
        ignores=tuple((re.compile(rule["name"]), rule["what"]) for rule in entry.get("ignores", ())),
        strict=entry.get("strict", ""),
    )


def _alpha(entry: Mapping[str, Any] | list[Mapping[str, Any]]) -> Alpha:
    # The entries of a list are one entry in pieces, those of other releases left out.
    values = {key: value for piece in (entry if isinstance(entry, list) else [entry]) for key, value in piece.items()}
    values = {key: value for key, value in values.items() if key not in ("since", "until", "beside")}
    return Alpha(**{**values, "uneven": _pattern(values.get("uneven")), "entries": tuple(values.get("entries", ()))})


def _spelling(entry: str | Mapping[str, Any]) -> Spelling:
    if isinstance(entry, str):
        return Spelling(entry)
    pairs = tuple((up, down) for up, down in entry["pairs"]) if "pairs" in entry else None
    return Spelling(entry["name"], _pattern(entry.get("only")), _pattern(entry.get("except")), pairs)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    return None if text is None else re.compile(text)
