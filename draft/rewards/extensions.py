"""What a run needs besides rewards: named models, model families and observers, loaded survivably."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from draft import hub
from draft.errors import PluginError, PluginWarning
from draft.family import Family
from draft.rewards.calls import Called, brief, calling
from draft.rewards.derived import RECORD, digest, ensure_derived, place
from draft.rewards.discovery import EXTENSIONS, built_in, entries
from draft.rewards.hookspecs import NamedModel
from draft.rewards.loading import new_manager, register

Row = TypeVar("Row", NamedModel, Family)

ROWS: Mapping[str, type[NamedModel] | type[Family]] = {"draft_models": NamedModel, "draft_families": Family}
"""The hooks that return rows, and what those are."""


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
        Name to model, sorted; a name that two plugins use stays with Draft's own model, all others that share it
        appear as ``"distribution:name"`` only.
    """
    offered = _offered()
    keyed = {}
    for dist, model in offered:
        plain = _choose(offered, model.name) == [(dist, model)]
        keyed[model.name if plain else f"{dist}:{model.name}"] = model
    return dict(sorted(keyed.items()))


def model_path(name: str) -> str:
    """Where a model is: a registered name becomes its folder, anything else stays as it is.

    Args:
        name: A registered name (`draft models`), a hub id, a folder or a file.

    Returns:
        The folder of a registered name, which is made now if it is derived from others; else `name` itself.

    Raises:
        PluginError: Two plugins offer a model of that name, or a file of it is missing or damaged.
    """
    model = named_model(name)
    if model is None:
        if hub.may_be_id(name):
            hub.ask_once()  # as a loader is about to, for longer
        return name
    ensure_derived(model)
    _verify(model)
    return str(model.path)


def model_place(name: str) -> str:
    """Where a model is or will be: as `model_path`, but a model that has not been made yet stays so.

    Args:
        name: A registered name, a hub id, a folder or a file.

    Returns:
        The folder of a registered name, else `name` itself.

    Raises:
        PluginError: Two plugins offer a model of that name, or a file of one that is there is missing or damaged.
    """
    model = named_model(name)
    if model is None:
        return name
    if model.derive is None:
        _verify(model)
    return str(model.path)


def derived_model(path: str) -> NamedModel | None:
    """The derived model whose folder, made already or not, is at a path.

    Args:
        path: What `model_place` returned, or anything else.

    Returns:
        The model; None: the path is no derived model's.
    """
    folder = Path(path)
    if not folder.is_absolute() or (folder.exists() and not (folder / RECORD).is_file()):
        return None  # without asking all packages
    return next((model for _, model in _offered() if model.derive is not None and model.path == folder), None)


def make_derived(path: str) -> None:
    """Make the derived model of a path, if it is one's and it has not been made yet.

    Args:
        path: Any model's folder, file or hub id.

    Raises:
        PluginError: It cannot be made.
    """
    if (model := derived_model(path)) is not None:
        ensure_derived(model)


def named_model(name: str) -> NamedModel | None:
    """The model that a name means, as its plugin offers it; nothing is verified.

    Args:
        name: A registered name, or anything else.

    Returns:
        The model, or None if no plugin offers one of that name.

    Raises:
        PluginError: Two plugins do.
    """
    matches = _choose(_offered(), name)
    if len(matches) > 1:
        ways = " or ".join(repr(f"{dist}:{model.name}") for dist, model in matches)
        raise PluginError(f"two plugins offer a model {name!r}", hint=f"write {ways}")
    return matches[0][1] if matches else None


def remark_on(model: NamedModel, prompts: Sequence[str]) -> str:
    """What a model's package remarks on prompts; if it fails, that is a warning.

    Args:
        model: The model.
        prompts: The prompts that it will get.

    Returns:
        The remark; empty text for none.
    """
    remark = model.remark
    if remark is None:
        return ""
    try:
        with calling(
            Called(f"model {model.name!r}", lambda: [remark.__module__]), "reading prompts", passing=BaseException
        ):
            return remark(prompts)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text = f"the remark of model {model.name!r} on its prompts failed ({brief(error)})"
        warnings.warn(f"{text}; going on without it", PluginWarning, stacklevel=2)
        return ""


def _choose(offered: Sequence[tuple[str, NamedModel]], name: str) -> list[tuple[str, NamedModel]]:
    # As `draft.rewards.discovery.choose` for rewards: a name of Draft's own models means those.
    found = [(dist, model) for dist, model in offered if name in (model.name, f"{dist}:{model.name}")]
    own = [(dist, model) for dist, model in found if built_in(dist)]
    return own or found


def _verify(model: NamedModel) -> None:
    for file, expected in model.sha256.items():
        try:
            actual = digest(model.path / file)
        except OSError:
            actual = "missing"
        if actual != expected:
            what = "is missing" if actual == "missing" else f"is damaged: its sha256 is {actual}"
            raise PluginError(
                f"the file {file!r} of model {model.name!r} {what}, and must be {expected} (looked in {model.path})",
                hint="install the package that brings the model again",
            )


def hooked(implementation: pluggy.HookImpl) -> Called:
    """A hook's implementation as what is called, for `draft.rewards.calls`."""
    dist, _, module = implementation.plugin_name.partition(":")
    return Called(f"plugin {dist}", lambda: [module])


def offered_families() -> list[tuple[str, Family]]:
    """The model families that packages bring; `draft.diffusion.families.families` adds Draft's own.

    Returns:
        Distribution and row, in the order of their packages.
    """
    return _answers("draft_families", Family)


def _offered() -> list[tuple[str, NamedModel]]:
    offered = _answers("draft_models", NamedModel)
    return [(dist, replace(m, path=place(m.path)) if m.derive is not None else m) for dist, m in offered]


def rows_of(hook: str, kind: type[Row], function: Callable[[], Any]) -> list[Row]:
    """Call one implementation of a hook that returns rows, and check them; whatever it raises is passed on.

    Args:
        hook: One of `ROWS`.
        kind: What its rows are.
        function: The implementation.

    Returns:
        The rows.

    Raises:
        TypeError: It returns something else.
    """
    with calling(Called(f"hook {hook!r}", lambda: [function.__module__]), "answering it", passing=BaseException):
        rows = list(function())
    if wrong := [row for row in rows if not isinstance(row, kind)]:
        raise TypeError(f"{hook!r} must return draft.{kind.__name__} values (got {wrong[0]!r})")
    return rows


def _answers(hook: str, kind: type[Row]) -> list[tuple[str, Row]]:
    # Each implementation is called alone: in one joint call the first that raises would hide all others.
    offered: list[tuple[str, Row]] = []
    for implementation in getattr(extensions().hook, hook).get_hookimpls():
        dist = implementation.plugin_name.partition(":")[0]
        try:
            rows = rows_of(hook, kind, implementation.function)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            text = f"plugin {dist}: its hook {hook!r} failed ({brief(error)})"
            warnings.warn(f"{text}; going on without it", PluginWarning, stacklevel=4)
            continue
        offered += [(dist, row) for row in rows]
    return offered
