"""The rule of methods that hand latents with a gradient to the rewards: roll out, score, one backward pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from draft.diffusion.linear import linear_form
from draft.diffusion.lora import lora_norm
from draft.diffusion.sampling import Output, predict
from draft.diffusion.schedule import Grid
from draft.diffusion.surrogate import Denoisers, Group, Surrogate, checkpointed, roll_out, sample_with_plan
from draft.methods.modules import mathematics
from draft.methods.run import Batch, Stateless, TrainingRun, Update
from draft.methods.update import accumulate_and_step
from draft.methods.values.protocol import MethodValue
from draft.scoring.backward import split_backward
from draft.scoring.figures import Figures, mean_drop


class Backpropagation(Stateless):
    """The rule of every method whose module defines a `plan` or a `surrogate`.

    Args:
        method: The method's value.
        run: The training.

    Raises:
        DraftError: The method does not fit the model's grid.
    """

    def __init__(self, method: MethodValue, run: TrainingRun) -> None:
        self.method, self.mathematics = method, mathematics(method)
        self.cached = hasattr(self.mathematics, "surrogate")
        self.grid = run.grid
        # What does not fit the model's grid is refused here, before any work.
        if self.cached:
            self.grid = self.mathematics.call_grid(method, run.model.schedule(run.size, run.grid.steps), run.grid)
        else:
            plan = self.mathematics.plan(method, run.grid.steps, torch.Generator().manual_seed(0))
            if not plan.jacobians:
                linear_form(run.grid, plan.frozen)

    def update(self, run: TrainingRun, step: int) -> Update:
        """Make one update."""
        return accumulate_and_step(run, self.accumulate, step)

    def accumulate(self, run: TrainingRun, scale: float) -> Figures:
        """Add the next batch's gradient to the parameters'.

        Args:
            run: The training.
            scale: Factor of the loss.

        Returns:
            The batch's figures.
        """
        batch, settings = run.next_batch(), run.settings
        share = scale / settings.rollout_reuse
        sink: list[Tensor] = []
        figures = []
        for surrogate in self.surrogates(run, batch, sink):
            figures.append(
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
        return _mean(figures)

    def surrogates(self, run: TrainingRun, batch: Batch, sink: list[Tensor]) -> Iterator[Surrogate]:
        """The differentiable samples of a batch, one by one: `rollout_reuse` of a cached rollout, else a single one.

        Args:
            run: The training.
            batch: The batch.
            sink: Gets the penalty of each recorded call, if there is to be any.

        Yields:
            Latents with the method's graph.
        """
        if self.cached:
            rollout = roll_out(run.output(batch), run.grid, batch.noise)
            many = self.mathematics.recorded_calls(self.method) > 2
            denoisers = self._denoisers(run, batch, sink, checkpointing=many)
            for _ in range(run.settings.rollout_reuse):
                yield self.mathematics.surrogate(self.method, denoisers, self.grid, rollout, run.random.method)
            return
        plan = self.mathematics.plan(self.method, run.grid.steps, run.random.method)
        denoisers = self._denoisers(run, batch, sink, checkpointing=plan.recorded_steps > 2)
        copy_noise = run.draw_noise(batch.noise, plan.copies) if plan.copies else None
        latents = sample_with_plan(denoisers, run.grid, plan, batch.noise, fresh=batch.fresh, copy_noise=copy_noise)
        yield Surrogate(latents, (Group(),) * (1 + plan.copies))

    def _denoisers(self, run: TrainingRun, batch: Batch, sink: list[Tensor], *, checkpointing: bool) -> Denoisers:
        settings = run.settings
        recorded = run.output(batch, gradient=settings.cfg_gradient, recorded=True, grid=self.grid)
        # Of many calls even the blocks' inputs are too much to keep; of few, not where the blocks are recomputed.
        few = run.recomputes_blocks and not checkpointing
        if checkpointing if settings.gradient_checkpointing == "auto" else settings.gradient_checkpointing and not few:
            recorded = checkpointed(recorded)
        if settings.penalty.epsilon:
            base = run.output(batch, adapted=False, grid=self.grid)
            recorded = _penalised(recorded, base, self.grid, sink)
        return Denoisers(no_grad=run.output(batch, grid=self.grid), with_grad=recorded)


def _penalised(recorded: Output, base: Output, grid: Grid, sink: list[Tensor]) -> Output:
    """Keep the mean squared difference to the base model's prediction of every recorded call.

    mean (e - sg(e_base))^2, both guided (DRaFT+, NVIDIA NeMo-Aligner, megatron_sd_draftp_model.py); in flow matching of
    v, since e = x + (1 - s) v says nothing of v at s = 1 (ours).
    """

    def output(x: Tensor, i: int) -> Tensor:
        out = recorded(x, i)
        with torch.no_grad():
            base_out = base(x, i)
        if grid.prediction != "flow":
            out_e, base_out = predict(grid, x, out, i)[1], predict(grid, x.detach(), base_out, i)[1]
        else:
            out_e = out
        sink.append((out_e - base_out).square().mean())
        return out

    return output


def _penalty(run: TrainingRun, sink: list[Tensor]) -> Tensor | None:
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
        scores=torch.stack([draw.scores for draw in figures]).mean(0),
        gradients=torch.stack([draw.gradients for draw in figures if draw.gradients is not None]).mean(0),
        saturated=torch.stack([draw.saturated for draw in figures]).mean(),
        loss=torch.stack([draw.loss for draw in figures]).mean(),
        evaluations=sum(draw.evaluations for draw in figures),
        drop=mean_drop(figures),
    )
