"""A batch of pictures by each method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draft.diffusion.control.noise import optimise_noise
from draft.diffusion.control.schedules import AdapterSchedule
from draft.diffusion.control.search import best_of, modified
from draft.diffusion.control.steering import steer
from draft.diffusion.control.values import Guided, NoiseOpt, PromptSearch, SamplingMethod
from draft.diffusion.embedding import Embedded
from draft.diffusion.families import TextToImage
from draft.diffusion.generate import make_output, seeded_draws
from draft.diffusion.sampling import Output, sample
from draft.diffusion.schedule import Grid
from draft.diffusion.settings import SamplerSettings
from draft.errors import StageError
from draft.generation.cost import Cost, counted
from draft.scoring.backward import ScoredLatents, Scorer
from draft.scoring.evidence import MOST
from draft.types import Prompts, Size


@dataclass(frozen=True)
class SamplingContext:
    """What sampling needs that is the same for all batches.

    Args:
        model: The model, switched to a variant.
        scorer: Decoder and rewards.
        grid: The sampling grid.
        sampler: How images are sampled.
        schedule: In which steps the variant's adapter takes part.
        embedded: All texts that it draws.
        size: The images' size.
    """

    model: TextToImage
    scorer: Scorer
    grid: Grid
    sampler: SamplerSettings
    schedule: AdapterSchedule
    embedded: Embedded
    size: Size

    def output(self, texts: Sequence[str], cost: Cost | None = None) -> Output:
        """The guided network for B texts."""
        net = self.model.denoise if cost is None else counted(self.model.denoise, cost)
        conditioning, unconditional = self.embedded.take(texts, self.model.device), self.embedded.unconditional
        return make_output(self.model, self.grid, conditioning, unconditional, self.sampler, self.schedule, net=net)

    def draws(self, seeds: Sequence[int], count: int) -> list[Tensor]:
        """`count` standard normal tensors (B, C, ...), each sample's from its own seed, the first always the same."""
        return [draw.to(self.model.device) for draw in seeded_draws(seeds, self.model.latent_shape(self.size), count)]

    @property
    def start(self) -> int:
        """How many draws a sample takes: where it starts, and the noise of each step where there is such."""
        return 1 + self.grid.steps * self.grid.stochastic

    def sample(self, output: Output, draws: Sequence[Tensor]) -> Tensor:
        """Plain samples, without gradient."""
        with torch.no_grad():
            return sample(output, self.grid, draws[0], list(draws[1 : self.start]) or None)


@dataclass(frozen=True)
class Drawn:
    """A batch of samples.

    Args:
        latents: Final latents, (B, C, ...).
        cost: What all of them cost.
        details: For each image its method's own entries: the iteration or the modifier that was chosen.
    """

    latents: Tensor
    cost: Cost = field(default_factory=Cost)
    details: Sequence[dict[str, Any]] = ()


def texts_of(method: SamplingMethod | None, prompts: Sequence[str]) -> list[str]:
    """Every text that is drawn for some prompts.

    Args:
        method: The method; None: plain sampling.
        prompts: The prompts.

    Returns:
        The prompts, and what the method makes of them.
    """
    modifiers = method.modifiers if isinstance(method, PromptSearch) else ()
    return [*prompts, *(modified(text, modifier) for modifier in modifiers for text in prompts)]


def draw_plain(context: SamplingContext, prompts: Prompts, seeds: Sequence[int]) -> Tensor:
    """Final latents without any method, (B, C, ...)."""
    return context.sample(context.output(list(prompts)), context.draws(seeds, context.start))


def draw_with(method: SamplingMethod, context: SamplingContext, prompts: Prompts, seeds: Sequence[int]) -> Drawn:
    """Sample a batch by a method.

    Args:
        method: The method.
        context: Model, rewards, grid.
        prompts: B prompts.
        seeds: B seeds; all noise of an image comes from its own.

    Returns:
        The samples with their cost.

    Raises:
        StageError: A reward is not finite.
    """
    match method:
        case NoiseOpt():
            return _optimised(method, context, prompts, seeds)
        case Guided():
            return _steered(method, context, prompts, seeds)
        case PromptSearch():
            return _searched(method, context, prompts, seeds)


def _optimised(method: NoiseOpt, context: SamplingContext, prompts: Prompts, seeds: Sequence[int]) -> Drawn:
    cost, draws = Cost(), context.draws(seeds, context.start)
    rewards = _Rewards(context.scorer, prompts, cost)
    fresh = draws[1:] or None
    optimised = optimise_noise(
        context.output(list(prompts), cost), context.grid, draws[0], rewards.gradient, method, fresh=fresh
    )
    return Drawn(optimised.latents, cost, [{"iteration": int(k)} for k in optimised.iterations])


def _steered(method: Guided, context: SamplingContext, prompts: Prompts, seeds: Sequence[int]) -> Drawn:
    cost, more = Cost(), (method.recurrence - 1) * context.grid.steps
    draws = context.draws(seeds, context.start + more)
    latents = steer(
        context.output(list(prompts), cost),
        context.grid,
        draws[0],
        _Rewards(context.scorer, prompts, cost).gradient,
        method,
        fresh=draws[1 : context.start] or None,
        again=draws[context.start :],
    )
    return Drawn(latents, cost, [{} for _ in prompts])


def _searched(method: PromptSearch, context: SamplingContext, prompts: Prompts, seeds: Sequence[int]) -> Drawn:
    cost, ways = Cost(), ("", *method.modifiers)
    rewards = _Rewards(context.scorer, prompts, cost)
    rounds = -(-method.budget // len(ways))
    draws = context.draws(seeds, rounds * context.start)
    outputs = [
        context.output([modified(text, way) if way else text for text in prompts], cost)
        for way in ways[: method.budget]
    ]

    def candidates() -> Iterator[Tensor]:
        for number in range(method.budget):
            again, way = divmod(number, len(ways))
            yield context.sample(outputs[way], draws[again * context.start : (again + 1) * context.start])

    best = best_of(candidates(), rewards.value)
    chosen = [divmod(int(number), len(ways)) for number in best.chosen]
    return Drawn(best.latents, cost, [{"modifier": ways[way], "draw": again} for again, way in chosen])


@dataclass(frozen=True)
class _Rewards:
    """A batch's weighted sum of rewards, counted and finite."""

    scorer: Scorer
    prompts: Prompts
    cost: Cost

    def value(self, latents: Tensor) -> Tensor:
        return self._counted(self.scorer.score(latents, self.prompts), gradients=False).rewards

    def gradient(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():  # a method may be in the middle of a rollout without
            scored = self._counted(self.scorer.reward_gradient(latents, self.prompts), gradients=True)
        assert scored.gradient is not None
        return scored.rewards, scored.gradient

    def _counted(self, scored: ScoredLatents, *, gradients: bool) -> ScoredLatents:
        self.cost.reward_evaluations += scored.figures.evaluations
        self.cost.reward_gradients += scored.figures.evaluations * gradients
        bad = ~scored.rewards.isfinite()
        if bad.any():
            prompt, value = self.prompts[int(bad.nonzero()[0])], float(scored.rewards[bad][0])
            error = StageError(
                f"the sum of rewards is not finite for the prompt {prompt!r} (got {value})",
                hint="a reward that has no score for some images can only be measured: weight: 0",
            )
            chosen = bad.nonzero().flatten()[:MOST]
            with torch.no_grad():
                images = self.scorer.decode(torch.cat([each.latents for each in scored.figures.evidence])[chosen])
            error.images = tuple(zip([self.prompts[n] for n in chosen.tolist()], images.float().cpu(), strict=True))
            raise error
        return scored
