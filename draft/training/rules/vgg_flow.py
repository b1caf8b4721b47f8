"""The rule of VGG-Flow: roll out, take the reward's gradient at one-step predictions, regress the velocity onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from draft.diffusion.sampling import predict
from draft.diffusion.surrogate import roll_out
from draft.methods.values import VGGFlow
from draft.methods.vgg_flow import capped, draw_steps, target, velocity_loss
from draft.scoring.figures import Figures
from draft.training.run import Run
from draft.training.update import Descent, descend


class VelocityRegression:
    """Makes updates by VGG-Flow; remembers the cap of the reward's gradient.

    The guided output is regressed, its unconditional branch without gradient, as in the authors' code. No more than one
    step's graph is held at a time.

    Args:
        method: The method's value.
        run: The training.
    """

    def __init__(self, method: VGGFlow, run: Run) -> None:
        self.method = method
        self.cap = method.cap

    def update(self, run: Run, step: int) -> Descent:
        """Make one update."""
        norms: list[Tensor] = []
        shifts: list[Tensor] = []
        made = descend(run, lambda run, scale: self._accumulate(run, scale, norms, shifts), step)
        seen, shift = torch.cat(norms), torch.stack(shifts).mean()
        extra = {"cap": self.cap, "capped": float((seen > self.cap).float().mean()), "shift": float(shift)}
        if self.method.cap_quantile is not None:
            self.cap = float(torch.quantile(seen, self.method.cap_quantile))
        return replace(made, extra=extra)

    def state(self) -> Mapping[str, Any]:
        """The cap."""
        return {"cap": self.cap}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a cap."""
        self.cap = state["cap"]

    def _accumulate(self, run: Run, scale: float, norms: list[Tensor], shifts: list[Tensor]) -> Figures:
        """Add one batch's gradient to the parameters'.

        Notes the norms of the reward's gradients before the cap, and the shift over the base model's output, both as
        root mean squares. The reward in its figures is that of the last step's prediction.
        """
        grid, batch, method = run.grid, run.next_batch(), self.method
        rollout = roll_out(run.output(batch), grid, batch.noise)
        base, output = run.output(batch, adapted=False), run.output(batch, gradient="detached", recorded=True)
        steps = draw_steps(method, grid.steps, run.random.method)
        found: list[Figures] = []
        for i in steps:
            x = rollout.states[i]
            x0, _ = predict(grid, x, rollout.outs[i], i)
            scored = run.scorer.reward_gradient(x0, batch.prompts)
            assert scored.gradient is not None
            q, lengths = capped(scored.gradient, self.cap)
            with torch.no_grad():
                anchor = base(x, i)
            wanted = target(method, grid, anchor, q, i)
            loss = velocity_loss(output(x, i), wanted).mean()
            (loss * (scale / len(steps))).backward()
            norms.append(lengths)
            shifts.append((wanted - anchor).norm() / anchor.norm())
            found.append(replace(scored.figures, loss=loss.detach()))
        return _last(found)


def _last(figures: list[Figures]) -> Figures:
    """The last step's figures with the mean loss of all, all evaluations and the largest gradients."""
    gradients = torch.stack([each.gradients for each in figures if each.gradients is not None]).amax(0)
    loss = torch.stack([each.loss for each in figures]).mean()
    return replace(figures[-1], gradients=gradients, loss=loss, evaluations=sum(each.evaluations for each in figures))
