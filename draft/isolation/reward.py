"""A reward of another environment, as this one sees it: a class like any other whose `load` starts a process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, create_model

from draft.errors import ConfigErrors, DraftError, PluginError, StageError
from draft.isolation.consent import may_ask
from draft.isolation.describe import CARD
from draft.isolation.environment import ready_python
from draft.isolation.failures import decode_error
from draft.isolation.process import Worker
from draft.isolation.settings import Isolation
from draft.rewards.discovery import DISTRIBUTION
from draft.rewards.packages import Package, package_files
from draft.rewards.reward import Reward, Score, Term

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Place:
    """Where an isolated reward is and what its environment said of it.

    Args:
        isolation: The settings, with absolute paths.
        python: The environment's Python.
        use: What the reward is called there; with its distribution where two use the name.
        where: The reward's place in the pipeline.
        sources: The file of its class, and of those of the rewards it is made of, by the keys that lead there.
        packages: What these are installed as there.
        parts: Its options that hold other rewards.
        versions: Distribution to version: of the reward, of PyTorch and of Draft.
        models: Option to folder, for options that name a registered model.
        package: Distribution and version of the reward; empty unless it was asked for its card.
        schema: The JSON Schema of its options, likewise.
        workers: The processes that were started for it and may run.
    """

    isolation: Isolation
    python: Path
    use: str
    where: str
    sources: Mapping[tuple[str, ...], Path]
    packages: Mapping[tuple[str, ...], Package]
    parts: tuple[str, ...]
    versions: Mapping[str, str]
    models: Mapping[str, str]
    package: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)


class IsolatedReward(Reward):
    """A reward that is loaded in its own process; subclasses are made by `isolated_reward`."""

    isolated: ClassVar[Place]

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """The schema of its options as its own environment describes them, where that was asked for."""
        return dict(cls.isolated.schema) or super().model_json_schema(*args, **options)

    def load(self, device: torch.device) -> Score:
        """Start the process and load the reward there.

        Args:
            device: Where the process loads it.

        Returns:
            A function of images here that has the gradient computed there.
        """
        from draft.isolation.remote import remote_score

        place = self.isolated
        worker = Worker(place.python, name=self.name, where=place.where, isolation=place.isolation)
        place.workers.append(worker)
        return remote_score(worker, self, device, use=place.use, where=place.where)


class UnbuiltReward(Reward):
    """Stands for a reward whose environment has not been made or may not be asked what the reward's options are."""

    isolated: ClassVar[tuple[Isolation, str]]
    options: dict[str, Any] = Field(default_factory=dict, description="as they are written")

    def load(self, device: torch.device) -> Score:
        """Refuse: there is nothing to load yet."""
        raise StageError(f"the environment of reward {self.name!r} has not been made", where=self.isolated[1])


def isolated_reward(isolation: Isolation, use: str, options: Mapping[str, Any], *, where: str) -> Reward:
    """Make a reward of another environment, validated there.

    Args:
        isolation: The settings, with absolute paths.
        use: The reward's name there.
        options: Its own parameters.
        where: The term's place.

    Returns:
        An `IsolatedReward`, or an `UnbuiltReward` where the environment is still to be made.

    Raises:
        DraftError: The environment has no such reward or does not run, or options are wrong; all of them, each with
            its place.
    """
    reward_class, described = _ask(isolation, use, options, where)
    if described is None:
        return reward_class.model_validate({"options": dict(options)})
    if "errors" in described:
        raise decode_error(described["errors"], where=where)
    return reward_class.model_validate(described["options"])


def isolated_class(isolation: Isolation, use: str, *, where: str, card: bool = False) -> type[Reward] | None:
    """The class of a reward of another environment, as `find_reward` gives one of this.

    Args:
        isolation: The settings, with absolute paths.
        use: The reward's name there.
        where: The term's place.
        card: Whether the class is to answer what `draft rewards show` asks: types and bounds, licence, memory.

    Returns:
        The class; None where the environment is still to be made.
    """
    reward_class, described = _ask(isolation, use, {}, where, card=card)
    return None if described is None else reward_class


@contextmanager
def ending_processes(terms: Iterable[Term]) -> Iterator[None]:
    """End the processes of isolated rewards that the block started, however it ends.

    Args:
        terms: Terms that may be loaded inside the block.

    Yields:
        Nothing.
    """
    worker_lists = [term.reward.isolated.workers for term in terms if isinstance(term.reward, IsolatedReward)]
    before = [len(workers) for workers in worker_lists]
    try:
        yield
    finally:
        for workers, count in zip(worker_lists, before, strict=True):
            while len(workers) > count:
                workers.pop().end()


def _packages(described: Mapping[str, Any]) -> dict[tuple[str, ...], Package]:
    """What a reward and its parts are installed as, in words of an environment with this or an earlier Draft."""
    if "packages" in described:
        return {
            tuple(keys): Package(
                package["name"], package["version"], {name: Path(path) for name, path in package["files"].items()}
            )
            for keys, package in described["packages"]
        }
    others = [(name, version) for name, version in described["versions"].items() if name not in (DISTRIBUTION, "torch")]
    name, version = others[0] if others else (DISTRIBUTION, "")
    sources = {tuple(keys): Path(file) for keys, file in described.get("sources", ())}
    return {keys: Package(name, version, package_files(file)) for keys, file in sources.items()}


def _ask(
    isolation: Isolation, use: str, options: Mapping[str, Any], where: str, *, card: bool = False
) -> tuple[type[Reward], dict[str, Any] | None]:
    """The class of a reward, and what its environment says of it and of these options; None: it is not there yet."""
    python = ready_python(isolation) if may_ask(isolation) else None
    if python is None:
        reward_class = create_model("UnbuiltReward", __base__=UnbuiltReward, __doc__=UnbuiltReward.__doc__)
        reward_class.name, reward_class.isolated = use, (isolation, f"{where}.isolated")
        return reward_class, None
    worker = Worker(python, name=use, where=f"{where}.isolated", isolation=isolation)
    request = {"ask": "describe", "use": use, "options": dict(options), "where": where, "card": card}
    try:
        described, _ = worker.ask("checking its options", request)
    except DraftError as error:
        for problem in error.errors if isinstance(error, ConfigErrors) else [error]:
            if isinstance(problem, PluginError):
                problem.what = f"{problem.what}, in the environment of {python}"
        raise
    finally:
        worker.end()
    fields: dict[str, Any] = {
        entry["name"]: (Any, Field(entry.get("default", ...), description=entry["description"]))
        for entry in described["fields"]
    }
    reward_class = create_model(described["class"], __base__=IsolatedReward, __doc__=described["doc"], **fields)
    for attribute in ("name", "cite", "differentiable", "uses_prompt", "per_image", "stand_in", *CARD):
        if attribute in described:
            setattr(reward_class, attribute, described[attribute])
    reward_class.isolated = Place(
        isolation=isolation,
        python=python,
        use=use,
        where=where,
        sources={tuple(keys): Path(file) for keys, file in described.get("sources", ())},
        packages=_packages(described),
        parts=tuple(described["parts"]),
        versions=described["versions"],
        models=described.get("models", {}),
        package=described.get("package", ""),
        schema=described.get("schema", {}),
    )
    return reward_class, described
