"""What can be said of an adapter file: whether it is intact, for which model, and what each tool makes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from draft.adapters.changes import Changes
from draft.adapters.factors import Adapter
from draft.adapters.files.formats import read_changes
from draft.adapters.files.header import read_header
from draft.adapters.verification.contents import Contents, contents_of, kinds_of
from draft.adapters.verification.models import BaseModel, base_models
from draft.adapters.verification.remedy import tools_by_format
from draft.adapters.verification.tools import last_release, release, tools
from draft.adapters.verification.verdict import Verdict, judge
from draft.files import sha256, weights_file

# Entries that hold the sha256 of the bytes after the header.
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash")


@dataclass(frozen=True)
class Verification:
    """What was found about a file.

    Args:
        path: The file, or peft folder.
        digest: Its sha256 (a folder's: of its tensors).
        family: The family of the adapter.
        base: The base model whose modules it has; None if it is for none that is known.
        modules: How many modules it changes.
        kinds: How many of them are changed as a `LoRA`, `LoCon` with a core, `LoHa`, `LoKr` or `DoRA`.
        strange: Modules that the base model does not have, or has in another shape.
        verdicts: What each tool makes of it; empty without a base model.
        older: What older releases of the tools make of it, where that is something else.
        hashes: For every hash in its header whether it is that of the tensors.
        recipe: Its `draft.recipe`, if it has one.
        formats: Where it is not right everywhere: in which tools it would be, by the format of `draft convert`.
    """

    path: Path
    digest: str
    family: str
    base: BaseModel | None
    modules: int
    kinds: Mapping[str, int]
    strange: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    hashes: Mapping[str, bool]
    recipe: Mapping[str, Any] | None
    formats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    older: tuple[Verdict, ...] = ()

    @property
    def known(self) -> bool:
        """Whether the file could be checked."""
        return self.base is not None

    @property
    def right(self) -> bool:
        """Whether it is intact and every tool that knows its family loads all of it at the right strength."""
        tools_right = all(verdict.right for verdict in self.verdicts if verdict.status != "unknown")
        return self.known and tools_right and not self.strange and all(self.hashes.values())


def verify(path: Path) -> Verification:
    """Check a file's integrity and walk it through the key map of every tool; no model is loaded.

    Reading it proves that its container adds up, its numbers are finite, its factors agree in rank and no module is
    there twice. The base model is the one that has most of the file's modules in the right shapes; with fewer than half
    of them in any, none.

    Args:
        path: A `.safetensors` file, or a peft folder.

    Returns:
        What was found.

    Raises:
        StageError: The file cannot be read as an adapter.

    Example:
        >>> verify(Path("pony.safetensors")).right  # doctest: +SKIP
        True
    """
    adapter = read_changes(path, dora=True)
    file = weights_file(path)
    base = base_model(adapter)
    strange: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    older: tuple[Verdict, ...] = ()
    if base is not None:
        strange = tuple(name for name, change in adapter.modules.items() if not base.fits(name, change))
        contents = contents_of(file, adapter)
        verdicts = tuple(judge(tool, base, contents) for tool in tools())
        older = older_verdicts(verdicts, base, contents)
    verification = Verification(
        path=path,
        digest=sha256(file),
        family=adapter.family,
        base=base,
        modules=len(adapter.modules),
        kinds=kinds_of(read_header(file).tensors),
        strange=strange,
        verdicts=verdicts,
        hashes=_hashes(file, adapter.metadata),
        recipe=_recipe(adapter.metadata),
        older=older,
    )
    if base is None or verification.right or "DoRA" in verification.kinds:
        return verification
    return replace(verification, formats=tools_by_format(adapter, base))


def older_verdicts(verdicts: Sequence[Verdict], base: BaseModel, contents: Contents) -> tuple[Verdict, ...]:
    """What older releases make of a file, where it is something else than what the newest does.

    Args:
        verdicts: Those of the newest releases, in the order of `tools()`.
        base: The base model that the file is for.
        contents: The file.

    Returns:
        Verdicts whose version is a span of releases, those that agree in one, newest first.
    """
    differing: list[Verdict] = []
    for tool, newest in zip(tools(), verdicts, strict=True):
        usual: dict[str, Verdict] = {}
        spans: dict[str, list[Verdict]] = {}
        for entry in tool.older:
            verdict = judge(entry, base, contents)
            if not entry.beside:
                usual[entry.version] = verdict
            if _same(verdict, usual.get(entry.version, newest) if entry.beside else newest):
                continue
            listed = spans.setdefault(entry.beside, [])
            if listed and _same(listed[-1], verdict) and _adjacent(verdict.version, listed[-1].version):
                first, last = verdict.version.partition(" to ")[0], listed[-1].version.rpartition(" to ")[2]
                listed[-1] = replace(verdict, version=f"{first} to {last}")
            else:
                listed.append(verdict)
        for beside, listed in sorted(spans.items()):
            ending = f" with {beside}" if beside else ""
            differing += [replace(verdict, version=f"{verdict.version}{ending}") for verdict in listed]
    return tuple(differing)


def _same(one: Verdict, other: Verdict) -> bool:
    return replace(one, version="") == replace(other, version="")


def _adjacent(earlier: str, later: str) -> bool:
    """Whether a span of releases ends where another begins."""
    major, minor = last_release(earlier)
    return (major, minor + 1) == release(later.partition(" to ")[0])


def base_model(adapter: Adapter | Changes) -> BaseModel | None:
    """The base model that has most of an adapter's modules in its shapes; of equals the first.

    Args:
        adapter: Any adapter.

    Returns:
        The model, or None if no model of its family has half of the modules.
    """
    best, most = None, 0
    for model in base_models():
        if model.family == adapter.family:
            count = sum(model.fits(name, change) for name, change in adapter.modules.items())
            if count > most:
                best, most = model, count
    return best if 2 * most >= len(adapter.modules) else None


def _hashes(file: Path, metadata: Mapping[str, str]) -> dict[str, bool]:
    recorded = {name: metadata[name].lower().removeprefix("0x") for name in _HASHES if metadata.get(name)}
    if not recorded:
        return {}
    digest = sha256(file, skip=read_header(file).size)
    return {name: value == digest for name, value in recorded.items()}


def _recipe(metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    try:
        recipe = json.loads(metadata.get("draft.recipe", "null"))
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None
