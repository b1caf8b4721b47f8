"""`kind: compare`: methods under one budget, each at the learning rate that suits it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Field

from draft.comparison.settings import ComparisonSettings, MeasureSettings, MethodConfig
from draft.errors import DraftError
from draft.isolation.reward import ending_processes
from draft.marks import Partly, hints
from draft.methods.values import Method
from draft.pipeline.document import Document, Keys
from draft.pipeline.explain import validate
from draft.pipeline.inputs import Label, Model, PromptSource, Rewards, Seed
from draft.pipeline.kinds.kind import REWARDS, Candidate, Job, Kind
from draft.pipeline.kinds.train import training_problems, weight_problems
from draft.scoring.objective import LinearLoss, Loss
from draft.training.settings import LearningSettings

HELD_OUT: Keys = ("measure", "prompts")
MEASURED: Keys = ("measure", "rewards")


@dataclass(frozen=True, kw_only=True)
class Measure(MeasureSettings):
    """How a trained adapter is evaluated when a budget runs out.

    Args:
        prompts: A list, or `{file: ...}`; held-out ones.
        rewards: Label to options, as in `evaluate`; measured in addition to the training rewards.
    """

    prompts: PromptSource
    rewards: Rewards = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComparedMethod(MethodConfig):
    """A method of a comparison, merged with the settings that the stage has for all of them.

    Args:
        method: Which sampling steps carry gradient, and what is substituted for the adjoint.
        loss: The loss of an image as a function of its weighted sum of rewards R.
    """

    method: Method  # pyright: ignore[reportGeneralTypeIssues]
    loss: Annotated[Loss, Field(discriminator="kind")] = field(default_factory=LinearLoss)


@dataclass(frozen=True, kw_only=True)
class CompareStage(ComparisonSettings):
    """Compare methods with the same budget and learning-rate search for each, over several seeds.

    Args:
        kind: `compare`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`; the training prompts.
        rewards: Label to options, as in `train`; what all methods train for.
        methods: Label to `{method: {kind: ...}}` and the settings in which this method differs: `learning_rates`,
            `loss`, `sampler: {eta: 1}`, `batch_size`, ...
        measure: How a trained adapter is evaluated when a budget runs out.
        loss: The loss of an image as a function of its weighted sum of rewards R.
        seed: Seed of the first image that is measured; None: the file's. The trainings have `seeds`.
    """

    kind: Literal["compare"]
    model: Model
    prompts: PromptSource
    rewards: Annotated[Rewards, MinLen(1)]
    methods: Annotated[dict[Label, Annotated[dict[str, Any], Partly(ComparedMethod)]], MinLen(1)]
    measure: Measure
    loss: Annotated[Loss, Field(discriminator="kind")] = field(default_factory=LinearLoss)
    seed: Seed = None


@dataclass(frozen=True, kw_only=True)
class CompleteStage(CompareStage):
    """A comparison whose methods have all their settings.

    Args:
        methods: Label to the settings of that method's trainings.
    """

    methods: dict[Label, ComparedMethod]  # pyright: ignore[reportIncompatibleVariableOverride]


def run(job: Job) -> Mapping[str, float]:
    """Compare methods under one budget and write tables, curves and the page."""
    from draft.comparison.compare import compare
    from draft.comparison.training import TrainingInputs

    stage = job.stage
    with ending_processes(stage.every_term):
        return compare(
            stage.config,
            stage.config.methods,
            inputs=TrainingInputs(model=stage.model, prompts=stage.prompts, terms=stage.terms),
            measure=stage.config.measure,
            held_out=stage.inputs.prompts[HELD_OUT],
            measures=stage.inputs.terms.get(MEASURED, ()),
            seed=stage.seed,
            folder=job.folder,
            progress=job.progress,
            **job.page(),
        )


def problems(candidate: Candidate) -> Iterator[DraftError]:
    """Labels that are taken, and what each method cannot do or may not set for itself."""
    yield from weight_problems(candidate)
    yield from _label_problems(candidate)
    config: CompareStage = candidate.config
    for label, overrides in config.methods.items():
        method_keys = ("methods", label)
        for key in overrides:
            if key in hints(ComparedMethod) and key not in _PER_METHOD:
                hint = "a method's learning rates are its `learning_rates`" if key == "learning_rate" else ""
                what = f"{candidate.name(*method_keys, key)} cannot be set for one method"
                yield candidate.error(what, *method_keys, key, hint=hint)
        method, errors = validate(
            ComparedMethod, _merged(config, overrides), (*candidate.keys, *method_keys), candidate.document
        )
        yield from errors if method is None else training_problems(candidate, method, method_keys)


_COMMON = {*hints(LearningSettings), "learning_rates", "checkpoint"}
_PER_METHOD = (_COMMON | {"method"}) - {"checkpoint", "device"}
"""What a method may have for itself; the rest of a training is up to the comparison, or must not be other."""


def complete(config: CompareStage) -> CompleteStage:
    """Give every method the settings that it shares with the others."""
    document = Document("", {})
    settings: dict[str, Any] = {setting.name: getattr(config, setting.name) for setting in fields(config)}
    settings["methods"] = {
        label: validate(ComparedMethod, _merged(config, overrides), ("methods", label), document)[0]
        for label, overrides in config.methods.items()
    }
    return CompleteStage(**settings)


def _merged(config: CompareStage, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings: its own, and for the rest the stage's."""
    shared = {key: value for key, value in asdict(config).items() if key in _COMMON}
    chosen = {key: value for key, value in overrides.items() if key in _PER_METHOD or key not in hints(ComparedMethod)}
    return shared | {key: _joined(shared.get(key), value) for key, value in chosen.items()}


def _joined(shared: Any, override: Any) -> Any:
    """A mapping's keys are replaced one by one, but what has a `kind` as a whole."""
    if isinstance(shared, Mapping) and isinstance(override, Mapping) and "kind" not in shared:
        return {**shared, **override}
    return override


def _label_problems(candidate: Candidate) -> Iterator[DraftError]:
    trained = {term.label for term in candidate.terms}
    measured = {term.label for term in candidate.inputs.terms.get(MEASURED, ())}
    for label in sorted(trained & measured):
        what = f"{candidate.name(*MEASURED, label)} has the label of a reward that is trained for"
        hint = "what is trained for is measured anyway; for another reward choose another label and add `use`"
        yield candidate.error(what, *MEASURED, label, hint=hint)
    for keys, labels in ((REWARDS, trained), (MEASURED, measured)):
        if "reward" in labels:
            what = f"{candidate.name(*keys, 'reward')} has the label of the weighted sum"
            yield candidate.error(what, *keys, "reward", hint="choose another label and add `use`")


COMPARE = Kind(
    settings=CompareStage,
    outputs={"report": "compare.html", "results": "compare.json", "table": "compare.md", "plot": "compare.png"},
    run=f"{__name__}:run",
    extras={"trainings": "trainings"},
    problems=problems,
    complete=complete,
    timed=True,
    renamed={"held_out": ".".join(HELD_OUT), "measured": ".".join(MEASURED)},
)
