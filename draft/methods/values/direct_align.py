"""Direct-Align and SRPO (arXiv 2509.06942): the known noise taken off again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from draft.errors import Problem
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class DirectAlign:
    """Noise the finished sample with its own known noise, call the network once, subtract the known noise.

    Direct-Align; with words in front of the prompt it is SRPO (arXiv 2509.06942). SRPO scores an image relative to
    itself: (1 + bonus) r(image, "positive. prompt") - r(image, "negative. prompt"), which for a reward that is a cosine
    is the paper's own form. That needs a reward that reads the prompt: of one that does not, only the bonus is left.

    Args:
        positive: Words, one of them drawn per gradient; theirs: Natural-lighting, Detail, Detailed, Real.
        negative: Words for what is scored against; theirs: Concept art, Painting, Anime, Flat, Oil. With both empty,
            the method is plain Direct-Align.
        branches: `denoise`: from a level to a cleaner one; `inversion`: to a noisier one, where the rewards' signs are
            reversed and the two word lists are swapped; or `both`, as SRPO does.
        levels: Where the levels lie, as shares of the training times from noise, 0, to image, 1.
        distance: How far the two levels are apart, as a share of that window.
        recovery: `move`: sg(y) - weight d e with what the network predicts at the other level, as in the published
            code; `delta`: the paper's equation 5. Same sample for a perfect network, different weight of its error.
        positive_bonus: k_p at the clean end and at the noisy end of the window.
        negative_bonus: k_n, in the inversion branch.
        discount: Without words, what a sample counts at the clean end of the window; it is 1 at the noisy end and
            linear between. The paper has such a discount and gives no form, so this one is ours.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(
        eta="zero", eta_reason="its sample must belong to the noise it starts from", reuses_rollouts=True
    )
    module: ClassVar[str] = "draft.methods.direct_align"
    kind: Literal["direct_align"] = "direct_align"
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    branches: Literal["denoise", "inversion", "both"] = "denoise"
    levels: tuple[Annotated[float, Gt(0), Lt(1)], Annotated[float, Gt(0), Lt(1)]] = (0.1, 0.5)
    distance: Annotated[float, Gt(0), Le(1)] = 0.1
    recovery: Literal["move", "delta"] = "move"
    positive_bonus: tuple[float, float] = (0.1, 0.25)
    negative_bonus: tuple[float, float] = (0.3, 0.01)
    discount: Annotated[float, Ge(0), Le(1)] = 0.2

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """Levels that do not rise, and words on one side alone."""
        if self.levels[0] >= self.levels[1]:
            low, high = self.levels
            what = f"method.levels must rise, noisier level first (got [{low:g}, {high:g}])"
            yield Problem(("method", "levels"), what)
        elif bool(self.positive) != bool(self.negative):
            empty = "negative" if self.positive else "positive"
            what = f"method.{empty} must have words where the other side has (got none)"
            yield Problem(("method", empty), what, "or leave both out")
