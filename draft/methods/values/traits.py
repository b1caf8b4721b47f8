"""What a method needs and can do, so that a file that asks for something else is refused with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What holds for a method whatever its options are.

    Args:
        reward_gradient: Whether it needs the rewards' gradients; without, any score will do.
        eta: What `sampler.eta` may be: `any`, `zero` for methods built on the deterministic sampler, `positive`
            for those that need fresh noise in every step, or `one` for those that need all of it.
        eta_reason: Why, for the error message.
        backpropagates: Whether it gets its gradient by recorded calls under one reward, which is what `penalty`,
            `robust` and `loss` act on.
        reuses_rollouts: Whether it draws its gradient from a cached rollout, so that `rollout_reuse` can exceed 1.
        weighs_samples: Whether the samples of a batch weigh differently in the loss.
    """

    reward_gradient: bool = True
    eta: Literal["any", "zero", "positive", "one"] = "any"
    eta_reason: str = ""
    backpropagates: bool = True
    reuses_rollouts: bool = False
    weighs_samples: bool = False
