"""A frozen image classifier in pure tensors, and its classes by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

import draft
from draft_rewards._loading import explained, hub_options, load_frozen
from draft_rewards._preprocessing import Preprocessing, read_preprocessing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from draft.types import Images


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


ClassifierModel = Annotated[
    str,
    draft.Field(description="an image classifier of transformers: a name of `draft models`, a folder, or a hub id"),
]
"""The option `model` of the rewards with a classifier."""

Target = Annotated[
    str,
    BeforeValidator(_as_text, json_schema_input_type=int | str),
    draft.Field(
        min_length=1,
        description="the class to be taken for, or with mode untargeted the class that is really shown: its name, its "
        "index, or a column as '{target}'",
    ),
]
"""The option `target` of the rewards with a classifier."""

Mode = Annotated[
    Literal["targeted", "untargeted"],
    draft.Field(description="whether the image shall be taken for `target`, or for anything but `target`"),
]
"""The option `mode` of the rewards with a classifier."""


@dataclass(frozen=True)
class Classifier:
    """A loaded image classifier.

    Args:
        model: The frozen network of transformers, float32.
        preprocessing: Its image preprocessing.
        labels: Its classes in order; a label may hold several names, separated by commas.
    """

    model: Any
    preprocessing: Preprocessing
    labels: tuple[str, ...]

    def log_probabilities(self, images: Images) -> Tensor:
        """Logarithms of the classes' probabilities.

        Args:
            images: Float (B, 3, H, W) in [0, 1].

        Returns:
            Float32 (B, C), at most 0; the gradient reaches the pixels.
        """
        pixels = self.preprocessing(images.float())
        return self.model(pixel_values=pixels).logits.float().log_softmax(dim=-1)


def load_classifier(model: str, *, revision: str = "", device: torch.device, where: str) -> Classifier:
    """Load an image classifier of transformers from a registered name, a folder or the hub; safetensors only.

    Args:
        model: A name of `draft models`, a folder, or a hub id.
        revision: A hub revision; empty: the pinned one, see `_loading.hub_options`.
        device: Where to put it.
        where: The reward's name, for errors.

    Returns:
        The model, frozen and in evaluation mode, with its preprocessing and labels.

    Raises:
        DraftError: There is no such model here, or its weights are missing or of another architecture.
    """
    from transformers import AutoModelForImageClassification

    what = "image classifier"
    # First of all, because its absence has a clear reason; a missing preprocessing may be an unreachable one.
    network = load_frozen(
        AutoModelForImageClassification, model, revision=revision, device=device, what=what, where=where
    )
    with explained(what, model, where=where, revision=revision):
        preprocessing = read_preprocessing(draft.model_path(model), hub_options(revision, model))
    labels = network.config.id2label
    return Classifier(network, preprocessing, tuple(str(labels[index]) for index in sorted(labels)))


def target_classes(classifier: Classifier, target: str, *, where: str) -> Callable[[Sequence[str]], list[int]]:
    """The class of each prompt; a target that is no column is looked up at once.

    Args:
        classifier: Whose classes.
        target: The option `target`.
        where: The reward's name, for errors.

    Returns:
        A function from B prompts to B indices.
    """

    @lru_cache(maxsize=8192)
    def find(wanted: str) -> int:
        return find_class(classifier.labels, wanted, where=where)

    if not re.fullmatch(r"\{\w+\}", target):
        find(target)
    return lambda prompts: [find(wanted) for wanted in draft.per_prompt(target, prompts)]


def find_class(labels: Sequence[str], wanted: str, *, where: str = "") -> int:
    """The index of a class.

    Args:
        labels: The classes in order; a label may hold several names, separated by commas.
        wanted: An index, a whole label, or one of a label's names; case does not matter.
        where: The reward's name, for errors.

    Returns:
        The index.

    Raises:
        DraftError: There is no such class, or there are several.

    Example:
        >>> find_class(["tench, Tinca tinca", "goldfish"], "tinca tinca")
        0
    """
    if wanted.strip().isdecimal():
        if (index := int(wanted)) < len(labels):
            return index
        raise draft.DraftError(f"the class must be at most {len(labels) - 1} (got {index})", where=where)
    key = _plain(wanted)
    names = [[_plain(name) for name in label.split(",")] for label in labels]
    whole = [index for index, label in enumerate(labels) if _plain(label) == key]
    matches = whole or [index for index, several in enumerate(names) if key in several]
    if not matches:
        close = get_close_matches(key, sorted({name for several in names for name in several}), n=1, cutoff=0.6)
        few = ", ".join(label.split(",")[0] for label in labels[:5])
        hint = f"did you mean {close[0]!r}?" if close else f"it knows {len(labels)} classes, such as {few}"
        raise draft.DraftError(f"unknown class (got {wanted!r})", where=where, hint=hint)
    if len(matches) > 1:
        several = " and ".join(f"{index} ({labels[index]})" for index in matches)
        raise draft.DraftError(
            f"{len(matches)} classes have this name (got {wanted!r}): {several}", where=where, hint="give the index"
        )
    return matches[0]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
