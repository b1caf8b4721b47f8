"""Going on: from a training's own checkpoint as if it had never stopped, or from another one's as a branch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from draft.errors import StageError
from draft.methods.run import Rule
from draft.progress import Progress
from draft.training.branch import Branch
from draft.training.checkpoint import Checkpoint, read_checkpoint
from draft.training.identity import Identity, change_words, differences
from draft.training.metrics import unpacked
from draft.training.run import Run
from draft.training.settings import TrainSettings


@dataclass(frozen=True)
class Continued:
    """How a training got where it is, besides by its updates.

    Args:
        step: Updates made.
        history: A line each time it went on with something changed: `update`, `changed`, and `branch` with the
            checkpoint's digest where another training made the updates before. Empty for a training that never did.
        metrics: The lines of metrics.jsonl up to there; None: there are none, or the checkpoint is an earlier
            version's.
    """

    step: int = 0
    history: tuple[Mapping[str, Any], ...] = field(default=())
    metrics: tuple[str, ...] | None = None

    def metadata(self) -> dict[str, str]:
        """What an adapter file says about it: nothing where the history is empty."""
        return {"draft.continued": json.dumps(self.history, sort_keys=True)} if self.history else {}


def go_on(run: Run, rule: Rule, checkpoint: Checkpoint, progress: Progress) -> Continued:
    """Put a checkpoint's state back.

    Args:
        run: The training before its first update, changed in place.
        rule: Its rule, changed in place.
        checkpoint: One that fits it.
        progress: Hears from which update on, and what has changed.

    Returns:
        Where it is now.
    """
    state, step = checkpoint.state, checkpoint.step
    _restore_weights(run, state)
    _restore_optimizer(run, state)
    run.random.restore(state["random"])
    rule.restore(state["rule"])
    history = tuple(json.loads(state["history"]))
    progress.say(f"going on after update {step}")
    changes = dict(checkpoint.changes)
    if not _rate_depends_on_length(run.settings, step):
        changes.pop("max_steps", None)  # byte for byte as if asked for from the start
    metrics = unpacked(state.get("metrics"))
    if not changes:
        return Continued(step, history, metrics)
    progress.say(f"changed since: {change_words(changes)}")
    if "max_steps" in changes:
        progress.say(
            f"the learning rate of updates 1 to {step} followed lr_schedule: {run.settings.lr_schedule} towards "
            f"{changes['max_steps'][0]} updates, not {changes['max_steps'][1]}"
        )
    return Continued(step, (*history, {"update": step, "changed": changes}), metrics)


def branch_off(run: Run, rule: Rule, branch: Branch, identity: Identity, progress: Progress) -> Continued:
    """Begin at another training's checkpoint: its weights, and of the rest what this training has too.

    Args:
        run: The training before its first update, changed in place.
        rule: Its rule, changed in place.
        branch: The checkpoint.
        identity: What this training is.
        progress: Hears what differs.

    Returns:
        Where it is now.

    Raises:
        StageError: The checkpoint is damaged, or its LoRA has another shape.
    """
    state = read_checkpoint(branch.checkpoint)
    if state is None:
        raise StageError(f"checkpoint {branch.checkpoint} is damaged", hint="branch from another update")
    step = int(state["step"])
    if step >= run.settings.max_steps:
        raise StageError(
            f"max_steps must be more than the {step} updates that the branch begins after "
            f"(got {run.settings.max_steps})"
        )
    saved = Identity.restored(state.get("identity"))
    if saved is None:
        raise StageError(f"checkpoint {branch.checkpoint} is of an earlier version of Draft", hint="train anew")
    changes = differences(saved.decisive, identity.decisive) | differences(saved.extends, identity.extends)
    changes.pop("branch", None)
    _restore_weights(run, state)
    _restore_optimizer(run, state)
    same_prompts = saved.decisive["prompts"] == identity.decisive["prompts"]
    run.random.restore(state["random"], order=same_prompts)
    progress.say(f"branches after update {step}" + (f": {change_words(changes)}" if changes else ""))
    if any(key.partition(".")[0] == "method" for key in changes):
        progress.say("the method's own memory begins anew")
    else:
        rule.restore(state["rule"])
    event = {"update": step, "changed": changes, "branch": branch.digest()}
    return Continued(step, (*json.loads(state["history"]), event), unpacked(state.get("metrics")))


def _restore_weights(run: Run, state: Mapping[str, Any]) -> None:
    weights: Sequence[torch.Tensor] = state["weights"]
    shapes = [tuple(parameter.shape) for parameter in run.parameters]
    if [tuple(weight.shape) for weight in weights] != shapes:
        raise StageError(
            f"the checkpoint's LoRA has other shapes ({len(weights)} tensors) than this training's ({len(shapes)})",
            hint="lora.rank and lora.targets must be those of the training that it branches from",
        )
    with torch.no_grad():
        for parameter, weight in zip(run.parameters, weights, strict=True):
            parameter.copy_(weight)


def _restore_optimizer(run: Run, state: Mapping[str, Any]) -> None:
    """The moments of the checkpoint with this training's own settings: rates, decay, and how a step is computed."""
    saved = state["optimizer"]
    groups = zip(run.optimizer.param_groups, saved["param_groups"], strict=True)
    merged = [{**theirs, **{k: v for k, v in ours.items() if k != "params"}} for ours, theirs in groups]
    run.optimizer.load_state_dict({"state": saved["state"], "param_groups": merged})


def _rate_depends_on_length(settings: TrainSettings, step: int) -> bool:
    return settings.lr_schedule != "constant" and step > settings.warmup_steps
