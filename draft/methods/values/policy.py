"""Methods that need no gradient of the rewards: policy gradients, training on the best samples, a learned critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from draft.methods.values.traits import Traits

Selection = Literal["weighted", "top", "best"]
"""How a round's samples count: by softmax weights, the best share alone, or the best of each prompt alone."""


@dataclass(frozen=True, kw_only=True)
class DDPO:
    """Raise the probability of the steps that led to good images; any score will do (DDPO, arXiv 2305.13301).

    The published code trains with guidance 5, eta = 1, a learning rate of 3e-4 and a weight decay of 1e-4.

    Args:
        clip: A ratio of probabilities further than this from 1 teaches nothing more in its direction. The logarithm of
            the probability is a mean over elements, which is why it is this small.
        advantage_clip: Largest advantage, in standard deviations of the reward.
        inner_epochs: Passes over the images of an update.
        minibatches: Steps of the optimiser per pass; from the second step on the ratio is not 1.
        kl: Factor of the mean squared difference to the base model's prediction (DPOK, arXiv 2305.16381). DPOK's
            published code has 0.01 beside a policy loss times 100, which is 1e-4 here.
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
    kind: Literal["ddpo"] = "ddpo"
    clip: Annotated[float, Gt(0)] = 1e-4
    advantage_clip: Annotated[float, Gt(0)] = 5.0
    inner_epochs: Annotated[int, Ge(1)] = 1
    minibatches: Annotated[int, Ge(1)] = 1
    kl: Annotated[float, Ge(0)] = 0.0
    prompt_buffer: Annotated[int, Ge(0)] = 16
    prompt_min_count: Annotated[int, Ge(1)] = 16


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """Sample, score, and train on the samples themselves, the better ones more (reward-weighted regression).

    Lee et al. (arXiv 2302.12192) and the baselines of DDPO (arXiv 2305.13301). The published code of the latter takes
    10,240 samples and 5 epochs for `weighted`, the top 10 % of 10,240 and 50 epochs for `top`.

    Args:
        selection: `weighted`: N samples have the weights N softmax(sharpness R); `top`: the best `share` of them have
            weight 1 and the others 0; `best`: the best one of each prompt.
        sharpness: Factor b of the rewards in the softmax; 0 weighs all alike.
        share: Part of the samples that `top` keeps; at least one.
        per_prompt: Whether `weighted` and `top` compare the samples of a prompt with each other alone.
        samples: Images of each prompt in a round, so that a round has `samples` x `batch_size` x
            `gradient_accumulation_steps` of them.
        inner_epochs: Passes over what a round keeps.
        minibatches: Steps of the optimiser per pass.
        times: Noise levels to train at: all of the model's `schedule`, or those where the `sampler` calls the network.
        guided: Whether the guided output is what is trained, as in the published code; otherwise the conditional one.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(reward_gradient=False, backpropagates=False)
    kind: Literal["best_of_n"] = "best_of_n"
    selection: Selection = "weighted"
    sharpness: Annotated[float, Ge(0)] = 0.2
    share: Annotated[float, Gt(0), Le(1)] = 0.1
    per_prompt: bool = False
    samples: Annotated[int, Ge(1)] = 4
    inner_epochs: Annotated[int, Ge(1)] = 5
    minibatches: Annotated[int, Ge(1)] = 1
    times: Literal["schedule", "sampler"] = "schedule"
    guided: bool = True


@dataclass(frozen=True, kw_only=True)
class DPG:
    """Follow the gradient of a learned critic instead of the reward's: a negative result worth having (ours).

    The DRaFT paper (arXiv 2309.17400) found this kind of method worse than DRaFT but does not publish it; all choices
    here are ours. The critic guesses the final reward from any latent on the way; each step then climbs it. Regression
    makes the critic's values right where samples are and says nothing of its gradient.

    Args:
        share: Part of the sampling steps that learn in an update, drawn anew each time; at least one.
        critic_width: Channels of the critic.
        critic_learning_rate: Adam's step size for the critic.
        critic_steps: Steps of the critic's optimiser per update.
        critic_batch: Latents per step of the critic.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(
        reward_gradient=False,
        backpropagates=False,
        eta="positive",
        eta_reason="fresh noise is what explores, and without it the critic sees one path only",
    )
    kind: Literal["dpg"] = "dpg"
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    critic_width: Annotated[int, Ge(1)] = 32
    critic_learning_rate: Annotated[float, Gt(0)] = 1e-3
    critic_steps: Annotated[int, Ge(1)] = 10
    critic_batch: Annotated[int, Ge(1)] = 64
