"""A round of the methods without reward gradients: rollouts, their scores, and passes over them in parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.surrogate import Rollout, roll_out
from draft.methods.run import Batch, TrainingRun
from draft.scoring.figures import Figures


@dataclass(frozen=True)
class Round:
    """N scored samples.

    Args:
        batch: Their prompts and noise, as one batch of N.
        rollout: Their paths, or their last states alone.
        rewards: R, (N,).
        figures: Of each scored batch.
    """

    batch: Batch
    rollout: Rollout
    rewards: Tensor
    figures: tuple[Figures, ...]

    def __len__(self) -> int:
        return len(self.rewards)

    def take(self, chosen: Tensor) -> Batch:
        """The batch of some samples.

        Args:
            chosen: Their numbers, on the CPU.

        Returns:
            Their batch, without fresh noise.
        """
        numbers = chosen.tolist()
        return Batch(
            self.batch.prompts.take(numbers),
            [self.batch.indices[n] for n in numbers],
            self.batch.conditioning[chosen],
            self.batch.noise[chosen],
            None,
        )


def collect(run: TrainingRun, *, samples: int = 1, path: bool = True) -> Round:
    """Sample `gradient_accumulation_steps` batches of prompts without gradient, and score what comes out.

    Args:
        run: The training.
        samples: Images of each prompt; the second and later ones take their noise from the method's generator.
        path: Whether to keep every state and output, or the last states alone.

    Returns:
        The round.
    """
    batches, rollouts, scored = [], [], []
    for _ in range(run.settings.gradient_accumulation_steps):
        drawn = run.next_batch()
        for k in range(samples):
            batch = drawn if k == 0 else _again(run, drawn)
            rollout = roll_out(run.output(batch), run.grid, batch.noise, batch.fresh)
            scored.append(run.scorer.score(rollout.states[-1], batch.prompts))
            batches.append(batch)
            rollouts.append(rollout if path else Rollout(rollout.states[-1:], ()))
    indices = [index for batch in batches for index in batch.indices]
    return Round(
        Batch(
            run.prompts.take(indices),
            indices,
            Conditioning.cat(batch.conditioning for batch in batches),
            torch.cat([batch.noise for batch in batches]),
            None,
        ),
        Rollout(_joined([rollout.states for rollout in rollouts]), _joined([rollout.outs for rollout in rollouts])),
        torch.cat([scores.rewards for scores in scored]),
        tuple(scores.figures for scores in scored),
    )


def minibatches(count: int, *, passes: int, parts: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Numbers 0..count-1 in random order, in at most `parts` parts per pass, each for one step of the optimiser.

    Args:
        count: How many there are.
        passes: How often each of them comes.
        parts: Parts of a pass.
        generator: On the CPU.

    Yields:
        The numbers of one part, on the CPU.
    """
    for _ in range(passes):
        yield from torch.randperm(count, generator=generator).tensor_split(min(parts, count))


def _again(run: TrainingRun, batch: Batch) -> Batch:
    """The same prompts with other noise."""
    fresh = None if batch.fresh is None else [run.draw_noise(z) for z in batch.fresh]
    return replace(batch, noise=run.draw_noise(batch.noise), fresh=fresh)


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
