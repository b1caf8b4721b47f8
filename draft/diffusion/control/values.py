"""Methods that raise a reward while an image is sampled, as frozen dataclasses that pydantic validates. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from draft.diffusion.settings import STEPS
from draft.marks import AtMost, Inert

Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What all of them have in common.

    Args:
        micro_batch_size: Images decoded and scored at once; 0: the whole batch.
    """

    __pydantic_config__ = {"extra": "forbid"}
    reward_gradient: ClassVar[bool] = True
    micro_batch_size: Annotated[int, Ge(0), Inert(rounding=True)] = 1


@dataclass(frozen=True, kw_only=True)
class NoiseOpt(Scoring):
    """Optimise the noise that each image starts from, through the sampler, and keep the best (ReNO, arXiv 2406.04312).

    Args:
        iterations: Samples made and scored on the way, the first from the noise of the image's seed.
        learning_rate: Step size of gradient descent with Nesterov momentum.
        momentum: Its momentum.
        max_grad_norm: Largest norm of an image's gradient; larger ones are scaled down. 0 turns clipping off.
        regulariser: Factor of |z|^2 / 2 - (d - 1) ln |z|, which keeps the norm of the noise at that of Gaussian noise.
        keep_norm: Scale the noise back to its first norm after each step, as DOODL does (arXiv 2303.13703).
        recorded: The gradient goes through the network in this many last steps and past it in the others, along the
            sampler's straight path; null: through all. Less costs less.
    """

    kind: Literal["noise_opt"] = "noise_opt"
    iterations: Annotated[int, Ge(1), AtMost(10)] = 50
    learning_rate: Annotated[float, Gt(0)] = 5.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    max_grad_norm: Annotated[float, Ge(0)] = 0.1
    regulariser: Annotated[float, Ge(0)] = 0.01
    keep_norm: bool = False
    recorded: Annotated[Annotated[int, Ge(0)] | None, AtMost(STEPS)] = None


@dataclass(frozen=True, kw_only=True)
class Guided(Scoring):
    """Add the reward's gradient to the predicted noise of each step (Universal Guidance, arXiv 2302.07121).

    Args:
        weight: Strength w; 0 is plain sampling. What is right depends on the reward's scale, unless `scale: rms`.
        scale: `raw` adds w times the gradient, as published; `rms` makes what is added w times as large as the
            predicted noise itself, whatever the scale of the reward (after FreeDoM, arXiv 2303.09833).
        jacobian: Whether the gradient goes through the network; without, a guided step costs no backward pass of it.
        recurrence: Times that each guided step is made, with fresh noise in between; 1: once.
        start: Share of the steps that are made before guidance begins.
        stop: Share of the steps after which it ends.
    """

    kind: Literal["guided"] = "guided"
    weight: Annotated[float, Ge(0)] = 1.0
    scale: Literal["raw", "rms"] = "raw"
    jacobian: bool = True
    recurrence: Annotated[int, Ge(1)] = 1
    start: Annotated[float, Ge(0), Lt(1)] = 0.0
    stop: Annotated[float, Gt(0), Le(1)] = 1.0


@dataclass(frozen=True, kw_only=True)
class PromptSearch(Scoring):
    """Draw each prompt as it is and with each modifier, from several seeds, and keep what scores best.

    The score is always that of the prompt as it is. Without modifiers it is best-of-n over seeds.

    Args:
        modifiers: Texts with `{prompt}` in them, or what is written after the prompt and a comma.
        budget: Images per prompt and seed; the prompt as it is, then each modifier, then all again from the next noise.
    """

    reward_gradient: ClassVar[bool] = False
    kind: Literal["prompt_search"] = "prompt_search"
    modifiers: tuple[Text, ...] = ()
    budget: Annotated[int, Ge(1), AtMost(8, above="modifiers")] = 16


SamplingMethod = NoiseOpt | Guided | PromptSearch
