"""Methods that hand latents with a gradient to the rewards: roll out, score, one backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from draft.diffusion.linear import linear_form
from draft.diffusion.lora import lora_norm
from draft.diffusion.sampling import Output, predict
from draft.diffusion.surrogate import Group, Networks, Surrogate, checkpointed, roll_out, sample_with_plan
from draft.methods.leaps import call_grid, draw_surrogate, recorded_calls
from draft.methods.plans import Planned, check_steps, draw_plan
from draft.methods.values.leaps import Cached
from draft.scoring.backward import Figures, mean_drop, split_backward
from draft.training.rules.rule import Memoryless
from draft.training.run import Batch, Run
from draft.training.update import Descent, descend


class Backpropagation(Memoryless):
    """The rule of every method whose gradient comes from recorded calls under one reward.

    Args:
        method: The method's value.
        run: The training.
    """

    def __init__(self, method: Planned | Cached, run: Run) -> None:
        self.method = method
        check_steps(method, run.grid.steps)
        if isinstance(method, Cached):
            self.grid = call_grid(method, run.model.schedule(run.size, run.grid.steps), run.grid)
        elif method.traits.eta == "zero":
            linear_form(run.grid, getattr(method, "frozen", "auto"))  # so that its refusal comes before any work

    def update(self, run: Run, step: int) -> Descent:
        """Make one update."""
        return descend(run, self._accumulate, step)

    def _accumulate(self, run: Run, scale: float) -> Figures:
        """Add one batch's gradient to the parameters'."""
        batch, settings = run.next_batch(), run.settings
        share = scale / settings.rollout_reuse
        sink: list[Tensor] = []
        found = []
        for surrogate in self._surrogates(run, batch, sink):
            found.append(
                split_backward(
                    surrogate.latents,
                    run.scorer,
                    batch.prompts,
                    loss=settings.loss,
                    groups=surrogate.groups,
                    penalty=_penalty(run, sink),
                    scale=share,
                )
            )
            sink.clear()
        return _mean(found)

    def _surrogates(self, run: Run, batch: Batch, sink: list[Tensor]) -> Iterator[Surrogate]:
        """One or more differentiable samples of a batch; penalties of their recorded calls go into `sink`."""
        if isinstance(self.method, Cached):
            rollout = roll_out(run.output(batch), run.grid, batch.noise)
            many = recorded_calls(self.method) > 2
            networks = _networks(replace(run, grid=self.grid), batch, sink, checkpointing=many)
            for _ in range(run.settings.rollout_reuse):
                yield draw_surrogate(self.method, networks, self.grid, rollout, run.random.method)
            return
        plan = draw_plan(self.method, run.grid.steps, run.random.method)
        networks = _networks(run, batch, sink, checkpointing=plan.recorded_steps > 2)
        copy_noise = run.draw_noise(batch.noise, plan.copies) if plan.copies else None
        latents = sample_with_plan(networks, run.grid, plan, batch.noise, fresh=batch.fresh, copy_noise=copy_noise)
        yield Surrogate(latents, (Group(),) * (1 + plan.copies))


def _networks(run: Run, batch: Batch, sink: list[Tensor], *, checkpointing: bool) -> Networks:
    settings = run.settings
    recorded = run.output(batch, gradient=settings.cfg_gradient, recorded=True)
    if checkpointing if settings.gradient_checkpointing == "auto" else settings.gradient_checkpointing:
        recorded = checkpointed(recorded)
    if settings.penalty.epsilon:
        recorded = _penalised(recorded, run.output(batch, adapted=False), run, sink)
    return Networks(value=run.output(batch), recorded=recorded)


def _penalised(recorded: Output, base: Output, run: Run, sink: list[Tensor]) -> Output:
    """Keep the mean squared difference to the base model's prediction of every recorded call.

    mean (e - sg(e_base))^2, both guided (DRaFT+, NVIDIA NeMo-Aligner, megatron_sd_draftp_model.py); in flow matching of
    v, since e = x + (1 - s) v says nothing of v at s = 1 (ours).
    """

    def output(x: Tensor, i: int) -> Tensor:
        out = recorded(x, i)
        with torch.no_grad():
            kept = base(x, i)
        if run.grid.prediction != "flow":
            out_e, kept = predict(run.grid, x, out, i)[1], predict(run.grid, x.detach(), kept, i)[1]
        else:
            out_e = out
        sink.append((out_e - kept).square().mean())
        return out

    return output


def _penalty(run: Run, sink: list[Tensor]) -> Tensor | None:
    penalty = run.settings.penalty
    parts = [penalty.epsilon * torch.stack(sink).mean()] if sink else []
    if penalty.lora_norm:
        parts.append(penalty.lora_norm * lora_norm(run.model.network))
    return sum(parts[1:], parts[0]) if parts else None


def _mean(figures: list[Figures]) -> Figures:
    """The mean of several draws' figures."""
    if len(figures) == 1:
        return figures[0]
    return Figures(
        scores=torch.stack([each.scores for each in figures]).mean(0),
        gradients=torch.stack([each.gradients for each in figures if each.gradients is not None]).mean(0),
        saturated=torch.stack([each.saturated for each in figures]).mean(),
        loss=torch.stack([each.loss for each in figures]).mean(),
        evaluations=sum(each.evaluations for each in figures),
        drop=mean_drop(figures),
    )
