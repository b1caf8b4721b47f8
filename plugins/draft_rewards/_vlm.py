"""Which kinds of models answer questions about images, and how likely each holds an answer to be.

To add a family, write a function like `load_paligemma`: it gets `model`, `revision`, `device` and `where`, loads the
model with `load_frozen`, and returns an `Answers`. Enter it into `FAMILIES` under the `model_type` of its config.json,
and prove it in `tests/rewards/test_vqa.py` against the model's own forward pass on a tiny one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import draft
from draft_rewards._answers import Answers
from draft_rewards._blip import load_blip_answers
from draft_rewards._loading import explained, hub_options
from draft_rewards._paligemma import load_paligemma

if TYPE_CHECKING:
    import torch


FAMILIES: dict[str, Callable[..., Answers]] = {"blip": load_blip_answers, "paligemma": load_paligemma}
"""`model_type` to the function that loads a model of that family."""


def load_answers(model: str, *, revision: str = "", device: torch.device, where: str) -> Answers:
    """Load a model that answers questions about images, of whichever family its config.json names.

    Args:
        model: A name of `draft models`, a folder, or a hub id.
        revision: A hub revision; empty: the pinned one, see `_loading.hub_options`.
        device: Where to put it.
        where: The reward's name, for errors.

    Returns:
        Its log-probabilities of answers.

    Raises:
        DraftError: There is no such model here, or it is of a family that is not known here.
    """
    from transformers import PretrainedConfig

    path, options = draft.model_path(model), hub_options(revision, model)
    with explained("model that answers", model, where=where, revision=revision):
        # Not AutoConfig, which refuses a model_type that transformers does not know before we can name ours.
        kind = PretrainedConfig.get_config_dict(path, **options)[0].get("model_type")
    if kind not in FAMILIES:
        raise draft.DraftError(
            f"{model!r} is of no known family of models that answer questions: its model_type must be one of "
            f"{', '.join(sorted(FAMILIES))} (got {kind!r})",
            where=where,
            hint="e.g. Salesforce/blip-vqa-base or google/paligemma-3b-mix-224",
        )
    return FAMILIES[kind](model, revision=revision, device=device, where=where)


def filled(template: str, prompts: Sequence[str]) -> list[str]:
    """A sentence for each prompt: every ``"{column}"`` in the template becomes the prompt's value there.

    Args:
        template: A sentence; ``"{prompt}"`` in it is the prompt itself.
        prompts: B prompts; only a `Prompts` has columns.

    Returns:
        A list of B sentences.

    Raises:
        DraftError: The template names a column the prompts do not have.

    Example:
        >>> filled("Is there a {thing}?", draft.Prompts(["x"], {"thing": ["cat"]}))
        ['Is there a cat?']
    """
    parts = re.split(r"(\{\w+\})", template)
    return ["".join(row) for row in zip(*(draft.per_prompt(part, prompts) for part in parts), strict=True)]
