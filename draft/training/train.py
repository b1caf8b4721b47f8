"""The training loop: a rule's updates, their log, checkpoints and previews."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from draft.adapters.files.formats import Adapter, Factors, write_adapter
from draft.diffusion.families import TextToImage
from draft.diffusion.generate import sample_images
from draft.diffusion.lora import lora_factors
from draft.errors import DivergedError, StageError
from draft.files import write_text
from draft.methods.rules import make_rule
from draft.methods.run import Rule
from draft.methods.values.problems import check_method
from draft.progress import Progress
from draft.report.pictures import contact_sheet, to_picture
from draft.rewards.reward import Term
from draft.scoring.figures import mean_figures
from draft.scoring.guards import check_terms
from draft.scoring.prompt_use import warn_of_cut_prompts, watching_prompts
from draft.training.accelerator import make_accelerator
from draft.training.base_adapters import FRESH, AdapterFiles
from draft.training.branch import FOLDER, Branch, checkpoints, update_of
from draft.training.broken import forget_images, saving_images
from draft.training.checkpoint import load_checkpoint, save_checkpoint
from draft.training.identity import Identity, identity
from draft.training.metrics import MetricsLog, append_metrics, open_log
from draft.training.resume import Continued, branch_off, go_on
from draft.training.run import Run, prepare
from draft.training.schedule import learning_rate_factor
from draft.training.settings import TrainSettings
from draft.types import Prompts

_CLOSING = 10
_BUDGETS = ("evaluations", "seconds")


@dataclass(frozen=True)
class Progressed:
    """A training after an update, for whoever looks on.

    Args:
        step: Updates made.
        row: The update's line of metrics.
        totals: `updates`, `evaluations` and `seconds` of all updates so far, those before a resume too.
        model: The model with the adapter as it is now.
        save: Writes that adapter to a file.
    """

    step: int
    row: Mapping[str, float]
    totals: Mapping[str, float]
    model: TextToImage
    save: Callable[[Path], None]


def train(
    settings: TrainSettings,
    *,
    model: str,
    prompts: Prompts,
    terms: Sequence[Term],
    seed: int,
    folder: Path,
    progress: Progress,
    metadata: Mapping[str, str] = {},
    adapters: AdapterFiles = FRESH,
    branch: Branch | None = None,
    after: Callable[[Progressed], bool] | None = None,
) -> dict[str, float]:
    """Train a LoRA so that sampled images score higher under a weighted sum of rewards.

    Maximises E[sum_k w_k r_k(decode(sample(theta, c, noise)), c)] by the method's gradient, with AdamW. Goes on from
    the newest intact checkpoint under `folder`, to the same adapter, byte for byte, as an uninterrupted run; so does a
    finished training with a larger `max_steps`, from the last state that it kept.

    Args:
        settings: Everything about the training.
        model: Folder, checkpoint file or hub id.
        prompts: The training prompts, with columns for rewards that use them.
        terms: The rewards with their weights.
        seed: Seed of the LoRA, the prompts' order and all noise.
        folder: Gets adapter.safetensors, metrics.jsonl, previews/ and checkpoints/. The last checkpoints stay: whoever
            has put the results where they are safe calls `remove_superseded`.
        progress: Told what happens.
        metadata: Text written into the adapter file; must not depend on time or place.
        adapters: The adapter that the LoRA begins at, and frozen ones under it. The written adapter is the LoRA
            alone: what it began at with what it learned, and nothing of the frozen ones.
        branch: A checkpoint of another training to begin at, where `folder` has none of this one; written into the
            adapter's header with what differs.
        after: Called after each update; its time does not count. The training ends there if it returns True.

    Returns:
        Closing figures: loss, reward and each label's raw score, means of the last 10 updates.

    Raises:
        DraftError: The settings do not go with the method, the model cannot be loaded, a reward cannot train, or the
            training diverged.
    """
    check_method(settings)
    folder.mkdir(parents=True, exist_ok=True)
    forget_images(folder)
    check_terms(terms, gradient=settings.method.traits.reward_gradient)
    if not len(prompts):
        raise StageError("there are no training prompts")
    accelerator = make_accelerator(settings.device, report_to=settings.report_to, folder=folder)
    run = prepare(settings, model, prompts, terms, seed, progress, adapters)
    warn_of_cut_prompts(run.rewards, prompts)
    run = replace(run, scorer=replace(run.scorer, rewards=watching_prompts(run.rewards, prompts)))
    rule = make_rule(settings.method, run)
    name = identity(
        settings, model=model, prompts=prompts, terms=terms, seed=seed, adapters=adapters,
        branch=branch.digest() if branch else "",
    )  # fmt: skip
    states, metrics = folder / FOLDER, folder / "metrics.jsonl"
    continued = _continued(run, rule, states, metrics, name, branch, progress)
    done = continued.step
    log = open_log(metrics, done, continued.metrics, needs=("step", *_BUDGETS), progress=progress)
    rows = log.rows()
    totals = {"updates": float(done)} | {key: sum(row[key] for row in rows) for key in _BUDGETS}
    if settings.report_to:
        accelerator.init_trackers("draft", config={"model": model, "seed": seed, "method": settings.method.kind})
    if done == 0:
        _save_preview(run, folder, 0)
    progress.start("training", settings.max_steps, done=done)
    ended = False
    for step in range(done, settings.max_steps):
        try:
            with saving_images(folder):
                row = _update(run, rule, step)
        except DivergedError as error:
            error.checkpoint = max(map(update_of, checkpoints(states)), default=None)
            raise
        append_metrics(log, row)
        rows = [*rows[1 - _CLOSING :], row]
        totals = {"updates": step + 1.0} | {key: totals[key] + row[key] for key in _BUDGETS}
        _log(accelerator, row, settings)
        progress.advance(1, {"reward": row["reward"], "grad_norm": row["grad_norm"]})
        updates = step + 1
        if settings.preview.every and updates % settings.preview.every == 0:
            _save_preview(run, folder, updates)
        if after is not None and after(
            Progressed(updates, row, totals, run.model, lambda path: _save_adapter(run, path, metadata))
        ):
            ended = True
            break
        if settings.checkpoint.every and updates % settings.checkpoint.every == 0 and updates < settings.max_steps:
            save_checkpoint(states, updates, _state(run, rule, name, continued, log), keep=settings.checkpoint.keep)
    progress.stop()
    _save_adapter(run, folder / "adapter.safetensors", {**metadata, **continued.metadata()})
    if settings.checkpoint.keep_final and not ended:
        state = _state(run, rule, name, continued, log)
        save_checkpoint(states, settings.max_steps, state, keep=settings.checkpoint.keep)
    if settings.report_to:
        accelerator.end_training()
    closing = ["loss", "reward", *(term.label for term in terms)]
    # Lines of a training that this one branched from need not have its labels, and a reward of weight 0 may have no
    # score for some images.
    last = rows[-_CLOSING:]
    figures = {key: [row[key] for row in last if key in row and math.isfinite(row[key])] for key in closing}
    return {key: sum(values) / len(values) for key, values in figures.items() if values}


def _continued(
    run: Run, rule: Rule, states: Path, metrics: Path, name: Identity, branch: Branch | None, progress: Progress
) -> Continued:
    """Where a training begins: at its own newest checkpoint, at another one's, or at nothing."""
    checkpoint = load_checkpoint(states, identity=name, max_steps=run.settings.max_steps)
    if checkpoint is not None:
        return go_on(run, rule, checkpoint, progress)
    if branch is None:
        return Continued()
    continued = branch_off(run, rule, branch, name, progress)
    if continued.metrics is not None:
        write_text(metrics, "".join(f"{line}\n" for line in continued.metrics))
    elif branch.metrics is not None and branch.metrics.is_file():
        shutil.copy(branch.metrics, metrics)
    return continued


