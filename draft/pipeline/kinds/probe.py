"""`kind: probe`: the gradient through all sampling steps, before training through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import MinLen

from draft.diffusion.settings import LoraSettings
from draft.errors import DraftError
from draft.isolation.reward import ending_processes
from draft.pipeline.inputs import AdapterInput, Model, PromptSource, Rewards, Seed
from draft.pipeline.kinds.kind import Candidate, Job, Kind
from draft.pipeline.kinds.train import weight_problems
from draft.probe.settings import ProbeSettings
from draft.rewards.parts import without_gradient


@dataclass(frozen=True, kw_only=True)
class ProbeStage(ProbeSettings):
    """Measure the gradient through all sampling steps, against K and step by step, before training through them.

    Args:
        kind: `probe`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`.
        rewards: Label to options, as in `train`; what the gradient is of.
        adapter: A trained adapter to probe, `{from, weight}`; null: a fresh LoRA, as at the start of a training.
        seed: The stage's own seed; None: the file's.
    """

    kind: Literal["probe"]
    model: Model
    prompts: PromptSource
    rewards: Annotated[Rewards, MinLen(1)]
    adapter: AdapterInput | None = None
    seed: Seed = None


def run(job: Job) -> Mapping[str, float]:
    """Measure the gradient through all sampling steps, and write tables and the page."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.probe.probe import probe

    stage, adapter = job.stage, job.stage.config.adapter
    with explain_out_of_memory(), ending_processes(stage.terms):
        return probe(
            stage.config,
            model=stage.model,
            prompts=stage.prompts,
            terms=stage.terms,
            seed=stage.seed,
            folder=job.folder,
            progress=job.progress,
            adapter=(job.files["adapter", "from"], adapter.weight) if adapter else None,
            **job.page(),
        )


def problems(candidate: Candidate) -> Iterator[DraftError]:
    """Rewards without weight or gradient, and a LoRA that is both fresh and trained."""
    yield from weight_problems(candidate)
    config: ProbeStage = candidate.config
    if config.adapter is not None:
        for key, value, default in (("lora", config.lora, LoraSettings()), ("lora_b", config.lora_b, 0.0)):
            if value != default:
                probed = candidate.name("adapter")
                what = f"{candidate.name(key)} describes a fresh LoRA, and {probed} is probed instead of one"
                yield candidate.error(what, key, hint="drop one of the two")
    for term in candidate.terms:
        for inner, reward in without_gradient(term.reward) if term.weight else ():
            what = f"reward {reward.name!r} has no gradient, so it cannot be probed"
            hint = "leave it out, or give it weight: 0 to log its score"
            yield candidate.error(what, "rewards", term.label, *inner, hint=hint)


PROBE = Kind(
    settings=ProbeStage,
    outputs={"report": "probe.html", "results": "probe.json", "table": "probe.md"},
    run=f"{__name__}:run",
    problems=problems,
)
