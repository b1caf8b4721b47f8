"""The reward `expression`: arithmetic of other rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import field_validator, model_validator

import draft
from draft.rewards.calls import version_of
from draft.rewards.parts import Parts
from draft.rewards.reading import ReadingScore, readings_of
from draft_rewards._formula import check_names, evaluate, parse

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class Expression(draft.Reward):
    """What a formula makes of other rewards' scores, image by image: `a - 0.3 * max(b, 0)`.

    A weighted sum needs no formula, it is several rewards with a `weight` each; a formula is for all else: a product, a
    ceiling, a bonus that levels off. It may have numbers, names, `+ - * / **`, brackets, and the functions min, max,
    abs, exp, log, sqrt, sigmoid, relu and clamp(x, low, high). It is read by a parser of its own; nothing in it is ever
    executed as Python.

    `of` says what the names mean: each is a reward, written as in a pipeline (`use` and the reward's own options), and
    each must occur in the formula. The gradient is that of the formula, through all of its scores; if one of them has
    none, a training refuses the whole. Division by 0, and log or sqrt of what is not positive, are not finite, and end
    a training: put max(x, 0.01) around it.
    """

    name = "expression"
    typical = "whatever the formula makes of its rewards' scores"
    stand_in = {}

    formula: str = draft.Field(min_length=1, description="the formula, e.g. 'a - 0.3 * max(b, 0)'")
    of: Parts = draft.Field(
        description="what its names mean: name to reward, e.g. {a: {use: clip_score}, b: {use: jpeg}}"
    )

    @field_validator("formula")
    @classmethod
    def _readable(cls, formula: str) -> str:
        parse(formula)
        return formula

    @model_validator(mode="after")
    def _complete(self) -> Expression:
        check_names(parse(self.formula), list(self.of))
        return self

    @property
    def differentiable(self) -> bool:
        """Whether all of its rewards are."""
        return all(reward.differentiable for reward in self.of.values())

    @property
    def uses_prompt(self) -> bool:
        """Whether one of its rewards does."""
        return any(reward.uses_prompt for reward in self.of.values())

    @property
    def per_image(self) -> bool:
        """Whether all of its rewards are."""
        return all(reward.per_image for reward in self.of.values())

    def load(self, device: torch.device) -> Score:
        """Load the rewards that the formula uses.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to scores of the images' dtype.
        """
        import torch

        tree = parse(self.formula)
        loaded = {name: reward.load(device) for name, reward in self.of.items()}

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            dtype = torch.promote_types(images.dtype, torch.float32)
            values, version = {}, version_of(images)
            for name, one in loaded.items():
                values[name] = one(images, prompts).to(dtype)
                if version_of(images) != version:
                    raise draft.DraftError(
                        f"the reward {name!r} of an expression changed the images in place, which others score, too",
                        hint="let it work on a copy: images.clone()",
                    )
            return evaluate(tree, values).to(images.dtype)

        return ReadingScore(score, tuple(each for one in loaded.values() for each in readings_of(one)))


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Expression]
