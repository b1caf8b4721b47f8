"""What can be wrong with a pipeline, found without torch: types, references, files, rewards, models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from draft.errors import ConfigError, DraftError, DraftWarning, did_you_mean
from draft.pipeline.checks import find_inputs
from draft.pipeline.document import Document, Entered, Keys, is_prompt
from draft.pipeline.explain import validate
from draft.pipeline.graph import check_references
from draft.pipeline.inputs import Head
from draft.pipeline.kinds import KINDS, kind_of
from draft.pipeline.kinds.kind import Candidate, CheckedStage
from draft.pipeline.models import model_problems, with_family
from draft.pipeline.references import upstream
from draft.pipeline.rehearsal import Replacement
from draft.pipeline.resolve import within, written
from draft.rewards.extensions import named_model, remark_on
from draft.rewards.reward import Term


@dataclass(frozen=True)
class Pipeline:
    """A pipeline without errors.

    Args:
        name: Its name.
        file: The file it was loaded from.
        seed: The seed of every stage without one of its own.
        stages: Name to stage, in the order in which they run.
        replacements: What a rehearsal changed of the file; empty where this is none.
        environment: Where in the file something came from the environment; no file may hold that.
        replaced_environment: The same of what a rehearsal replaced.
    """

    name: str
    file: Path
    seed: int
    stages: Mapping[str, CheckedStage]
    replacements: tuple[Replacement, ...] = ()
    environment: Mapping[Keys, Entered] = field(default_factory=dict)
    replaced_environment: Mapping[Keys, Entered] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name as pages may have it."""
        entered = self.environment.get(("name",))
        return written(self.name, entered) if entered else self.name

    @property
    def terms(self) -> list[Term]:
        """The rewards of all stages."""
        return [term for stage in self.stages.values() for term in stage.every_term]


def check_document(document: Document, file: Path) -> tuple[Pipeline | None, list[DraftError]]:
    """Check a resolved pipeline file.

    Args:
        document: The file with overrides applied and variables resolved.
        file: Where it lies; relative paths in it start from its folder.

    Returns:
        The pipeline (None if there are errors) and all errors.
    """
    data = document.data
    head, errors = validate(Head, data, (), document)
    raw = data.get("stages")
    stages = {name: stage for name, stage in raw.items() if isinstance(stage, dict)} if isinstance(raw, dict) else {}
    errors += check_references(stages, document)
    checked = {}
    for name, stage in stages.items():
        result = _check_stage(name, stage, data.get("seed", 0), document, file.resolve().parent, errors)
        if result is not None:
            checked[name] = result
    if errors:
        return None, errors
    _remark(checked, document)
    return Pipeline(head.name, file.resolve(), head.seed, checked, environment=dict(document.environment)), []


def _remark(stages: Mapping[str, CheckedStage], document: Document) -> None:
    """Warn once for each named model about all the prompts that it will get."""
    for name in dict.fromkeys(str(stage.data["model"]) for stage in stages.values() if "model" in stage.data):
        model = named_model(name)
        if model is None or model.remark is None:
            continue
        users = [stage for stage in stages.values() if stage.data.get("model") == name]
        if text := remark_on(model, [prompt for stage in users for prompt in stage.every_prompt]):
            place = document.place(("stages", users[0].name, "prompts"))
            warnings.warn(f"{place}: {text}", DraftWarning, stacklevel=2)


def _check_stage(
    name: str, data: dict[str, Any], seed: Any, document: Document, folder: Path, errors: list[DraftError]
) -> CheckedStage | None:
    keys: Keys = ("stages", name)
    kind = kind_of(data)
    if kind is None:
        errors.append(_unknown_kind(name, data, document))
        return None
    config, schema_errors = validate(kind.settings, data, keys, document)
    before = len(errors)
    errors += schema_errors
    entered = within(document.environment, keys)
    for place in (path for path in entered if is_prompt((*keys, *path))):
        what = f"{'.'.join(map(str, (*keys, *place)))} comes from the environment, and results show prompts"
        errors.append(ConfigError(what, where=document.place((*keys, *place)), hint="write prompts into a file"))
    plain = deepcopy(data)
    inputs = find_inputs(kind.settings, plain, keys, document, partial(_base, document, folder), errors)
    if config is None:
        return None
    candidate = Candidate(config, inputs, keys, document)
    errors += kind.problems(candidate)
    errors += model_problems(candidate, config)
    if len(errors) > before:
        return None
    stage_seed = getattr(config, "seed", None)
    if stage_seed is None and ("seed",) in document.environment:
        entered["seed",] = document.environment["seed",]
    return CheckedStage(
        name=name,
        kind=kind,
        config=kind.complete(with_family(config, inputs.model)),
        data=plain,
        seed=seed if stage_seed is None else stage_seed,
        inputs=inputs,
        upstream=tuple(upstream(data)),
        environment=entered,
    )


def _unknown_kind(name: str, data: Mapping[str, Any], document: Document) -> ConfigError:
    place = document.place(("stages", name, "kind"))
    kinds = f"the kinds are {', '.join(KINDS)}"
    if "kind" not in data:
        return ConfigError(f"missing key 'stages.{name}.kind'", where=place, hint=kinds)
    hint = did_you_mean(str(data["kind"]), list(KINDS), otherwise=kinds)
    return ConfigError(f"unknown stage kind {data['kind']!r}", where=place, hint=hint)


def _base(document: Document, folder: Path, keys: Keys) -> Path:
    # A path on the command line is meant from where the person stands, one in the file from the file's folder.
    return Path.cwd() if document.overridden(keys) else folder
