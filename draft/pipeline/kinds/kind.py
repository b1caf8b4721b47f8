"""What a kind of stage is, and a stage on its way from a file to its run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from draft.diffusion.control.schedules import AdapterSchedule
from draft.errors import ConfigError, DraftError, Problem
from draft.pipeline.document import Document, Entered, Keys
from draft.pipeline.fields import tag
from draft.pipeline.references import Reference, parse_reference
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.types import Prompts

PROMPTS: Keys = ("prompts",)
REWARDS: Keys = ("rewards",)


@dataclass(frozen=True)
class HeldFile:
    """A file that goes into a stage.

    Args:
        keys: Where the stage has it: ``("adapters", "a", "from")``.
        holds: The name of the output that it is, or could be: `adapter`, `metrics`.
        source: A path, or a reference to a stage that makes it.
    """

    keys: Keys
    holds: str
    source: str

    @property
    def reference(self) -> Reference | None:
        """The output of another stage that it is, if it is one."""
        return parse_reference(self.source)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a stage works on, found and read.

    Args:
        model: Where its model is: a folder, a file or a hub id; empty where it has none.
        prompts: Prompts by where the stage has them.
        terms: Rewards with their parameters by where the stage has them.
        files: The files and references that go in.
    """

    model: str = ""
    prompts: Mapping[Keys, Prompts] = field(default_factory=dict)
    terms: Mapping[Keys, tuple[Term, ...]] = field(default_factory=dict)
    files: tuple[HeldFile, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A stage whose settings have the right types, while the rest of it is checked.

    Args:
        config: Its typed settings.
        inputs: What of its inputs could be found.
        keys: Where it is in the file.
        document: The file.
    """

    config: Any
    inputs: Inputs
    keys: Keys
    document: Document

    @property
    def terms(self) -> tuple[Term, ...]:
        """The rewards of its key `rewards`."""
        return self.inputs.terms.get(REWARDS, ())

    def name(self, *keys: str | int) -> str:
        """The full dotted key of a setting."""
        return ".".join(map(str, (*self.keys, *keys)))

    def error(self, what: str, *keys: str | int, hint: str = "") -> ConfigError:
        """An error at a setting, in words of its own."""
        return ConfigError(what, where=self.document.place((*self.keys, *keys)), hint=hint)

    def problem(self, problem: Problem, *keys: str | int) -> ConfigError:
        """An error out of a problem with some of the settings.

        Args:
            problem: The problem.
            *keys: Where those settings are; nothing: they are the stage's.

        Returns:
            The error, whose text begins with the full key.
        """
        return self.error(f"{self.name(*keys)}.{problem.what}", *keys, *problem.keys, hint=problem.hint)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a stage follows from the entry `draft.recipe` of an adapter's header.

    Args:
        kinds: The kinds of recipes that it follows from.
        stage: Given the recipe and what the entry `draft.pipeline` holds, the stage without its files, and where each
            input of the recipe goes.
    """

    kinds: tuple[str, ...]
    stage: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict[str, Any], list[Keys]]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of stage. Nothing outside its file knows it by name.

    Args:
        settings: Its dataclass; the fields' marks say what they hold. A field `kind` is a `Literal` with its name. A
            kind that makes an adapter has prompts and rewards under `prompts` and `rewards`.
        outputs: Output name to path in the stage's folder, for ``${out:stage.output}``.
        run: ``"module:function"``: what runs a `Job` and returns its closing figures, imported only then.
        extras: What else it writes into the stage's folder that belongs to its results, some of it only where settings
            ask for it: name to path. Recorded and compared like outputs; no reference names them.
        byproducts: What else shows how it went: name to path. Recorded, and reported where it is damaged, but nothing
            is made again for it.
        version: Raised when the same settings would give other results, so that old ones are not used again.
        problems: What is wrong with a stage beyond the types of its settings.
        complete: Makes the settings that the stage runs with out of those of the file, once there are no errors.
        seeded: Whether the result depends on the seed, where the settings have one.
        timed: Whether time and memory are among the results, so that settings which change them alone count too.
        recipe: Where what it runs writes `draft.recipe` into its adapter, how that becomes a stage again.
        renamed: What a part of its records was called before.
        carries: Names in its folder that a finished stage goes on from, where a setting marked `Extends` is larger;
            nothing: it begins again.
        checkpoint: Finds the checkpoint after a number of updates in folders of the stage, the preferred first, for
            `--branch-from`; None: it cannot branch.
        tidy: Removes from a finished stage's folder what only an interrupted run goes on from, given its settings;
            called once the folder has its name, and by the next run where that was interrupted.
    """

    settings: type[Any]
    outputs: Mapping[str, str]
    run: str
    extras: Mapping[str, str] = field(default_factory=dict)
    byproducts: Mapping[str, str] = field(default_factory=dict)
    version: int = 1
    problems: Callable[[Candidate], Iterator[DraftError]] = lambda candidate: iter(())
    complete: Callable[[Any], Any] = lambda config: config
    seeded: Callable[[Any], bool] = lambda config: True
    timed: bool = False
    recipe: Recipe | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    carries: tuple[str, ...] = ()
    checkpoint: Callable[[Iterable[Path], int], Path] | None = None
    tidy: Callable[[Path, Any], None] = lambda folder, config: None

    @property
    def name(self) -> str:
        """What files call it."""
        return str(tag(self.settings))

    def executor(self) -> Executor:
        """Import what runs it."""
        module, _, function = self.run.partition(":")
        executor: Executor = getattr(importlib.import_module(module), function)
        return executor


@dataclass(frozen=True)
class CheckedStage:
    """One stage, with everything that can be known before it runs.

    Args:
        name: Its name in the file.
        kind: Its kind.
        config: The settings that it runs with.
        data: Its plain resolved settings, as they were given, with absolute paths.
        seed: Its seed.
        inputs: What it works on.
        upstream: The stages it refers to, sorted.
        environment: Where in it, and in its seed, something came from the environment; no file may hold that.
    """

    name: str
    kind: Kind
    config: Any
    data: Mapping[str, Any]
    seed: int
    inputs: Inputs
    upstream: tuple[str, ...] = ()
    environment: Mapping[Keys, Entered] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Where its model is; empty where it has none."""
        return self.inputs.model

    @property
    def model_name(self) -> str:
        """What its model is called: as the file has it, but a folder on this machine by its last name alone."""
        model = self.data.get("model", "")
        if ("model",) in self.environment:
            return self.environment["model",].source
        return Path(model).name if model and Path(model).exists() else model

    @property
    def prompts(self) -> Prompts:
        """The prompts of its key `prompts`."""
        return self.inputs.prompts.get(PROMPTS, Prompts(()))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The rewards of its key `rewards`."""
        return self.inputs.terms.get(REWARDS, ())

    @property
    def every_term(self) -> tuple[Term, ...]:
        """All its rewards."""
        return tuple(term for terms in self.inputs.terms.values() for term in terms)

    @property
    def every_prompt(self) -> tuple[str, ...]:
        """All its prompts."""
        return tuple(prompt for prompts in self.inputs.prompts.values() for prompt in prompts)

    @property
    def files(self) -> Sequence[HeldFile]:
        """The files and references that go in."""
        return self.inputs.files

    @property
    def outputs(self) -> Mapping[str, str]:
        """Output name to path in the stage's folder."""
        return self.kind.outputs


