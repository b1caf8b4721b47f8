"""The rule of Adjoint Matching: roll out, follow the base model's adjoint back, regress some of the steps onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from draft.diffusion.surrogate import roll_out
from draft.methods.adjoint_matching import (
    Target,
    draw_steps,
    lean_adjoint,
    matching_loss,
    noisy_steps,
    running_quantile,
    step_mean,
)
from draft.methods.values import AdjointMatching
from draft.scoring.backward import Figures
from draft.training.run import Batch, Run
from draft.training.update import Descent, descend


class AdjointRegression:
    """Makes updates by Adjoint Matching; remembers the running quantile beyond which a term is an outlier.

    Guidance is in the rollout alone, neither in the adjoint nor in what is regressed, as in the authors' code. No more
    than one step's graph is held at a time.

    Args:
        method: The method's value.
        run: The training.

    Raises:
        DraftError: No step of the sampler adds noise: there is one step only.
    """

    def __init__(self, method: AdjointMatching, run: Run) -> None:
        self.method = method
        self.threshold: float | None = None
        noisy_steps(run.grid)

    def update(self, run: Run, step: int) -> Descent:
        """Make one update."""
        notes: list[Tensor] = []
        made = descend(run, lambda run, scale: self._accumulate(run, scale, notes), step)
        names = ("unmatched", "dropped", "adjoint_growth")
        return replace(made, extra=dict(zip(names, torch.stack(notes).mean(0).tolist(), strict=True)))

    def state(self) -> Mapping[str, Any]:
        """The running quantile."""
        return {"threshold": self.threshold}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a running quantile."""
        self.threshold = state["threshold"]

    def _accumulate(self, run: Run, scale: float, notes: list[Tensor]) -> Figures:
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
        targets = [each for each in lean_adjoint(base, grid, rollout.states, last, steps[0]) if each.step in steps]
        targets, batch = self._maybe_unconditional(run, batch, targets, rollout.states)
        output = run.output(batch, guided=False, recorded=True)

        def term(target: Target) -> Tensor:
            mean = step_mean(output, grid, rollout.states[target.step], target.step)
            return matching_loss(mean, target, grid.std[target.step])

        with torch.no_grad():  # once for their sizes, since a term may have to be left out
            terms = torch.stack([term(target) for target in targets])
            kept, loss = self._kept(terms)
            idle = torch.stack([matching_loss(each.mean, each, grid.std[each.step]) for each in targets])
            growth = (targets[-1].adjoint.flatten(1).norm(dim=1) / last.flatten(1).norm(dim=1)).mean()
            notes.append(torch.stack([terms.mean() / idle.mean(), 1 - kept.mean(), growth]))
        for target, keep in zip(targets, kept, strict=True):
            ((term(target) * keep).sum() * (scale / terms.numel())).backward()
        return replace(scored.figures, loss=loss)

    def _kept(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """Which terms teach, 1 or 0, and the loss, a mean over all of them; a term that is no number is kept."""
        method = self.method
        if method.outliers == "clamp":
            most = method.clamp * method.reward_multiplier**2
            return (~(terms > most)).to(terms), terms.clamp(max=most).mean()
        if method.outliers == "keep":
            return torch.ones_like(terms), terms.mean()
        self.threshold = running_quantile(self.threshold, terms, method.quantile)
        kept = (~(terms.sqrt() > self.threshold)).to(terms)
        return kept, (terms * kept).mean()

    def _maybe_unconditional(
        self, run: Run, batch: Batch, targets: list[Target], states: tuple[Tensor, ...]
    ) -> tuple[list[Target], Batch]:
        """Now and then regress the unconditional branch, which guidance multiplies too, onto the same adjoint."""
        share = self.method.prompt_dropout if run.has_two_branches else 0.0
        if not share or float(torch.rand((), generator=run.random.method)) >= share:
            return targets, batch
        blank = replace(batch, conditioning=run.unconditional.expand(len(batch.conditioning)))
        base = run.output(blank, adapted=False, guided=False)
        with torch.no_grad():
            means = [step_mean(base, run.grid, states[each.step], each.step) for each in targets]
        return [replace(each, mean=mean) for each, mean in zip(targets, means, strict=True)], blank
