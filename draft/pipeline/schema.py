"""The stages of a pipeline file as types: what each kind needs, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import MinLen
from pydantic import Discriminator, Field, Tag

from draft.adapters.settings import MixSettings
from draft.comparison.settings import ComparisonSettings, MeasureSettings, MethodConfig
from draft.diffusion.control.schedules import AdapterSchedule, Constant
from draft.diffusion.control.values import SamplingMethod
from draft.evaluation.settings import EvaluateSettings, GenerateSettings
from draft.methods.values import Method
from draft.probe.settings import ProbeSettings
from draft.scoring.objective import LinearLoss, Loss
from draft.strips.settings import StripSettings
from draft.training.settings import TrainSettings

LABEL = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Names of pipelines, adapters, rewards and curves: they become folder, file and metric names."""
STAGE = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""Names of stages: no dot, because ``${out:stage.output}`` splits there."""

Label: TypeAlias = Annotated[str, Field(pattern=LABEL)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Prompts from a file.

    Args:
        file: A text file with one prompt per line, or a csv or jsonl file with a column `prompt`; relative to the
            pipeline's folder.
    """

    __pydantic_config__ = {"extra": "forbid"}
    file: Text


@dataclass(frozen=True, kw_only=True)
class AdapterInput:
    """An adapter that goes into a stage.

    Args:
        from_: A reference `${out:stage.adapter}`, or a safetensors file relative to the pipeline's folder.
        weight: Its strength; may be negative.
        schedule: In which sampling steps it takes part, where images are made.
    """

    __pydantic_config__ = {"extra": "forbid"}
    from_: Annotated[Text, Field(alias="from")]
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    schedule: Annotated[AdapterSchedule, Field(discriminator="kind")] = field(default_factory=Constant)


@dataclass(frozen=True, kw_only=True)
class BaseAdapter:
    """A frozen adapter beneath the one that learns.

    Args:
        file: A reference `${out:stage.adapter}`, or a safetensors file relative to the pipeline's folder.
        weight: Its strength; may be negative.
    """

    __pydantic_config__ = {"extra": "forbid"}
    file: Text
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


def _prompts_kind(value: Any) -> str:
    return "a prompt file" if isinstance(value, Mapping | PromptFile) else "a list of prompts"


PromptSource: TypeAlias = Annotated[
    Annotated[tuple[Text, ...], MinLen(1), Tag("a list of prompts")] | Annotated[PromptFile, Tag("a prompt file")],
    Discriminator(_prompts_kind),
]
Adapters: TypeAlias = dict[Label, AdapterInput]
Rewards: TypeAlias = dict[Label, dict[str, Any] | None]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)] | None


@dataclass(frozen=True, kw_only=True)
class TrainStage(TrainSettings):
    """Train a LoRA adapter for a weighted sum of rewards.

    Args:
        kind: `train`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`.
        rewards: Label to options: `use` (default: the label), `weight`, `device`, `isolated` and the reward's own.
        init_adapter: What the adapter begins at, `${out:stage.adapter}` or a safetensors file; null: at nothing.
        base_adapters: Frozen adapters beneath the one that learns, a list of `{file, weight}`.
        seed: The stage's own seed; None: the file's.
    """

    kind: Literal["train"]
    model: Text
    prompts: PromptSource
    rewards: Annotated[Rewards, MinLen(1)]
    loss: Annotated[Loss, Field(discriminator="kind")] = field(default_factory=LinearLoss)
    init_adapter: Text | None = None
    base_adapters: tuple[BaseAdapter, ...] = ()
    seed: Seed = None


