"""Training on the best of a model's own samples (Lee et al., arXiv 2302.12192)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from draft.errors import Problem
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.traits import Traits

Selection = Literal["weighted", "top", "best"]
"""How a round's samples count: by softmax weights, the best share alone, or the best of each prompt alone."""


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
    module: ClassVar[str] = "draft.methods.best_of_n"
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

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """The best of one."""
        if self.selection == "best" and self.samples == 1:
            what = "method.samples must be at least 2 for selection: best (got 1)"
            yield Problem(("method", "samples"), what, "one image of a prompt is always its best")
