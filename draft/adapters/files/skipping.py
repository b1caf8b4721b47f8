"""Tensors of an adapter file that cannot be read, left out where that is asked for, each by its name. No torch."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from draft.adapters.files.family import header_family
from draft.adapters.files.grouping import SCALES, check_module, refuse_tensor
from draft.adapters.files.header import Header, TensorInfo
from draft.adapters.files.keys import parse_key
from draft.adapters.files.names.positional import is_numbered, is_positional
from draft.adapters.skipped import Skipped
from draft.errors import StageError

# What changes how a module's other tensors act, so that without it they would mean something else.
_SPOILING = (".dora_scale", ".lora_magnitude_vector", ".oft_", ".boft_", ".vera_lambda", ".on_input", ".ia3_l")


def without_unreadable(
    header: Header, patterns: Sequence[str], *, where: str, dora: bool = False
) -> tuple[Header, tuple[Skipped, ...]]:
    """Leave out the tensors that cannot be read and that a pattern names; with one of them goes what it belongs to.

    Args:
        header: The file's header.
        patterns: Of tensors' names or of module paths, with or without the part; `*` matches any characters, dots too,
            and what lies under a match matches as well. What can be read is never left out.
        where: The file, for errors.
        dora: Whether DoRA's magnitudes can be read.

    Returns:
        The header of what is left, of which unreadable tensors are refused as ever, and those that are not in it.

    Raises:
        StageError: Nothing would be left.

    Example:
        A DoRA of one module: its magnitude takes A and B with it, whose product alone is not its change.
    """
    if not patterns:
        return header, ()
    skipped: dict[str, Skipped] = {}
    for name, reason in _foreign(header, where=where, dora=dora).items():
        unit = _unit(name, header.tensors)
        pattern = named_by(unit, patterns)
        for other in unit if pattern is not None else ():
            skipped.setdefault(other, Skipped(other, reason, pattern or ""))
    for module, (names, reason) in _broken(header, skipped, where=where).items():
        pattern = named_by((module, module.partition(".")[2], *names), patterns)
        skipped |= {name: Skipped(name, reason, pattern) for name in names if pattern is not None}
    left = {name: info for name, info in header.tensors.items() if name not in skipped}
    if skipped and not left:
        what = f"nothing is left of the file: all {len(header.tensors)} tensors are skipped"
        raise StageError(what, where=where)
    return replace(header, tensors=left), tuple(skipped[name] for name in header.tensors if name in skipped)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a tensor or a module, or what it is in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def refuse_idle(patterns: Iterable[str], skipped: Iterable[Skipped]) -> None:
    """Refuse patterns that left nothing out.

    Args:
        patterns: All that were given.
        skipped: What was left out of all files.

    Raises:
        StageError: One of them had no effect.
    """
    used = {each.pattern for each in skipped}
    for pattern in patterns:
        if pattern not in used:
            raise StageError(
                f"no tensor that cannot be read matches the skip {pattern!r}",
                hint="only what cannot be read is skipped; --block PATTERN=0 leaves out modules that can",
            )


def named_by(names: Iterable[str], patterns: Sequence[str]) -> str | None:
    """The first pattern that matches one of several names of tensors or modules; None: none does."""
    return next((pattern for pattern in patterns if any(matches(name, pattern) for name in names)), None)


def _foreign(header: Header, *, where: str, dora: bool) -> dict[str, str]:
    """Tensors whose names alone say that they cannot be read, with the reason."""
    numbered = is_positional(header.tensors)
    row = header_family(header.metadata.get("modelspec.architecture", ""))
    reasons: dict[str, str] = {}
    for name in header.tensors:
        try:
            refuse_tensor(name, where, dora=dora)
        except StageError as error:
            reasons[name] = error.what.partition(" (")[0]
            continue
        if not is_numbered(name) if numbered else parse_key(name, part=row.part if row else "") is None:
            reasons[name] = "its name is not understood"
    return reasons


def _unit(name: str, tensors: Iterable[str]) -> list[str]:
    """The tensors that mean nothing without one, itself first."""
    if name.endswith(SCALES):  # without them the numbers would mean something else: the module goes, or all of the file
        module = re.split(r"\.(?:lora_|hada_|lokr_)", name)[0]
        return [name, *(o for o in tensors if o != name and (o.startswith(f"{module}.") or "." not in name))]
    mark = next((mark for mark in _SPOILING if mark in name), None)
    if mark is None:
        return [name]
    stem = name[: name.index(mark) + 1]
    return [name, *(other for other in tensors if other.startswith(stem) and other != name)]


def _broken(header: Header, gone: Container[str], *, where: str) -> dict[str, tuple[list[str], str]]:
    """Modules whose tensors cannot be factors, with these and the reason; of numbered tensors none."""
    if is_positional(header.tensors):
        return {}
    row = header_family(header.metadata.get("modelspec.architecture", ""))
    grouped: dict[str, dict[str, TensorInfo]] = {}
    for name, info in header.tensors.items():
        key = None if name in gone else parse_key(name, part=row.part if row else "")
        if key is not None:
            grouped.setdefault(key.module, {})[key.role] = info
    broken: dict[str, tuple[list[str], str]] = {}
    for module, parts in grouped.items():
        try:
            check_module(module, parts, where)
        except StageError as error:
            broken[module] = ([info.name for info in parts.values()], error.what)
    return broken


def with_skip(error: StageError) -> None:
    """Add to the hint of an error about one tensor how to leave that out.

    Args:
        error: Why a file cannot be read.
    """
    match = re.search(r"tensor ('[^']*')", error.what)
    if match is not None and not error.what.startswith("not a LoRA"):
        more = f"--skip {match[1]} leaves it out"
        error.hint = f"{error.hint}; {more}" if error.hint else more