def _update(run: Run, rule: Rule, step: int) -> dict[str, float]:
    """One update; returns its line of metrics."""
    began = time.perf_counter()
    settings = run.settings
    rate = settings.learning_rate * learning_rate_factor(
        step, schedule=settings.lr_schedule, warmup_steps=settings.warmup_steps, max_steps=settings.max_steps
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    update = rule.update(run, step)
    means = mean_figures(run.rewards, update.figures)
    other_figures = dict(means.others)
    return {
        "step": step + 1,
        "loss": other_figures.pop("loss"),
        "reward": sum(reward.term.weight * means.scores[reward.label] for reward in run.rewards if reward.term.weight),
        **means.scores,
        "grad_norm": update.grad_norm,
        "lr": rate,
        **other_figures,
        "evaluations": sum(figures.evaluations for figures in update.figures),
        "optimizer_steps": update.optimizer_steps,
        **update.extra,
        "seconds": time.perf_counter() - began,
    }


def _state(run: Run, rule: Rule, name: Identity, continued: Continued, log: MetricsLog) -> dict[str, Any]:
    return {
        "identity": name.state(),
        "history": json.dumps(continued.history),
        "weights": [parameter.detach().cpu() for parameter in run.parameters],
        "optimizer": run.optimizer.state_dict(),
        "random": run.random.state(),
        "rule": rule.state(),
        "metrics": log.packed(),
    }


def _save_adapter(run: Run, path: Path, metadata: Mapping[str, str]) -> None:
    family, factors = run.model.family, lora_factors(run.model.network)
    modules = {f"{family.part}.{name}": Factors(down=a, up=b, scale=1.0) for name, (a, b) in factors.items()}
    write_adapter(Adapter(modules=modules, family=family.name, metadata={}), path, metadata=metadata)


def _save_preview(run: Run, folder: Path, step: int) -> None:
    if run.preview is None:
        return
    conditioning, noise = run.preview
    batch, sampler, size = run.settings.batch_size, replace(run.settings.sampler, eta=0.0), run.size
    images = [
        sample_images(run.model, conditioning[k : k + batch], run.unconditional, noise[k : k + batch], sampler, size)
        for k in range(0, len(noise), batch)
    ]
    file = folder / "previews" / f"step-{step:06d}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([[to_picture(image) for image in torch.cat(images)]], gap=0).save(file)


def _log(accelerator: Accelerator, row: Mapping[str, float], settings: TrainSettings) -> None:
    if settings.report_to:
        accelerator.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
