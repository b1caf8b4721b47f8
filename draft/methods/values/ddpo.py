"""DDPO (Black et al., arXiv 2305.13301): a policy gradient, which any score will do for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from draft.errors import Problem
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class DDPO:
    """Raise the probability of the steps that led to good images; any score works (DDPO, arXiv 2305.13301).

    The published code trains with guidance 5, eta = 1, a learning rate of 3e-4 and a weight decay of 1e-4.

    Args:
        clip: A ratio of probabilities further than this from 1 gives no gradient in that direction. The logarithm of
            the probability is a mean over elements, which is why it is this small.
        advantage_clip: Largest advantage, in standard deviations of the reward.
        inner_epochs: Passes over the images of an update.
        minibatches: Steps of the optimiser per pass; from the second step on the ratio is not 1.
        kl: Factor of the mean squared difference to the base model's prediction (DPOK, arXiv 2305.16381). DPOK's
            published code has 0.01 with a policy loss times 100, which equals 1e-4 here.
        prompt_buffer: Newest rewards of each prompt that its mean and standard deviation are taken from; 0: always
            those of the update's images.
        prompt_min_count: Rewards a prompt must have for statistics of its own; until then the update's serve.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(
        reward_gradient=False,
        backpropagates=False,
        eta="positive",
        eta_reason="a step without fresh noise has no probability density",
    )
    module: ClassVar[str] = "draft.methods.ddpo"
    kind: Literal["ddpo"] = "ddpo"
    clip: Annotated[float, Gt(0)] = 1e-4
    advantage_clip: Annotated[float, Gt(0)] = 5.0
    inner_epochs: Annotated[int, Ge(1)] = 1
    minibatches: Annotated[int, Ge(1)] = 1
    kl: Annotated[float, Ge(0)] = 0.0
    prompt_buffer: Annotated[int, Ge(0)] = 16
    prompt_min_count: Annotated[int, Ge(1)] = 16

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """What the images of an update are too few for."""
        images = settings.batch_size * settings.gradient_accumulation_steps
        if self.minibatches > images:
            what = f"method.minibatches must be at most the images of an update, {images} (got {self.minibatches})"
            yield Problem(("method", "minibatches"), what, "batch_size x gradient_accumulation_steps are collected")
        if self.prompt_buffer and self.prompt_min_count > self.prompt_buffer:
            what = f"method.prompt_min_count must be at most prompt_buffer, {self.prompt_buffer}"
            hint = "prompt_buffer: 0 has no statistics per prompt"
            yield Problem(("method", "prompt_min_count"), f"{what} (got {self.prompt_min_count})", hint)
        if images == 1 and not self.prompt_buffer:
            what = "batch_size must be at least 2 for ddpo without prompt_buffer (got 1)"
            yield Problem(("batch_size",), what, "one image has no better and no worse ones beside it")
