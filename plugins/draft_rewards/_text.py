"""Texts as the vectors of a CLIP-like model: the option that says which text, and the tower that encodes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import draft
from draft.rewards.reading import Reading

if TYPE_CHECKING:
    from torch import Tensor

Text = Annotated[
    str,
    draft.Field(
        min_length=1,
        description="what the image should fit: '{prompt}' is its prompt, '{column}' a column of the prompt file, "
        "anything else is one text for all images",
    ),
]
"""The option `text` of the rewards that compare an image with a text."""


def text_vector(model: Any, tokenizer: Any, text: str) -> Tensor:
    """The unit vector of one text, cut at the model's longest length.

    Args:
        model: A CLIP-like model of transformers: `text_model`, `text_projection` and `config.text_config`.
        tokenizer: Its tokenizer.
        text: The text. One at a time and without padding, so that its vector never depends on what else is in a batch.

    Returns:
        Float32 (D,), of length 1, without a gradient.
    """
    import torch
    from torch.nn import functional as F

    limit = model.config.text_config.max_position_embeddings
    tokens = tokenizer([text], truncation=True, max_length=limit, padding=False, return_tensors="pt").to(model.device)
    with torch.no_grad():
        pooled = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return F.normalize(model.text_projection(pooled).float(), dim=-1)[0]


def reading(tokenizer: Any, limit: int, texts: Callable[[Sequence[str]], Sequence[str]]) -> Reading:
    """How a tokenizer's texts are cut.

    Args:
        tokenizer: A tokenizer of transformers.
        limit: The most tokens that are kept of a text, those included that start and end it.
        texts: The text of each prompt.

    Returns:
        The limit and the lengths; each distinct text is counted once.
    """

    def lengths(prompts: Sequence[str]) -> list[int]:
        chosen = texts(prompts)
        distinct = list(dict.fromkeys(chosen))
        ids = tokenizer(distinct, truncation=False, verbose=False)["input_ids"]
        found = {text: len(row) for text, row in zip(distinct, ids, strict=True)}
        return [found[text] for text in chosen]

    return Reading(limit, lengths)
