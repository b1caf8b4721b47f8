"""VGG-Flow without its correction network (arXiv 2512.05116): the velocity that a reward's one-step gradient asks for.

Every diffusion model is a flow model in z = x / (alpha + sigma) at the level s = sigma / (alpha + sigma), with the
velocity u = e - x0, and its deterministic sampler is that flow. The method is stated there, which for a flow model is
what was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from draft.diffusion.sampling import predict
from draft.diffusion.schedule import Grid
from draft.diffusion.surrogate import roll_out
from draft.methods.run import TrainingRun, Update
from draft.methods.update import accumulate_and_step
from draft.methods.values import VGGFlow
from draft.scoring.figures import Figures


def draw_steps(method: VGGFlow, steps: int, generator: torch.Generator) -> tuple[int, ...]:
    """Draw the steps of a rollout that are regressed: one of each of int(share T) chunks, and the last.

    Args:
        method: The share.
        steps: Number T of sampling steps.
        generator: Of the draws, on the CPU.

    Returns:
        Steps in order, none twice.

    Note:
        As in the authors' code step 1 stands for step 0. There each sample has its own steps, and a step drawn twice
        counts twice.
    """
    chunks = max(1, int(method.share * steps))
    edges = [steps * k // chunks for k in range(chunks + 1)]
    drawn = [int(torch.randint(edges[k], edges[k + 1], (), generator=generator)) for k in range(chunks)]
    return tuple(sorted({min(max(1, i), steps - 1) for i in [*drawn, steps - 1]}))


def damping(method: VGGFlow, grid: Grid, i: int) -> float:
    """The factor of the reward's gradient by the level s of step i: (1 - s)^2, 1 - s or 1."""
    power = {"quadratic": 2, "linear": 1, "constant": 0}[method.schedule]
    return (grid.alpha[i] / (grid.alpha[i] + grid.sigma[i])) ** power


def capped(q: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Shorten each sample's gradient to a norm of at most `cap`.

    Args:
        q: dR/dx0, (B, C, ...).
        cap: Largest norm.

    Returns:
        (q min(1, cap / |q|), |q|), shapes (B, C, ...) and (B,).
    """
    norms = q.flatten(1).norm(dim=1)
    factors = (cap / norms.clamp(min=torch.finfo(q.dtype).tiny)).clamp(max=1)
    return q * factors.reshape(-1, *[1] * (q.dim() - 1)), norms


def velocity_slope(grid: Grid, i: int) -> float:
    """How much the velocity u = e - x0 moves per unit of the network's output: 1 in flow matching.

    alpha + sigma for v prediction, and that over alpha for epsilon, since x0 = (x - sigma e) / alpha.
    """
    total = grid.alpha[i] + grid.sigma[i]
    return total / grid.alpha[i] if grid.prediction == "epsilon" else total


def target(method: VGGFlow, grid: Grid, base: Tensor, q: Tensor, i: int) -> Tensor:
    """What the output at step i is regressed onto: that whose velocity is u_base - beta eta(s) q.

    The value function's gradient is taken to be -eta(s) dR/dx0 at the one-step x0, and the optimal velocity is
    u_base + beta times it (arXiv 2512.05116; the correction network left out).

    Args:
        method: beta and eta(s).
        grid: The sampling grid.
        base: The base model's guided output at x_i, (B, C, ...).
        q: The reward's capped gradient dR/dx0, like `base`.
        i: Step.

    Returns:
        The target, like `base`.
    """
    return base - method.beta * damping(method, grid, i) / velocity_slope(grid, i) * q


def velocity_loss(out: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared distance of the guided output to its target, over elements, (B,).

    Note:
        In the network's own output for diffusion models too (ours): as a distance of velocities the noisiest steps
        of an epsilon model would weigh some 200 times as much as the last ones, where the reward speaks.
    """
    return (out - wanted).square().flatten(1).mean(1)


class Rule:
    """Makes updates by VGG-Flow; remembers the cap of the reward's gradient.

    The guided output is regressed, its unconditional branch without gradient, as in the authors' code. No more than one
    step's graph is held at a time.

    Args:
        method: The method's value.
        run: The training.
    """

    def __init__(self, method: VGGFlow, run: TrainingRun) -> None:
        self.method = method
        self.cap = method.cap

    def update(self, run: TrainingRun, step: int) -> Update:
        """Make one update."""
        norms: list[Tensor] = []
        shifts: list[Tensor] = []
        update = accumulate_and_step(run, lambda run, scale: self._accumulate(run, scale, norms, shifts), step)
        lengths, shift = torch.cat(norms), torch.stack(shifts).mean()
        extra = {"cap": self.cap, "capped": float((lengths > self.cap).float().mean()), "shift": float(shift)}
        if self.method.cap_quantile is not None:
            self.cap = float(torch.quantile(lengths, self.method.cap_quantile))
        return replace(update, extra=extra)

    def state(self) -> Mapping[str, Any]:
        """The cap."""
        return {"cap": self.cap}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a cap."""
        self.cap = state["cap"]

    def _accumulate(self, run: TrainingRun, scale: float, norms: list[Tensor], shifts: list[Tensor]) -> Figures:
        """Add one batch's gradient to the parameters'.

        Notes the norms of the reward's gradients before the cap, and the shift over the base model's output, both as
        root mean squares. The reward in its figures is that of the last step's prediction.
        """
        grid, batch, method = run.grid, run.next_batch(), self.method
        rollout = roll_out(run.output(batch), grid, batch.noise)
        base, output = run.output(batch, adapted=False), run.output(batch, gradient="detached", recorded=True)
        steps = draw_steps(method, grid.steps, run.random.method)
        figures: list[Figures] = []
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
            figures.append(replace(scored.figures, loss=loss.detach()))
        return _last(figures)


def _last(figures: list[Figures]) -> Figures:
    """The last step's figures with the mean loss of all, all evaluations and the largest gradients."""
    gradients = torch.stack([step.gradients for step in figures if step.gradients is not None]).amax(0)
    loss = torch.stack([step.loss for step in figures]).mean()
    return replace(figures[-1], gradients=gradients, loss=loss, evaluations=sum(step.evaluations for step in figures))
