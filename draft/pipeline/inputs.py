"""What stages of several kinds have in common, as types: prompts, adapters, rewards; and the head of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from annotated_types import MinLen
from pydantic import Discriminator, Field, Tag

from draft.diffusion.control.schedules import AdapterSchedule, Constant
from draft.marks import Also, Holds

LABEL = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
"""Names of pipelines, adapters, rewards and curves: they become folder, file and metric names.

File systems take 255 bytes, and `-rehearsal` and `.partial` come behind a name."""
STAGE = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$"
"""Names of stages: no dot, because ``${out:stage.output}`` splits there."""

Label: TypeAlias = Annotated[str, Field(pattern=LABEL)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)] | None
Model: TypeAlias = Annotated[Text, Holds("model")]
Rewards: TypeAlias = Annotated[dict[Label, dict[str, Any] | None], Holds("rewards")]
AdapterFile: TypeAlias = Annotated[Text, Holds("adapter")]
Metrics: TypeAlias = Annotated[Text, Holds("metrics")]


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Prompts from a file.

    Args:
        file: A text file with one prompt per line, or a csv, tsv or jsonl file with a column `prompt`; relative to the
            pipeline's folder.
    """

    __pydantic_config__ = {"extra": "forbid"}
    file: Text


def _prompts_kind(value: Any) -> str:
    return "a prompt file" if isinstance(value, Mapping | PromptFile) else "a list of prompts"


PromptSource: TypeAlias = Annotated[
    Annotated[tuple[Text, ...], MinLen(1), Tag("a list of prompts")] | Annotated[PromptFile, Tag("a prompt file")],
    Discriminator(_prompts_kind),
    Holds("prompts"),
]


@dataclass(frozen=True, kw_only=True)
class AdapterInput:
    """An adapter that goes into a stage.

    Args:
        from_: A reference `${out:stage.adapter}`, or a safetensors file relative to the pipeline's folder.
        weight: Its strength; may be negative.
    """

    __pydantic_config__ = {"extra": "forbid"}
    from_: Annotated[Text, Field(alias="from"), Holds("adapter"), Also("file")]
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


@dataclass(frozen=True, kw_only=True)
class ScheduledAdapter(AdapterInput):
    """An adapter for sampling; other stages take only `from` and `weight`.

    Args:
        schedule: In which sampling steps it takes part.
    """

    schedule: Annotated[AdapterSchedule, Field(discriminator="kind")] = field(default_factory=Constant)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A pipeline file before its stages are looked into.

    Args:
        name: The pipeline's name; its results are in `runs/<name>/`.
        stages: Name to stage, in the order in which they run.
        seed: The seed of every stage without one of its own.
        vars: Values that others use as `${vars.name}`.
        rehearsal: Full dotted key to its value in a rehearsal, `draft run --rehearse`.
    """

    __pydantic_config__ = {"extra": "forbid"}
    name: Label
    stages: Annotated[dict[Annotated[str, Field(pattern=STAGE)], dict[str, Any]], MinLen(1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    vars: dict[str, Any] = field(default_factory=dict)
    rehearsal: dict[str, Any] = field(default_factory=dict)
