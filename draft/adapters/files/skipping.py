"""Tensors of an adapter file that cannot be read, left out where that is asked for, each by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from draft.adapters.changes import Skipped
from draft.adapters.files.config import Alphas
from draft.adapters.files.family import header_family
from draft.adapters.files.keys import parse_key
from draft.adapters.files.names.positional import is_numbered, is_positional
from draft.adapters.files.reading import module_change, refuse_tensor
from draft.errors import StageError

# What changes how a module's other tensors act, so that without it they would mean something else.
_SPOILING = (".dora_scale", ".lora_magnitude_vector", ".oft_", ".boft_", ".vera_lambda", ".on_input", ".ia3_l")


def without_unreadable(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    alphas: Alphas,
    patterns: Sequence[str],
    *,
    where: str,
) -> tuple[dict[str, Tensor], tuple[Skipped, ...]]:
    """Leave out the tensors that cannot be read and that a pattern names; with one of them goes what it belongs to.

    Args:
        tensors: By name.
        metadata: The file's header.
        alphas: What the file says about alpha elsewhere.
        patterns: Of tensors' names or of module paths, with or without the part; `*` matches any characters, dots too,
            and what lies under a match matches as well. What can be read is never left out.
        where: The file, for errors.

    Returns:
        The tensors that are left, of which unreadable ones are refused as ever, and those that are not.

    Raises:
        StageError: Nothing would be left.

    Example:
        A DoRA of one module: its magnitude takes A and B with it, whose product alone is not its change.
    """
    skipped: dict[str, Skipped] = {}
    for name, reason in _foreign(tensors, metadata, where=where).items():
        unit = _unit(name, tensors)
        pattern = next((p for p in patterns if any(matches(other, p) for other in unit)), None)
        for other in unit if pattern is not None else ():
            skipped.setdefault(other, Skipped(other, reason, pattern or ""))
    left = {name: tensor for name, tensor in tensors.items() if name not in skipped}
    for module, (names, reason) in _broken(left, metadata, alphas, where=where).items():
        forms = (module, module.partition(".")[2], *names)
        pattern = next((p for p in patterns if any(matches(form, p) for form in forms)), None)
        skipped |= {name: Skipped(name, reason, pattern) for name in names if pattern is not None}
    left = {name: tensor for name, tensor in tensors.items() if name not in skipped}
    if skipped and not left:
        raise StageError(f"nothing is left of the file: all {len(tensors)} tensors are skipped", where=where)
    return left, tuple(skipped[name] for name in tensors if name in skipped)


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


def _foreign(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, where: str) -> dict[str, str]:
    """Tensors whose names alone say that they cannot be read, with the reason."""
    numbered = is_positional(tensors)
    row = header_family(metadata.get("modelspec.architecture", ""))
    reasons: dict[str, str] = {}
    for name in tensors:
        try:
            refuse_tensor(name, where)
        except StageError as error:
            reasons[name] = error.what.partition(" (")[0]
            continue
        if not is_numbered(name) if numbered else parse_key(name, part=row.part if row else "") is None:
            reasons[name] = "its name is not understood"
    return reasons


def _unit(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The tensors that mean nothing without one, itself first."""
    mark = next((mark for mark in _SPOILING if mark in name), None)
    if mark is None:
        return [name]
    stem = name[: name.index(mark) + 1]
    return [name, *(other for other in tensors if other.startswith(stem) and other != name)]


def _broken(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], alphas: Alphas, *, where: str
) -> dict[str, tuple[list[str], str]]:
    """Modules whose tensors do not make a change, with these and the reason; nothing for tensors that are numbered."""
    if is_positional(tensors):
        return {}
    row = header_family(metadata.get("modelspec.architecture", ""))
    grouped: dict[str, dict[str, str]] = {}
    for name in tensors:
        key = parse_key(name, part=row.part if row else "")
        if key is not None:
            grouped.setdefault(key.module, {})[key.role] = name
    broken: dict[str, tuple[list[str], str]] = {}
    for module, names in grouped.items():
        try:
            module_change(module, {role: tensors[name] for role, name in names.items()}, alphas, where=where)
        except StageError as error:
            broken[module] = (list(names.values()), error.what)
    return broken


def with_skip(error: StageError) -> StageError:
    """An error about one tensor, with how to leave it out in its hint.

    Args:
        error: Why a file cannot be read.

    Returns:
        The same error, with a longer hint if it names a tensor among others.
    """
    match = re.search(r"tensor ('[^']*')", error.what)
    if match is not None and not error.what.startswith("not a LoRA"):
        more = f"--skip {match[1]} leaves it out"
        error.hint = f"{error.hint}; {more}" if error.hint else more
    return error
