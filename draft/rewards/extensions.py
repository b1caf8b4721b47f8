"""What a run needs besides rewards: named models, model families and observers, loaded survivably."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from draft.errors import PluginError, PluginWarning
from draft.family import Family
from draft.files import sha256
from draft.rewards.discovery import EXTENSIONS, entries
from draft.rewards.hookspecs import NamedModel
from draft.rewards.loading import new_manager, register

Row = TypeVar("Row", NamedModel, Family)


def extensions() -> pluggy.PluginManager:
    """Load the plugins of the group `draft.extensions`; a broken one is a warning that names it.

    Returns:
        A plugin manager whose hooks are `draft_models`, `draft_families`, `draft_stage_started` and
        `draft_stage_finished`.
    """
    manager = new_manager()
    for entry in entries(EXTENSIONS):
        try:
            register(manager, entry)
        except PluginError as error:
            warnings.warn(f"{error.what}; going on without it", PluginWarning, stacklevel=2)
    return manager


def named_models() -> dict[str, NamedModel]:
    """The models that pipelines may name.

    Returns:
        Name to model, sorted; where two plugins use one name, both appear as ``"distribution:name"`` only.
    """
    offered = _offered()
    names = [model.name for _, model in offered]
    keyed = {(m.name if names.count(m.name) == 1 else f"{dist}:{m.name}"): m for dist, m in offered}
    return dict(sorted(keyed.items()))


def model_path(name: str) -> str:
    """Where a model is: a registered name becomes its folder, anything else stays as it is.

    Args:
        name: A registered name (`draft models`), a hub id, a folder or a file.

    Returns:
        The folder of a registered name, else `name` itself.

    Raises:
        PluginError: Two plugins offer a model of that name, or a file of it is missing or damaged.
    """
    model = named_model(name)
    if model is None:
        return name
    _verify(model)
    return str(model.path)


def named_model(name: str) -> NamedModel | None:
    """The model that a name means, as its plugin offers it; nothing is verified.

    Args:
        name: A registered name, or anything else.

    Returns:
        The model, or None if no plugin offers one of that name.

    Raises:
        PluginError: Two plugins do.
    """
    found = [(dist, model) for dist, model in _offered() if name in (model.name, f"{dist}:{model.name}")]
    if len(found) > 1:
        ways = " or ".join(repr(f"{dist}:{model.name}") for dist, model in found)
        raise PluginError(f"two plugins offer a model {name!r}", hint=f"write {ways}")
    return found[0][1] if found else None


def _verify(model: NamedModel) -> None:
    for file, expected in model.sha256.items():
        try:
            state = (model.path / file).stat()
        except OSError:
            found = "missing"
        else:
            found = _digest(model.path / file, state.st_mtime_ns, state.st_size)
        if found != expected:
            what = "is missing" if found == "missing" else f"is damaged: its sha256 is {found}"
            raise PluginError(
                f"the file {file!r} of model {model.name!r} {what}, and must be {expected} (looked in {model.path})",
                hint="install the package that brings the model again",
            )


@cache
def _digest(file: Path, modified: int, size: int) -> str:
    """The sha256 of a file; read again in this process only if it has changed."""
    return sha256(file)


def offered_families() -> list[tuple[str, Family]]:
    """The model families that packages bring; `draft.diffusion.families.families` adds Draft's own.

    Returns:
        Distribution and row, in the order of their packages.
    """
    return _answers("draft_families", Family)


def _offered() -> list[tuple[str, NamedModel]]:
    return _answers("draft_models", NamedModel)


def _answers(hook: str, kind: type[Row]) -> list[tuple[str, Row]]:
    # Each implementation is called alone: in one joint call the first that raises would hide all others.
    offered: list[tuple[str, Row]] = []
    for implementation in getattr(extensions().hook, hook).get_hookimpls():
        dist = implementation.plugin_name.partition(":")[0]
        try:
            answer: Any = implementation.function()
            rows = list(answer)
            if wrong := [row for row in rows if not isinstance(row, kind)]:
                raise TypeError(f"{hook!r} must return draft.{kind.__name__} values (got {wrong[0]!r})")
        except Exception as error:
            text = f"plugin {dist}: its hook {hook!r} failed ({type(error).__name__}: {error})"
            warnings.warn(f"{text}; going on without it", PluginWarning, stacklevel=4)
            continue
        offered += [(dist, row) for row in rows]
    return offered
