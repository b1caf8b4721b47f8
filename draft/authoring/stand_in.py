"""Rewards at full size or, on request, on the small embedded models that stand in for their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from draft.errors import ConfigError, DraftError, ResourceError
from draft.isolation.environment import locate
from draft.isolation.reward import IsolatedReward, isolated_class, isolated_reward
from draft.isolation.settings import Isolation
from draft.rewards.loading import find_reward
from draft.rewards.parts import part_options, walk_reward
from draft.rewards.reward import MODEL_OPTIONS, Reward
from draft.rewards.terms import build_reward


def choose_reward(name: str, options: Mapping[str, Any], *, stand_in: bool, python: str = "") -> Reward:
    """Make a reward from its name and options, with its stand-in for the rest if asked for.

    Args:
        name: The reward's name, or ``"distribution:name"``.
        options: The reward's own parameters; they win over the stand-in's.
        stand_in: Whether what is not given comes from its `stand_in`, and from those of the rewards it is made of.
        python: The environment that has the reward, a folder or its Python, relative to the current folder; empty:
            this one.

    Returns:
        The reward, validated.

    Raises:
        DraftError: Unknown or wrong options, or a reward that names weights and declares no stand-in.
    """
    if python:
        if stand_in:
            options = _chosen(_class_there(name, python), name, options)
        return isolated_reward(environment(python), name, options, where=name)
    return build_reward(name, _small(name, options) if stand_in else options, where=name)


def choose_class(name: str, *, python: str = "") -> type[Reward]:
    """The class of a reward, as its card shows it.

    Args:
        name: The reward's name, or ``"distribution:name"``.
        python: The environment that has the reward; empty: this one.

    Returns:
        The class.

    Raises:
        DraftError: There is no such reward, or no such environment.
    """
    return _class_there(name, python) if python else find_reward(name)


def environment(python: str) -> Isolation:
    """The isolation that the command line's `--python` means.

    Args:
        python: An environment's folder or its Python, relative to the current folder.

    Returns:
        The settings, the path absolute.

    Raises:
        ConfigError: There is no Python.
    """
    try:
        return locate(Isolation(python=python), lambda keys: Path.cwd(), "")
    except DraftError as error:
        error.where = "command line, --python"
        raise


@contextmanager
def offering_stand_in(reward: Reward) -> Iterator[None]:
    """Add `--stand-in` to the hint of a reward whose weights this machine lacks, where that would help.

    Args:
        reward: The reward that is loaded inside the block.

    Raises:
        ResourceError: The one raised inside, with a longer hint.
    """
    try:
        yield
    except ResourceError as error:
        full_size = [
            option
            for _, part in walk_reward(reward)
            for option, value in (part.stand_in or {}).items()
            if getattr(part, option) != value
        ]
        if full_size:
            offer = "--stand-in uses the small embedded models instead"
            error.hint = f"{error.hint}; or {offer}" if error.hint else offer
        raise


def _class_there(name: str, python: str) -> type[IsolatedReward]:
    found = isolated_class(environment(python), name, where=name, card=True)
    assert found is not None and issubclass(found, IsolatedReward)  # an environment that is there is never unbuilt
    return found


def _small(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return _chosen(find_reward(name), name, options)


def _chosen(kind: type[Reward], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if issubclass(kind, IsolatedReward) and kind.isolated.parts:
        raise ConfigError(
            f"the parts of reward {kind.name!r} cannot get stand-ins in another environment",
            where=name,
            hint="write the options that name embedded models, without --stand-in",
        )
    named = [option for option in kind.model_fields if _names_weights(option) and option not in options]
    if kind.stand_in is None and named:
        raise ConfigError(
            f"reward {kind.name!r} has no stand-in",
            where=name,
            hint=f"give its class a `stand_in`, or set {named[0]}",
        )
    chosen = {**(kind.stand_in or {}), **options}
    for option in part_options(kind):
        parts = chosen.get(option)
        if isinstance(parts, Mapping):
            chosen[option] = {label: _small_part(label, part) for label, part in parts.items()}
    return chosen


def _small_part(label: str, part: Any) -> Any:
    options = {} if part is None else part
    if not isinstance(options, Mapping) or not isinstance(options.get("use", label), str):
        return part  # the option's validator reports what is wrong with it
    use = options.get("use", label)
    return {"use": use, **_small(use, {key: value for key, value in options.items() if key != "use"})}


def _names_weights(option: str) -> bool:
    return any(option == word or option.endswith(f"_{word}") for word in MODEL_OPTIONS)