@dataclass(frozen=True, kw_only=True)
class MixStage(MixSettings):
    """Add adapters, each times its weight, into one exact adapter, or one of a smaller rank with a known error.

    Args:
        kind: `mix`.
        adapters: Label to `{from, weight}`.
        seed: Of the method `dare`; null: the file's.
    """

    kind: Literal["mix"]
    adapters: Annotated[Adapters, MinLen(1)]
    seed: Seed = None


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(EvaluateSettings):
    """Compare adapters with the base model on the same prompts and seeds, and write a page.

    Args:
        kind: `evaluate`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`; held-out ones.
        adapters: Label to `{from, weight, schedule}`; the base model is always compared.
        rewards: Label to options: `use` (default: the label), `device`, `isolated` and the reward's own.
        curves: Label to a training's `metrics.jsonl`, usually `${out:stage.metrics}`: the page draws them.
        seed: The stage's own seed; None: the file's.
    """

    kind: Literal["evaluate"]
    model: Text
    prompts: PromptSource
    rewards: Annotated[Rewards, MinLen(1)]
    adapters: Adapters = field(default_factory=dict)
    curves: dict[Label, Text] = field(default_factory=dict)
    seed: Seed = None


@dataclass(frozen=True, kw_only=True)
class GenerateStage(GenerateSettings):
    """Make images from prompts and fixed seeds, with the base model or each adapter, and with more reward if asked for.

    Args:
        kind: `generate`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`.
        adapters: Label to `{from, weight, schedule}`; empty: the base model alone.
        method: How a reward is raised while sampling, without training; null: images as the models make them.
        rewards: Label to options, as in `train`; what the method raises.
        seed: The stage's own seed; None: the file's.
    """

    kind: Literal["generate"]
    model: Text
    prompts: PromptSource
    adapters: Adapters = field(default_factory=dict)
    method: Annotated[SamplingMethod, Field(discriminator="kind")] | None = None
    rewards: Rewards = field(default_factory=dict)
    seed: Seed = None


@dataclass(frozen=True, kw_only=True)
class Measure(MeasureSettings):
    """What is looked at where a budget is spent.

    Args:
        prompts: A list, or `{file: ...}`; held-out ones.
        rewards: Label to options, as in `evaluate`; measured besides the rewards that are trained for.
    """

    prompts: PromptSource
    rewards: Rewards = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComparedMethod(MethodConfig):
    """A method of a comparison, merged with what the stage says for all of them.

    Args:
        method: Which sampling steps carry gradient, and what stands for the adjoint.
        loss: The loss of an image as a function of its weighted sum of rewards R.
    """

    method: Method  # pyright: ignore[reportGeneralTypeIssues]
    loss: Annotated[Loss, Field(discriminator="kind")] = field(default_factory=LinearLoss)


@dataclass(frozen=True, kw_only=True)
class CompareStage(ComparisonSettings):
    """Compare methods: the same budget for each, its learning rate found by the same search, several seeds.

    Args:
        kind: `compare`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`; the training prompts.
        rewards: Label to options, as in `train`; what all methods train for.
        methods: Label to `{method: {kind: ...}}` and whatever is other for this method: `learning_rates`, `loss`,
            `sampler: {eta: 1}`, `batch_size`, ...
        measure: What is looked at where a budget is spent.
        loss: The loss of an image as a function of its weighted sum of rewards R.
        seed: Seed of the first image that is measured; None: the file's. The trainings have `seeds`.
    """

    kind: Literal["compare"]
    model: Text
    prompts: PromptSource
    rewards: Annotated[Rewards, MinLen(1)]
    methods: Annotated[dict[Label, dict[str, Any]], MinLen(1)]
    measure: Measure
    loss: Annotated[Loss, Field(discriminator="kind")] = field(default_factory=LinearLoss)
    seed: Seed = None


@dataclass(frozen=True, kw_only=True)
class ProbedAdapter:
    """A trained adapter whose gradient is measured.

    Args:
        from_: A reference `${out:stage.adapter}`, or a safetensors file relative to the pipeline's folder.
        weight: Its strength; may be negative.
    """

    __pydantic_config__ = {"extra": "forbid"}
    from_: Annotated[Text, Field(alias="from")]
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


