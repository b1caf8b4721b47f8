"""What the packages of a stage's rewards come to: name, version, digests of code and data; and what differs there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draft.digests import code_digest, remembered_sha256
from draft.pipeline.isolated import packages_of, source_files
from draft.pipeline.kinds.kind import CheckedStage
from draft.rewards.packages import Package, reached


def stage_packages(stage: CheckedStage) -> dict[str, dict[str, str]]:
    """What the packages of a stage's rewards come to, by the dotted keys that lead to each reward."""
    return {
        ".".join((term.label, *keys)): package_identity(package)
        for term in stage.every_term
        for keys, package in packages_of(term.reward).items()
    }


def packages_from_sources(sources: Mapping[str, Any], stage: CheckedStage) -> dict[str, dict[str, Any]]:
    """Packages for a record that has digests of the rewards' sources alone.

    Args:
        sources: Label to what `source_digest` gave.
        stage: The stage that the record is compared with.

    Returns:
        Label to the package as it is now; its `code` is another one where the sources have changed.
    """
    files = {
        ".".join((term.label, *keys)): file
        for term in stage.every_term
        for keys, file in source_files(term.reward).items()
    }
    same = {label for label, file in files.items() if sources.get(label) == source_digest(file)}
    packages = stage_packages(stage)
    return {
        label: {**packages.get(label, {}), **({} if label in same else {"code": digest})}
        for label, digest in sources.items()
    }


def package_differences(old: Any, new: Any) -> list[str]:
    """What differs between the packages of two identities, in words: `reward package changed: glow (a 1.2 -> a 1.3)`.

    Args:
        old: Label to package.
        new: Label to package.

    Returns:
        The reasons; none for a reward that only one of them has.
    """
    before, after = (packages if isinstance(packages, Mapping) else {} for packages in (old, new))
    both = [(label, before[label], after[label]) for label in after if isinstance(before.get(label), Mapping)]
    others = [f"{label} ({_named(a)} -> {_named(b)})" for label, a, b in both if _named(a) != _named(b)]
    reasons = [f"reward package changed: {', '.join(others)}"] if others else []
    for part, text in (("code", "reward source changed"), ("data", "reward files changed")):
        if edited := [label for label, a, b in both if a.get(part) != b.get(part)]:
            reasons.append(f"{text}: {', '.join(edited)}")
    return reasons


def package_identity(package: Package) -> dict[str, str]:
    """What a reward's result depends on of its package.

    Comments, docstrings and layout of Python files do not count, every byte of other files does.

    Args:
        package: What the reward is installed as.

    Returns:
        `name` and `version` where they count, the sha256 of its `code`, and of its `data` where it has any.
    """
    code = {name: path for name, path in package.files.items() if path.suffix == ".py"}
    data = {name: path for name, path in package.files.items() if path.suffix != ".py"}
    parts = {"name": package.name, "version": package.version}
    parts |= {"code": _joint({name: code_digest(path) for name, path in code.items()})}
    if data:
        parts["data"] = _joint({name: remembered_sha256(path) for name, path in data.items()})
    return {key: value for key, value in parts.items() if value}


def source_digest(module: Path) -> str:
    """The sha256 of a module's source and of those of its own folder that it imports, directly or not.

    Records held this before they held `package_identity`.

    Args:
        module: The module's file.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for file in reached(module):
        digest.update(f"{file.name}\0".encode())
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def _named(package: Mapping[str, Any]) -> str:
    return " ".join(str(package[key]) for key in ("name", "version") if package.get(key)) or "no package"


def _joint(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{name}\0{digests[name]}\0" for name in sorted(digests))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()
