"""What a reward is: a frozen pydantic model of its parameters, and one method that loads a plain function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from draft.types import Images, Scores

if TYPE_CHECKING:
    import torch

RESERVED = ("use", "weight", "isolated", "every", "device")
"""Keys of a reward term in a pipeline file that belong to Draft, so no reward may have a field of that name."""

MODEL_OPTIONS = ("model", "weights", "checkpoint", "head", "revision")
"""Options of these names, or whose names end so (`clip_model`), say which weights a reward loads."""


class Score(Protocol):
    """A loaded reward: images and prompts in, one score per image out, differentiable with respect to the images."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Scores:
        """Score a batch.

        Args:
            images: Float, shape (B, 3, H, W), sRGB in [0, 1].
            prompts: B prompts; a `draft.Prompts` where the prompt file has other columns.

        Returns:
            Float, shape (B,); higher where there is more of the named thing.
        """
        ...


class Reward(BaseModel, ABC):
    """A score of images and prompts, described by its parameters.

    A subclass declares its parameters as pydantic fields, each with a description and bounds, its `name`, and
    `load`. Its docstring's first line is what `draft rewards list` shows.

    Attributes:
        name: The reward's name in pipelines; must equal its entry point's name.
        cite: A citation of the source, shown by `draft rewards show`.
        licence: The licence of the weights that it loads by default, if it loads any; shown there, too.
        typical: Which scores to expect of which images, in words.
        memory: What those weights take on the device, in words.
        differentiable: False for scores without a gradient: metrics for `evaluate`, refused by gradient methods.
        uses_prompt: True for a reward whose scores depend on the prompt or on another column of the prompt file; a
            property where that is up to the options. The conformance kit tests it, and a training whose scores do not
            depend on the prompt although they should is warned of.
        per_image: False if an image's score depends on the others of its batch; micro-batching is then off. A reward
            made of others (`draft.rewards.parts`) has properties of these names instead.
        stand_in: Option values with which the reward runs on the embedded models, in `draft run --rehearse`; ``{}``
            says that it runs there as it is. None, the default, says the same of a reward without an option that
            names weights (one of `MODEL_OPTIONS`); any other is refused in a rehearsal, unless those options name
            embedded models already.
        api_version: The version of this contract that the reward was written for, as a number in the class itself:
            what is inherited from here is that of the installed Draft.

    Example:
        class Brightness(draft.Reward):
            \"\"\"How bright an image is, 0 (black) to 1 (white).\"\"\"
            name = "brightness"

            def load(self, device):
                return lambda images, prompts: images.mean(dim=(1, 2, 3))
    """

    # Numbers become text where an option is text; `build_reward` does the same where it validates strictly.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)

    name: ClassVar[str]
    cite: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    typical: ClassVar[str] = ""
    memory: ClassVar[str] = ""
    differentiable: ClassVar[bool] = True
    uses_prompt: ClassVar[bool] = False
    per_image: ClassVar[bool] = True
    stand_in: ClassVar[Mapping[str, Any] | None] = None
    api_version: ClassVar[int] = 1

    @abstractmethod
    def load(self, device: torch.device) -> Score:
        """Load whatever the reward needs onto `device` and return the function that scores.

        Args:
            device: Where the images will be.

        Returns:
            The scoring function; its parameters, if any, are frozen and in evaluation mode.
        """


@dataclass(frozen=True)
class Term:
    """One term of a weighted sum of rewards.

    Args:
        label: The term's name in the pipeline and in all logs.
        reward: The reward with its parameters.
        weight: Its factor in the sum; a negative weight asks for less of the named thing.
        device: Where to load it, e.g. ``"cuda:1"``; empty: where the images are.
    """

    label: str
    reward: Reward
    weight: float = 1.0
    device: str = ""