@dataclass(frozen=True, kw_only=True)
class ProbeStage(ProbeSettings):
    """Measure the gradient through all sampling steps, against K and step by step, before anybody trains through them.

    Args:
        kind: `probe`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`.
        rewards: Label to options, as in `train`; what the gradient is of.
        adapter: A trained adapter to probe, `{from, weight}`; null: a fresh LoRA, as at the start of a training.
        seed: The stage's own seed; None: the file's.
    """

    kind: Literal["probe"]
    model: Text
    prompts: PromptSource
    rewards: Annotated[Rewards, MinLen(1)]
    adapter: ProbedAdapter | None = None
    seed: Seed = None


@dataclass(frozen=True, kw_only=True)
class StripAdapter:
    """An adapter whose scale a strip goes through.

    Args:
        from_: A reference `${out:stage.adapter}`, or a safetensors file relative to the pipeline's folder.
    """

    __pydantic_config__ = {"extra": "forbid"}
    from_: Annotated[Text, Field(alias="from")]


@dataclass(frozen=True, kw_only=True)
class StripStage(StripSettings):
    """Draw what an adapter does over its scale, or two over both, from the same noise, with the rewards' curves.

    Args:
        kind: `strip`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`.
        adapters: Label to `{from}`: one, or two whose scales make a grid.
        rewards: Label to options, as in `evaluate`; what the curves are of. Empty: images alone.
    """

    kind: Literal["strip"]
    model: Text
    prompts: PromptSource
    adapters: Annotated[dict[Label, StripAdapter], MinLen(1)]
    rewards: Rewards = field(default_factory=dict)


Stage: TypeAlias = TrainStage | MixStage | EvaluateStage | GenerateStage | CompareStage | ProbeStage | StripStage


@dataclass(frozen=True, kw_only=True)
class Head:
    """A pipeline file before its stages are looked into.

    Args:
        name: The pipeline's name; its results lie in `runs/<name>/`.
        stages: Name to stage, in the order in which they run.
        seed: The seed of every stage that has no own one.
        vars: Values that others use as `${vars.name}`.
        rehearsal: Full dotted key to its value in a rehearsal, `draft run --rehearse`.
    """

    __pydantic_config__ = {"extra": "forbid"}
    name: Label
    stages: Annotated[dict[Annotated[str, Field(pattern=STAGE)], dict[str, Any]], MinLen(1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    vars: dict[str, Any] = field(default_factory=dict)
    rehearsal: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PipelineFile(Head):
    """A pipeline: a name, a seed, variables, and stages."""

    stages: Annotated[
        dict[Annotated[str, Field(pattern=STAGE)], Annotated[Stage, Field(discriminator="kind")]], MinLen(1)
    ]


KINDS: Mapping[str, type[Any]] = {
    "train": TrainStage,
    "mix": MixStage,
    "evaluate": EvaluateStage,
    "generate": GenerateStage,
    "compare": CompareStage,
    "probe": ProbeStage,
    "strip": StripStage,
}
"""The stage kinds, a closed set: that is what makes errors good."""

OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "train": {"adapter": "adapter.safetensors", "metrics": "metrics.jsonl"},
    "mix": {"adapter": "adapter.safetensors"},
    "evaluate": {"report": "report.html", "results": "report.json", "adapters": "adapters"},
    "generate": {"images": "images"},
    "compare": {"report": "compare.html", "results": "compare.json", "table": "compare.md", "plot": "compare.png"},
    "probe": {"report": "probe.html", "results": "probe.json", "table": "probe.md"},
    "strip": {"report": "strip.html", "strip": "strip.png", "results": "strip.json", "scores": "strip.csv"},
}
"""Stage kind to output name to path in the stage's folder, for ``${out:stage.output}``."""

VERSIONS: Mapping[str, int] = {"train": 1, "mix": 2, "evaluate": 2, "generate": 1, "compare": 1, "probe": 1, "strip": 1}
"""Raised when a stage kind would give other results from the same configuration, so that old ones are not reused."""
