"""Adjoint Matching (arXiv 2409.08861): the lean adjoint of a rollout, and the regression of each step onto it.

The target is p_base(x) exp(lam R(x)). Notation of the grid: step i has the mean m_i(x) and adds noise of std_i. The
discrete form is used throughout, for diffusion and flow models alike: no step size enters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from draft.diffusion.sampling import Output, move, predict
from draft.diffusion.schedule import Grid
from draft.diffusion.surrogate import roll_out
from draft.errors import DraftError
from draft.methods.run import Batch, TrainingRun, Update
from draft.methods.update import accumulate_and_step
from draft.methods.values import AdjointMatching
from draft.scoring.figures import Figures

DECAY = 0.9
"""Of the running mean of the terms' quantile, as in the authors' code."""


@dataclass(frozen=True)
class Target:
    """What a step is regressed onto.

    Args:
        step: The step i.
        mean: m_i of the base model at the rollout's x_i, (B, C, ...).
        adjoint: a_{i+1}, (B, C, ...).
    """

    step: int
    mean: Tensor
    adjoint: Tensor


def noisy_steps(grid: Grid) -> list[int]:
    """The steps that add noise, which are those that can be regressed; the one to the clean image cannot.

    Args:
        grid: The sampling grid.

    Returns:
        Steps in order.

    Raises:
        DraftError: There is none.
    """
    noisy = [i for i, std in enumerate(grid.std) if std > 0]
    if not noisy:
        raise DraftError(
            f"adjoint_matching needs a sampling step that adds noise (got {grid.steps} without)",
            hint="sampler: {eta: 1}, and at least 2 steps",
        )
    return noisy


def draw_steps(method: AdjointMatching, grid: Grid, generator: torch.Generator) -> tuple[int, ...]:
    """Draw the steps of a rollout that are regressed, some early and some late ones, none twice.

    Args:
        method: How many of which.
        grid: The sampling grid of T steps.
        generator: Of the draws, on the CPU.

    Returns:
        Steps that add noise, in order; where the method's numbers leave none, the last of them.
    """
    noisy, middle = noisy_steps(grid), round(method.boundary * grid.steps)

    def some(steps: list[int], count: int) -> list[int]:
        return [steps[k] for k in torch.randperm(len(steps), generator=generator).tolist()[:count]]

    early = some([i for i in noisy if i < middle], method.early)
    late = some([i for i in noisy if i >= middle], method.late)
    return tuple(sorted(early + late or noisy[-1:]))


def step_mean(output: Output, grid: Grid, x: Tensor, i: int) -> Tensor:
    """The mean m_i of step i at x, (B, C, ...), in the caller's gradient mode."""
    return move(grid, *predict(grid, x, output(x, i), i), i)


