"""`kind: strip`: what an adapter does over its scale, or two over both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Field

from draft.errors import DraftError, Problem
from draft.isolation.reward import ending_processes
from draft.marks import Holds
from draft.pipeline.inputs import Label, Model, PromptSource, Rewards, Text
from draft.pipeline.kinds.kind import Candidate, Job, Kind
from draft.strips.settings import SCALES, StripSettings


@dataclass(frozen=True, kw_only=True)
class StripAdapter:
    """An adapter whose scale a strip goes through.

    Args:
        from_: A reference `${out:stage.adapter}`, or a safetensors file relative to the pipeline's folder.
    """

    __pydantic_config__ = {"extra": "forbid"}
    from_: Annotated[Text, Field(alias="from"), Holds("adapter")]


@dataclass(frozen=True, kw_only=True)
class StripStage(StripSettings):
    """Plot an adapter across its scale, or two as a grid, from the same noise, with the rewards' curves.

    Args:
        kind: `strip`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`.
        adapters: Label to `{from}`: one, or two whose scales make a grid.
        rewards: Label to options, as in `evaluate`; what the curves are of. Empty: images alone.
    """

    kind: Literal["strip"]
    model: Model
    prompts: PromptSource
    adapters: Annotated[dict[Label, StripAdapter], MinLen(1)]
    rewards: Rewards = field(default_factory=dict)


def run(job: Job) -> Mapping[str, float]:
    """Draw adapters over their scales."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.strips.strip import draw_strip

    stage = job.stage
    with explain_out_of_memory(), ending_processes(stage.terms):
        return draw_strip(
            stage.config,
            model=stage.model,
            adapters={label: job.files["adapters", label, "from"] for label in stage.config.adapters},
            prompts=stage.prompts,
            terms=stage.terms,
            folder=job.folder,
            progress=job.progress,
            **job.page(),
        )


def problems(candidate: Candidate) -> Iterator[DraftError]:
    """More than two adapters, a second axis without one, a scale or seed twice."""
    for problem in _problems(candidate.config):
        yield candidate.problem(problem)


def _problems(config: StripStage) -> Iterator[Problem]:
    count = len(config.adapters)
    if count > 2:
        hint = "mix some of them first, in a mix stage"
        yield Problem(("adapters",), f"adapters must be one or two (got {count})", hint)
    if count == 1 and config.scales_b != SCALES:
        yield Problem(("scales_b",), "scales_b has no effect with one adapter", "name a second one under adapters")
    axes: dict[str, tuple[Any, ...]] = {"scales": config.scales, "scales_b": config.scales_b, "seeds": config.seeds}
    for key, values in axes.items():
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if twice:
            yield Problem((key,), f"{key} has {twice[0]:g} twice")


STRIP = Kind(
    settings=StripStage,
    outputs={"report": "strip.html", "strip": "strip.png", "results": "strip.json", "scores": "strip.csv"},
    run=f"{__name__}:run",
    extras={"images": "images"},
    problems=problems,
)
