"""`kind: train`: a LoRA adapter for a weighted sum of rewards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Field

from draft.adapters.files.header import read_header
from draft.errors import DraftError, did_you_mean
from draft.isolation.reward import ending_processes
from draft.methods.values.problems import method_problems
from draft.pipeline.inputs import AdapterFile, AdapterInput, Model, PromptSource, Rewards, Seed
from draft.pipeline.kinds.kind import Candidate, HeldFile, Job, Kind
from draft.rewards.parts import without_gradient
from draft.rewards.reward import Term
from draft.scoring.objective import LinearLoss, Loss
from draft.training.branch import FOLDER, Branch, find_checkpoint, remove_superseded
from draft.training.settings import TrainSettings

TRACKERS: Mapping[str, tuple[str, ...]] = {
    "aim": ("aim",),
    "clearml": ("clearml",),
    "comet_ml": ("comet_ml",),
    "dvclive": ("dvclive",),
    "mlflow": ("mlflow",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""accelerate's trackers, each with the modules of which it needs one."""

_TEXT = ("lora_te", "text_encoder", "base_model.model.text_model", "te1_", "te2_")


@dataclass(frozen=True, kw_only=True)
class TrainStage(TrainSettings):
    """Train a LoRA adapter for a weighted sum of rewards.

    Args:
        kind: `train`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`.
        rewards: Label to options: `use` (default: the label), `weight`, `device`, `isolated` and the reward's own.
        init_adapter: What the trained adapter starts from, `${out:stage.adapter}` or a safetensors file; null: a fresh
            LoRA.
        base_adapters: Frozen adapters that become part of the base model, a list of `{from, weight}`.
        seed: The stage's own seed; None: the file's.
    """

    kind: Literal["train"]
    model: Model
    prompts: PromptSource
    rewards: Annotated[Rewards, MinLen(1)]
    loss: Annotated[Loss, Field(discriminator="kind")] = field(default_factory=LinearLoss)
    init_adapter: AdapterFile | None = None
    base_adapters: tuple[AdapterInput, ...] = ()
    seed: Seed = None


def run(job: Job) -> Mapping[str, float]:
    """Train an adapter."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.training.base_adapters import AdapterFiles
    from draft.training.train import train

    stage = job.stage
    base_adapters = [
        (job.files["base_adapters", index, "from"], adapter.weight)
        for index, adapter in enumerate(stage.config.base_adapters)
    ]
    with explain_out_of_memory(), ending_processes(stage.terms):
        return train(
            stage.config,
            model=stage.model,
            prompts=stage.prompts,
            terms=stage.terms,
            seed=stage.seed,
            folder=job.folder,
            progress=job.progress,
            metadata=job.metadata,
            adapters=AdapterFiles(job.files.get(("init_adapter",)), tuple(base_adapters)),
            branch=Branch.at(job.branch) if job.branch else None,
        )


def tidy(folder: Path, config: TrainStage) -> None:
    """Remove the checkpoints that only an interrupted training needs."""
    remove_superseded(folder / FOLDER, keep_final=config.checkpoint.keep_final)


def problems(candidate: Candidate) -> Iterator[DraftError]:
    """What is wrong with a training: its method, its rewards, its trackers, the adapters that it is built on."""
    yield from weight_problems(candidate)
    yield from training_problems(candidate, candidate.config)
    yield from _tracker_problems(candidate)
    yield from _adapter_problems(candidate)


def weight_problems(candidate: Candidate) -> Iterator[DraftError]:
    """Rewards of which none counts, so that there is nothing to train for or to take a gradient of."""
    terms, rewards = candidate.terms, candidate.config.rewards
    if len(terms) == len(rewards) and not any(term.weight for term in terms):
        what = f"{candidate.name('rewards')} must have at least one reward with a weight other than 0"
        yield candidate.error(what, "rewards", hint="a reward of weight 0 is only logged")


def training_problems(candidate: Candidate, config: TrainSettings, keys: Sequence[str] = ()) -> Iterator[DraftError]:
    """What a training's method cannot do.

    Args:
        candidate: The stage with the training.
        config: The training's settings.
        keys: Where the stage has them; nothing: they are its own.

    Yields:
        The errors.
    """
    for problem in method_problems(config):
        yield candidate.problem(problem, *keys)
    for term in candidate.terms:
        if term.weight:
            yield from _term_problems(candidate, config, keys, term)


def _term_problems(
    candidate: Candidate, config: TrainSettings, keys: Sequence[str], term: Term
) -> Iterator[DraftError]:
    method, name = config.method, term.reward.name
    for inner, reward in without_gradient(term.reward) if method.traits.reward_gradient else ():
        yield candidate.error(
            f"reward {reward.name!r} has no gradient, so {method.kind} cannot train for it",
            *(*keys, "rewards", term.label, *inner),
            hint="measure it in an evaluate stage instead, or train by ddpo or best_of_n",
        )
    if not term.reward.per_image and config.loss.kind != "linear":
        yield candidate.error(
            f"{candidate.name(*keys)}.loss must be linear with reward {name!r}, whose scores depend on the batch "
            f"(got {config.loss.kind})",
            *(*keys, "loss"),
            hint="other losses need each image's own gradient",
        )
    if not term.reward.per_image and method.traits.weighs_samples:
        yield candidate.error(
            f"{method.kind} cannot train for reward {name!r}, whose scores depend on the batch: "
            "the method weighs each sample by itself",
            *(*keys, "rewards", term.label),
            hint="use draft_lv or flow_bp_sparse",
        )


def _tracker_problems(candidate: Candidate) -> Iterator[DraftError]:
    for index, name in enumerate(candidate.config.report_to):
        modules = TRACKERS.get(name)
        if modules is None:
            hint = did_you_mean(name, list(TRACKERS), otherwise=f"the trackers are {', '.join(TRACKERS)}")
            yield candidate.error(f"unknown tracker {name!r}", "report_to", index, hint=hint)
        elif not any(map(find_spec, modules)):
            hint = "install it, or remove it from report_to; metrics.jsonl is always written"
            yield candidate.error(f"tracker {name!r} is not installed", "report_to", index, hint=hint)


def _adapter_problems(candidate: Candidate) -> Iterator[DraftError]:
    """Files that cannot be read, do not reach the denoiser, or come twice; the training sees ranks and shapes."""
    base_files: dict[str, HeldFile] = {}
    for file in candidate.inputs.files:
        key = candidate.name(*file.keys)
        if file.keys[0] == "base_adapters":
            if file.source in base_files:
                first = ".".join(map(str, base_files[file.source].keys[:2]))
                what = f"{key} is the adapter of {first} once more (got {file.source!r})"
                yield candidate.error(what, *file.keys, hint="give it once, with the sum of both weights")
            base_files.setdefault(file.source, file)
        if file.reference:
            continue
        try:
            names = read_header(Path(file.source)).tensors
        except DraftError as error:
            yield candidate.error(f"{key}: {error.what} (got {file.source!r})", *file.keys, hint=error.hint)
            continue
        if names and all(name.startswith(_TEXT) for name in names):
            what = (
                f"{key} changes text encoders alone, and a training has to do with the denoiser (got {file.source!r})"
            )
            yield candidate.error(what, *file.keys)


TRAIN = Kind(
    settings=TrainStage,
    outputs={"adapter": "adapter.safetensors", "metrics": "metrics.jsonl"},
    run=f"{__name__}:run",
    byproducts={"previews": "previews"},
    problems=problems,
    carries=(FOLDER, "metrics.jsonl", "previews"),
    checkpoint=find_checkpoint,
    tidy=tidy,
)
