"""What can be wrong with a pipeline, found without torch: types, references, files, rewards, models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from draft.errors import ConfigError, DraftError, DraftWarning, did_you_mean
from draft.pipeline.checks import check_files, check_model, check_prompts, check_rewards, check_training
from draft.pipeline.comparison import Compared, check_comparison
from draft.pipeline.describe import keys_at
from draft.pipeline.document import Document
from draft.pipeline.document import Path as Keys
from draft.pipeline.explain import validate
from draft.pipeline.foundation import check_foundation
from draft.pipeline.graph import check_references, upstream
from draft.pipeline.mixing import check_mixing
from draft.pipeline.probing import check_probe
from draft.pipeline.rehearsal import Replacement
from draft.pipeline.sampling import check_sampling
from draft.pipeline.schema import (
    KINDS,
    OUTPUTS,
    CompareStage,
    EvaluateStage,
    GenerateStage,
    Head,
    MixStage,
    ProbeStage,
    Stage,
    StripStage,
    TrainStage,
)
from draft.pipeline.strips import check_strip
from draft.rewards.extensions import named_model
from draft.rewards.reward import Term
from draft.types import Prompts

_NO_PROMPTS = Prompts(())


@dataclass(frozen=True)
class CheckedStage:
    """One stage, with everything that can be known before it runs.

    Args:
        name: Its name in the file.
        config: Its typed settings.
        data: Its plain resolved settings, as they were given, with absolute paths.
        seed: Its seed.
        model: Where its model is: a folder, a file or a hub id; empty where it has none.
        prompts: Its prompts, read.
        terms: Its rewards, with their parameters.
        files: Label to file or reference, for adapters and curves, e.g. ``{"adapters.a": ...}``.
        upstream: The stages it refers to, sorted.
        compared: What only a `compare` stage has.
        environment: Values that the file takes from the environment, with their names; no file may hold them.
    """

    name: str
    config: Stage
    data: Mapping[str, Any]
    seed: int
    model: str
    prompts: Prompts
    terms: tuple[Term, ...]
    files: Mapping[str, str]
    upstream: tuple[str, ...]
    compared: Compared | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def every_term(self) -> tuple[Term, ...]:
        """All its rewards, those of a comparison's measures too."""
        return self.terms + (self.compared.terms if self.compared else ())

    @property
    def every_prompt(self) -> tuple[str, ...]:
        """All its prompts, those of a comparison's measures too."""
        return (*self.prompts, *(self.compared.prompts if self.compared else ()))

    @property
    def outputs(self) -> Mapping[str, str]:
        """Output name to path in the stage's folder."""
        return OUTPUTS[self.config.kind]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline without errors.

    Args:
        name: Its name.
        file: The file it was loaded from.
        seed: The seed of every stage that has no own one.
        stages: Name to stage, in the order in which they run.
        replacements: What a rehearsal changed of the file; empty where this is none.
    """

    name: str
    file: Path
    seed: int
    stages: Mapping[str, CheckedStage]
    replacements: tuple[Replacement, ...] = ()

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
    return Pipeline(head.name, file.resolve(), head.seed, checked), []


def _remark(stages: Mapping[str, CheckedStage], document: Document) -> None:
    """Warn once for each named model of what it has to say about all the prompts that it will meet."""
    for name in dict.fromkeys(str(stage.data["model"]) for stage in stages.values() if "model" in stage.data):
        model = named_model(name)
        users = [stage for stage in stages.values() if stage.data.get("model") == name]
        met = [prompt for stage in users for prompt in stage.every_prompt]
        if model is not None and model.remark is not None and (text := model.remark(met)):
            place = document.place(("stages", users[0].name, "prompts"))
            warnings.warn(f"{place}: {text}", DraftWarning, stacklevel=2)


def _check_stage(
    name: str, data: dict[str, Any], seed: Any, document: Document, folder: Path, errors: list[DraftError]
) -> CheckedStage | None:
    keys: Keys = ("stages", name)
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        place = document.place((*keys, "kind"))
        kinds = f"the kinds are {', '.join(KINDS)}"
        if "kind" not in data:
            errors.append(ConfigError(f"missing key 'stages.{name}.kind'", where=place, hint=kinds))
        else:
            hint = did_you_mean(str(kind), list(KINDS), otherwise=kinds)
            errors.append(ConfigError(f"unknown stage kind {kind!r}", where=place, hint=hint))
        return None
    config, found = validate(KINDS[kind], data, keys, document)
    errors += found
    before = len(errors)
    plain = dict(data)
    base = partial(_base, document, folder)
    prompts = check_prompts(plain, keys, document, base, errors)
    rewarded = "rewards" in keys_at(KINDS[kind], (), {})
    terms = check_rewards(plain, keys, prompts, document, base, errors) if rewarded else []
    model = check_model(plain, keys, document, base, errors)
    told = len(errors)
    files = check_files(plain, keys, document, base, errors)
    if len(errors) == told:
        check_foundation(files, keys, document, errors)
    if isinstance(config, TrainStage):
        check_training(config, keys, terms, document, errors)
    check_sampling(config, plain, keys, terms, document, errors)
    if isinstance(config, ProbeStage):
        check_probe(config, keys, terms, document, errors)
    if isinstance(config, StripStage):
        check_strip(config, keys, document, errors)
    if isinstance(config, MixStage):
        check_mixing(config, keys, document, errors)
    compared = None
    if kind == "compare":
        typed = config if isinstance(config, CompareStage) else None
        compared = check_comparison(typed, plain, keys, terms, document, base, errors)
    if config is None or len(errors) > before:
        return None
    own = getattr(config, "seed", None)
    return CheckedStage(
        name=name,
        config=config,
        data=plain,
        seed=seed if own is None else own,
        model=model,
        prompts=prompts or _NO_PROMPTS,
        terms=tuple(terms),
        files=files,
        upstream=tuple(upstream(data)),
        compared=compared,
        environment=document.environment,
    )


def _base(document: Document, folder: Path, keys: Keys) -> Path:
    # A path on the command line is meant from where the person stands, one in the file from the file's folder.
    return Path.cwd() if document.overridden(keys) else folder


def adapter_weights(config: Stage) -> dict[str, float]:
    """Label to weight of a stage's adapters; empty where it has none."""
    match config:
        case MixStage() | EvaluateStage() | GenerateStage():
            return {label: adapter.weight for label, adapter in config.adapters.items()}
    return {}
