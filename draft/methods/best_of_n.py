"""Training on a model's own samples: weights that favour the better ones, and the denoising loss they weigh.

Reward-weighted regression and its sparse form, as the baselines of DDPO (Black et al., arXiv 2305.13301) have them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from draft.diffusion.sampling import renoise
from draft.diffusion.schedule import FlowSchedule, Grid, make_grid
from draft.methods.rounds import collect, minibatches
from draft.methods.run import Stateless, TrainingRun, Update
from draft.methods.update import take_step
from draft.methods.values import BestOfN
from draft.methods.values.best_of_n import Selection


def sample_weights(
    rewards: Tensor,
    prompts: Tensor,
    *,
    selection: Selection,
    sharpness: float = 0.0,
    share: float = 1.0,
    per_prompt: bool = False,
) -> Tensor:
    """How much each of N samples counts.

    Args:
        rewards: R, (N,).
        prompts: The number of each sample's prompt, (N,).
        selection: `weighted`: w = N softmax(b R); `top`: 1 for the best share, else 0; `best`: 1 for the best of
            each prompt.
        sharpness: b.
        share: The share that `top` keeps, at least one sample.
        per_prompt: Whether softmax and share are collected over each prompt's samples.

    Returns:
        w >= 0, (N,); with `weighted` their sum is N.
    """
    if selection != "best" and not per_prompt:
        prompts = torch.zeros_like(prompts)
    weights = torch.zeros_like(rewards)
    for prompt in prompts.unique():
        same = prompts == prompt
        inside = rewards[same]
        if selection == "weighted":
            weights[same] = len(inside) * (sharpness * inside).softmax(0)
            continue
        count = 1 if selection == "best" else max(1, round(share * len(inside)))
        ones = torch.zeros_like(inside)
        ones[inside.topk(count).indices] = 1
        weights[same] = ones
    return weights


def concentration(weights: Tensor) -> float:
    """The share of samples that hold 90 % of the weight: 0.9 where all are alike, near 0 where one holds it all."""
    cumulative = weights.double().sort(descending=True).values.cumsum(0) / weights.double().sum()
    return float(int((cumulative < 0.9 - 1e-9).sum()) + 1) / len(weights)


def denoising_target(grid: Grid, y: Tensor, z: Tensor, i: int) -> Tensor:
    """What the network should say at alpha_i y + sigma_i z: z, or alpha z - sigma y, or in flow matching z - y.

    Args:
        grid: The grid of noise levels.
        y: Clean latents, (B, C, ...).
        z: The noise that was put on them.
        i: Noise level.

    Returns:
        (B, C, ...).
    """
    match grid.prediction:
        case "epsilon":
            return z
        case "v_prediction":
            return grid.alpha[i] * z - grid.sigma[i] * y
        case "flow":
            return z - y


def denoising_loss(grid: Grid, out: Tensor, y: Tensor, z: Tensor, i: int) -> Tensor:
    """Each sample's mean squared error of the output at alpha_i y + sigma_i z, (B,)."""
    return (out - denoising_target(grid, y, z, i)).square().flatten(1).mean(1)


class Rule(Stateless):
    """The rule of reward-weighted and filtered training.

    Args:
        method: The method's value.
        run: The training.
    """

    def __init__(self, method: BestOfN, run: TrainingRun) -> None:
        self.method = method
        self.levels = run.grid
        if method.times == "schedule":
            schedule = run.model.schedule(run.size, run.grid.steps)
            count = schedule.times if isinstance(schedule, FlowSchedule) else len(schedule.alphas_cumprod)
            sampler = replace(run.settings.sampler, num_inference_steps=count, spacing="trailing", final="one", eta=0.0)
            self.levels = make_grid(schedule, sampler)

    def update(self, run: TrainingRun, step: int) -> Update:
        """Make one update: a round, and one or more steps of the optimiser on what it keeps."""
        method, collected = self.method, collect(run, samples=self.method.samples, path=False)
        weights = sample_weights(
            collected.rewards,
            torch.tensor(collected.batch.indices, device=collected.rewards.device),
            selection=method.selection,
            sharpness=method.sharpness,
            share=method.share,
            per_prompt=method.per_prompt,
        )
        selected = (
            torch.arange(len(collected)) if method.selection == "weighted" else weights.cpu().nonzero().squeeze(1)
        )
        clean = collected.rollout.states[-1]
        total, norm, steps = torch.zeros((), device=clean.device), 0.0, 0
        parts = minibatches(
            len(selected), passes=method.inner_epochs, parts=method.minibatches, generator=run.random.method
        )
        for chosen in parts:
            run.optimizer.zero_grad(set_to_none=True)
            for some in selected[chosen].split(run.settings.batch_size):
                # One level for these images together, as the network takes one time; the published code draws one each.
                i = int(torch.randint(self.levels.steps, (), generator=run.random.method))
                y = clean[some]
                z = run.draw_noise(y)
                output = run.output(collected.take(some), guided=method.guided, recorded=True, grid=self.levels)
                out = output(renoise(self.levels, y, z, i), i)
                losses = weights[some] * denoising_loss(self.levels, out, y, z, i)
                (losses.sum() / len(chosen)).backward()
                total += losses.detach().sum() / len(selected)
            norm = take_step(run, collected.figures, step)
            steps += 1
        extra = {
            "denoising_loss": float(total) / method.inner_epochs,
            "kept": len(selected) / len(collected),
            "concentration": concentration(weights),
        }
        return Update(collected.figures, norm, steps, extra)