def pull_back(base: Output, grid: Grid, x: Tensor, a: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """One step of the lean adjoint, a_i = (dm_i/dx)^T a_{i+1}, with the base model's m (arXiv 2409.08861).

    The control's own derivative is left out: that is what makes the adjoint lean.

    Args:
        base: The base model's output.
        grid: The sampling grid.
        x: The rollout's x_i, (B, C, ...).
        a: a_{i+1}, like `x`.
        i: Step.

    Returns:
        (m_i(x), a_i), both without graph.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        mean = step_mean(base, grid, leaf, i)
        (before,) = torch.autograd.grad(mean, leaf, a)
    return mean.detach(), before


def lean_adjoint(base: Output, grid: Grid, states: Sequence[Tensor], last: Tensor, first: int = 0) -> Iterator[Target]:
    """Follow the lean adjoint along a rollout from its end, holding one step's graph at a time.

    Args:
        base: The base model's output, without guidance (ours as in the authors' code: with it the adjoint explodes).
        grid: The sampling grid of T steps.
        states: The rollout x_0 .. x_T, each (B, C, ...).
        last: a_T = -lam dR/dx_T, (B, C, ...).
        first: The first step that is wanted.

    Yields:
        The targets of steps T - 1, T - 2, .., `first`.
    """
    a = last
    for i in reversed(range(first, grid.steps)):
        mean, before = pull_back(base, grid, states[i], a, i)
        yield Target(i, mean, a)
        a = before


def matching_loss(mean: Tensor, target: Target, std: float) -> Tensor:
    """How far a step's control is from the optimal one, |(m - m_base) / std + std a_{i+1}|^2.

    Args:
        mean: m_i of the network that learns, at the same x_i, (B, C, ...).
        target: The step's target.
        std: Standard deviation of the step's noise, > 0.

    Returns:
        The term of each sample, a sum over its elements, (B,).

    Note:
        The authors' code takes a_i in place of a_{i+1}. In discrete time a_{i+1} is right: with Gaussian data and a
        linear R it gives the target's mean exactly where the first level is pure noise, and a_i does not.
    """
    return ((mean - target.mean) / std + std * target.adjoint).square().flatten(1).sum(1)


def running_quantile(before: float | None, terms: Tensor, quantile: float) -> float:
    """Move the running quantile of the terms' roots on by one batch: the first one, then 0.9 old + 0.1 new.

    Args:
        before: Its value so far; None: there was no batch.
        terms: Terms of a batch, any shape.
        quantile: Which quantile, 0..1.

    Returns:
        The new value.

    Note:
        The authors' code averages the first two batches with equal weights.
    """
    now = float(torch.quantile(terms.flatten().sqrt(), quantile))
    return now if before is None else DECAY * before + (1 - DECAY) * now


class Rule:
    """Makes updates by Adjoint Matching; remembers the running quantile beyond which a term is an outlier.

    Guidance is in the rollout alone, neither in the adjoint nor in what is regressed, as in the authors' code. No more
    than one step's graph is held at a time.

    Args:
        method: The method's value.
        run: The training.

    Raises:
        DraftError: No step of the sampler adds noise: there is one step only.
    """

    def __init__(self, method: AdjointMatching, run: TrainingRun) -> None:
        self.method = method
        self.threshold: float | None = None
        noisy_steps(run.grid)

    def update(self, run: TrainingRun, step: int) -> Update:
        """Make one update."""
        notes: list[Tensor] = []
        update = accumulate_and_step(run, lambda run, scale: self._accumulate(run, scale, notes), step)
        names = ("unmatched", "dropped", "adjoint_growth")
        return replace(update, extra=dict(zip(names, torch.stack(notes).mean(0).tolist(), strict=True)))

    def state(self) -> Mapping[str, Any]:
        """The running quantile."""
        return {"threshold": self.threshold}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a running quantile."""
        self.threshold = state["threshold"]

    def _accumulate(self, run: TrainingRun, scale: float, notes: list[Tensor]) -> Figures:
        """Add one batch's gradient to the parameters'.

        Notes its terms over those of the base model, the share dropped, and the adjoint's growth towards the noise.
        """
        grid, batch, method = run.grid, run.next_batch(), self.method
        rollout = roll_out(run.output(batch), grid, batch.noise, batch.fresh)
        scored = run.scorer.reward_gradient(rollout.states[-1], batch.prompts)
        assert scored.gradient is not None
        last = -method.reward_multiplier * scored.gradient
        steps = draw_steps(method, grid, run.random.method)
        base = run.output(batch, adapted=False, guided=False, recorded=True)
        targets = [
            target for target in lean_adjoint(base, grid, rollout.states, last, steps[0]) if target.step in steps
        ]
        targets, batch = self._maybe_unconditional(run, batch, targets, rollout.states)
        output = run.output(batch, guided=False, recorded=True)

        def term(target: Target) -> Tensor:
            mean = step_mean(output, grid, rollout.states[target.step], target.step)
            return matching_loss(mean, target, grid.std[target.step])

        with torch.no_grad():  # once for their sizes, since a term may have to be left out
            terms = torch.stack([term(target) for target in targets])
            mask, loss = self._teaching(terms)
            idle = torch.stack([matching_loss(target.mean, target, grid.std[target.step]) for target in targets])
            growth = (targets[-1].adjoint.flatten(1).norm(dim=1) / last.flatten(1).norm(dim=1)).mean()
            notes.append(torch.stack([terms.mean() / idle.mean(), 1 - mask.mean(), growth]))
        for target, keep in zip(targets, mask, strict=True):
            ((term(target) * keep).sum() * (scale / terms.numel())).backward()
        return replace(scored.figures, loss=loss)

    def _teaching(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """Which terms teach, 1 or 0, and the loss, a mean over all of them; a term that is no number is kept."""
        method = self.method
        if method.outliers == "clamp":
            most = method.clamp * method.reward_multiplier**2
            return (~(terms > most)).to(terms), terms.clamp(max=most).mean()
        if method.outliers == "keep":
            return torch.ones_like(terms), terms.mean()
        self.threshold = running_quantile(self.threshold, terms, method.quantile)
        mask = (~(terms.sqrt() > self.threshold)).to(terms)
        return mask, (terms * mask).mean()

    def _maybe_unconditional(
        self, run: TrainingRun, batch: Batch, targets: list[Target], states: tuple[Tensor, ...]
    ) -> tuple[list[Target], Batch]:
        """Now and then regress the unconditional branch, which guidance multiplies too, onto the same adjoint."""
        share = self.method.prompt_dropout if run.has_two_branches else 0.0
        if not share or float(torch.rand((), generator=run.random.method)) >= share:
            return targets, batch
        blank = replace(batch, conditioning=run.unconditional.expand(len(batch.conditioning)))
        base = run.output(blank, adapted=False, guided=False)
        with torch.no_grad():
            means = [step_mean(base, run.grid, states[target.step], target.step) for target in targets]
        return [replace(target, mean=mean) for target, mean in zip(targets, means, strict=True)], blank