@dataclass(frozen=True)
class Job:
    """A stage about to run.

    Args:
        stage: The stage.
        folder: Where it writes; becomes the stage's folder when it is done.
        files: Where the stage has a file, to that file; references are resolved.
        progress: The reporter.
        title: The pipeline's name.
        config_text: The stage's resolved settings as YAML, and what a rehearsal replaced, for the page and the results.
        metadata: What an adapter file says about its making: no time, no path, no host.
        branch: The checkpoint of another run that it begins at; None: it does not.
    """

    stage: CheckedStage
    folder: Path
    files: Mapping[Keys, Path]
    progress: Progress
    title: str = ""
    config_text: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    branch: Path | None = None

    def adapters(self) -> dict[str, tuple[Path, float]]:
        """Label to file and weight, of a stage with `adapters`."""
        return {
            label: (self.files["adapters", label, "from"], adapter.weight)
            for label, adapter in self.stage.config.adapters.items()
        }

    def schedules(self) -> dict[str, AdapterSchedule]:
        """Label to the steps in which that adapter takes part, of a stage with scheduled `adapters`."""
        return {label: adapter.schedule for label, adapter in self.stage.config.adapters.items()}

    def page(self) -> dict[str, str]:
        """What pages show about a stage."""
        return {"title": self.title, "model_name": self.stage.model_name, "config_text": self.config_text}


Executor: TypeAlias = Callable[[Job], Mapping[str, float]]
"""Runs a job and returns its closing figures."""
