"""Training on the best of a model's own samples: collect, weigh, and denoise what was kept."""

from __future__ import annotations

from dataclasses import replace

import torch

from draft.diffusion.sampling import renoise
from draft.diffusion.schedule import FlowSchedule, make_grid
from draft.methods.best_of_n import concentration, denoising_loss, sample_weights
from draft.methods.values import BestOfN
from draft.training.rules.rounds import collect, minibatches
from draft.training.rules.rule import Memoryless
from draft.training.run import Run
from draft.training.update import Descent, take_step


class Imitation(Memoryless):
    """The rule of reward-weighted and filtered training.

    Args:
        method: The method's value.
        run: The training.
    """

    def __init__(self, method: BestOfN, run: Run) -> None:
        self.method = method
        self.levels = run.grid
        if method.times == "schedule":
            schedule = run.model.schedule(run.size, run.grid.steps)
            count = schedule.times if isinstance(schedule, FlowSchedule) else len(schedule.alphas_cumprod)
            sampler = replace(run.settings.sampler, num_inference_steps=count, spacing="trailing", final="one", eta=0.0)
            self.levels = make_grid(schedule, sampler)

    def update(self, run: Run, step: int) -> Descent:
        """Make one update: a round, and one or more steps of the optimiser on what it keeps."""
        method, taken = self.method, collect(run, samples=self.method.samples, path=False)
        weights = sample_weights(
            taken.rewards,
            torch.tensor(taken.batch.indices, device=taken.rewards.device),
            selection=method.selection,
            sharpness=method.sharpness,
            share=method.share,
            per_prompt=method.per_prompt,
        )
        kept = torch.arange(len(taken)) if method.selection == "weighted" else weights.cpu().nonzero().squeeze(1)
        clean, at_levels = taken.rollout.states[-1], replace(run, grid=self.levels)
        total, norm, steps = torch.zeros((), device=clean.device), 0.0, 0
        parts = minibatches(
            len(kept), passes=method.inner_epochs, parts=method.minibatches, generator=run.random.method
        )
        for chosen in parts:
            run.optimizer.zero_grad(set_to_none=True)
            for some in kept[chosen].split(run.settings.batch_size):
                # One level for these images together, as the network takes one time; the published code draws one each.
                i = int(torch.randint(self.levels.steps, (), generator=run.random.method))
                y = clean[some]
                z = run.draw_noise(y)
                output = at_levels.output(taken.take(some), guided=method.guided, recorded=True)
                out = output(renoise(self.levels, y, z, i), i)
                losses = weights[some] * denoising_loss(self.levels, out, y, z, i)
                (losses.sum() / len(chosen)).backward()
                total += losses.detach().sum() / len(kept)
            norm = take_step(run, taken.figures, step)
            steps += 1
        extra = {
            "denoising_loss": float(total) / method.inner_epochs,
            "kept": len(kept) / len(taken),
            "concentration": concentration(weights),
        }
        return Descent(taken.figures, norm, steps, extra)
