"""`isolated` of reward terms: read from the file, looked into for the fingerprint, and made where it is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from draft.errors import DraftError
from draft.isolation.build import build_environment
from draft.isolation.environment import locate, ready_python
from draft.isolation.reward import IsolatedReward, UnbuiltReward, isolated_class
from draft.isolation.settings import Isolation
from draft.pipeline.document import Document, Keys
from draft.pipeline.explain import validate
from draft.progress import Progress
from draft.rewards.loading import find_reward
from draft.rewards.packages import Package, package_of
from draft.rewards.parts import walk_reward
from draft.rewards.reward import Reward, Term
from draft.rewards.terms import reward_source


def read_isolation(
    value: Any, keys: Keys, document: Document, base: Callable[[Keys], Path], errors: list[DraftError]
) -> Isolation | None:
    """Read one term's `isolated`.

    Args:
        value: What stands there.
        keys: Where.
        document: The file, for the places of errors.
        base: The folder that a relative path at some keys starts from.
        errors: Gets what is wrong.

    Returns:
        The settings with absolute paths; None if something is wrong.
    """
    isolation, schema_errors = validate(Isolation, value, keys, document)
    errors += schema_errors
    if isolation is None:
        return None
    prefix = ".".join(map(str, keys))
    try:
        return locate(isolation, lambda inner: base((*keys, *inner)), prefix)
    except DraftError as error:
        inner = error.where.removeprefix(prefix).strip(".").split(".")
        place: Keys = tuple(int(part) if part.isdigit() else part for part in inner if part)
        error.what = f"{error.where} {error.what}"
        error.where = document.place((*keys, *place))
        errors.append(error)
        return None


def written(isolation: Isolation, value: dict[str, Any]) -> dict[str, Any]:
    """A term's `isolated` as it is in the file, with absolute paths."""
    located = asdict(isolation)
    return {key: list(setting) if isinstance(setting := located[key], tuple) else setting for key in value}


def reward_class(
    name: Any, options: Mapping[str, Any], keys: Keys, document: Document, folder: Path
) -> type[Reward] | None:
    """The class of a term's reward, here or in its own environment.

    Args:
        name: The reward's name.
        options: The term as it stands in the file.
        keys: Where.
        document: The file.
        folder: Where relative paths of the file start.

    Returns:
        The class; None where there is none, for a reason that reading the term tells.
    """

    def base(inner: Keys) -> Path:
        return Path.cwd() if document.overridden(inner) else folder

    if not isinstance(name, str):
        return None
    try:
        if options.get("isolated") is None:
            return find_reward(name)
        isolation = read_isolation(options["isolated"], (*keys, "isolated"), document, base, [])
        return isolated_class(isolation, name, where=".".join(map(str, keys))) if isolation else None
    except DraftError:
        return None


def isolations(terms: Iterable[Term]) -> dict[str, Isolation]:
    """What the `isolated` of terms says, by its place."""
    by_place: dict[str, Isolation] = {}
    for reward in (term.reward for term in terms):
        if isinstance(reward, IsolatedReward):
            by_place[f"{reward.isolated.where}.isolated"] = reward.isolated.isolation
        elif isinstance(reward, UnbuiltReward):
            by_place[reward.isolated[1]] = reward.isolated[0]
    return by_place


def unbuilt(terms: Iterable[Term]) -> dict[str, Isolation]:
    """The environments that are still to be made, by the place that asks for one."""
    return {where: isolation for where, isolation in isolations(terms).items() if ready_python(isolation) is None}


def build_missing(terms: Iterable[Term], progress: Progress) -> None:
    """Make the environments that are still to be made.

    Args:
        terms: All terms of a pipeline.
        progress: Told of each, because it takes minutes.

    Raises:
        DraftError: One cannot be made.
    """
    for where, isolation in unbuilt(terms).items():
        build_environment(isolation, where=where, say=progress.say)


def unchecked(terms: Iterable[Term]) -> list[str]:
    """Warnings about terms whose options could not be checked, one line each."""
    terms = list(terms)
    unknown = isolations(term for term in terms if isinstance(term.reward, UnbuiltReward))
    missing = unbuilt(terms)
    return [
        f"{where}: its environment has not been made, so this reward's options are not checked; `draft run` makes it"
        if where in missing
        else f"{where}: this reward's options are not checked, which would run {isolation.python}; --trust does"
        for where, isolation in unknown.items()
    ]


def source_files(reward: Reward) -> dict[tuple[str, ...], Path]:
    """The files of a reward's class and of the rewards it is made of, here or there, by the keys that lead to each."""
    if isinstance(reward, IsolatedReward):
        return dict(reward.isolated.sources)
    return {keys: reward_source(type(part)) for keys, part in walk_reward(reward)}


def packages_of(reward: Reward) -> dict[tuple[str, ...], Package]:
    """What a reward and the rewards it is made of are installed as, here or there, by the keys that lead to each."""
    if isinstance(reward, IsolatedReward):
        return dict(reward.isolated.packages)
    if isinstance(reward, UnbuiltReward):
        return {}
    return {keys: package_of(type(part)) for keys, part in walk_reward(reward)}


def foreign_versions(terms: Iterable[Term]) -> dict[str, str]:
    """The versions that isolated rewards run with, by distribution and label: ``{"torch (vqa)": "2.6.0"}``."""
    return {
        f"{name} ({term.label})": version
        for term in terms
        if isinstance(term.reward, IsolatedReward)
        for name, version in term.reward.isolated.versions.items()
    }
