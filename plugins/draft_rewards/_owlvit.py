"""A frozen OWL-ViT or OWLv2 in pure tensors: how sure each of its boxes is of each query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator

import draft
from draft.rewards.reading import Reading
from draft_rewards._loading import explained, hub_options, load_frozen, load_tokenizer
from draft_rewards._preprocessing import Preprocessing, read_preprocessing
from draft_rewards._text import reading, text_vector

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from draft.types import Images

PROMPT, PLACE = "{prompt}", "{query}"


def _one_or_more(value: Any) -> Any:
    # A list, too: behind this function pydantic's strict mode takes a tuple only.
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _with_place(template: str) -> str:
    if PLACE not in template:
        raise ValueError(f"must contain {PLACE}")
    return template


DetectorModel = Annotated[
    str,
    draft.Field(
        description="an OwlViTForObjectDetection or Owlv2ForObjectDetection of transformers: a name of `draft models`, "
        "a folder, or a hub id"
    ),
]
"""The option `model` of the rewards with a detector."""

Queries = Annotated[
    tuple[Annotated[str, draft.Field(min_length=1)], ...],
    BeforeValidator(_one_or_more, json_schema_input_type=str | tuple[str, ...]),
    draft.Field(
        min_length=1,
        description="what to look for, one text or several: '{prompt}' is the image's prompt, '{column}' a column of "
        "the prompt file",
    ),
]
"""The option `queries` of the rewards with a detector."""

Template = Annotated[
    str,
    AfterValidator(_with_place),
    draft.Field(
        description="the sentence a query is put into; '{query}' leaves it as it is; '{prompt}' is never put into it"
    ),
]
"""The option `template` of the rewards with a detector."""


@dataclass(frozen=True)
class Detector:
    """A loaded OWL-ViT or OWLv2.

    Args:
        model: The frozen `OwlViTForObjectDetection` or `Owlv2ForObjectDetection`, float32.
        tokenizer: Its tokenizer.
        preprocessing: Its image preprocessing.
    """

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing

    def logits(self, images: Images, queries: Tensor) -> Tensor:
        """How sure each box is of each query, before the sigmoid and before any threshold.

        Args:
            images: Float (B, 3, H, W) in [0, 1].
            queries: The queries' vectors, (B, Q, D).

        Returns:
            Float32 (B, P, Q) for the P boxes, one per patch of the image; the gradient reaches the pixels.
        """
        pixels = self.preprocessing(images.float())
        patches = self.model.image_embedder(pixel_values=pixels)[0].flatten(1, 2)
        return self.model.class_predictor(patches, queries, None)[0].float()

    def query_vector(self, text: str) -> Tensor:
        """The unit vector of one whole query: float32 (D,), without a gradient."""
        return text_vector(getattr(self.model, self.model.base_model_prefix), self.tokenizer, text)


def load_detector(model: str, *, revision: str = "", device: torch.device, where: str) -> Detector:
    """Load an OWL-ViT or OWLv2 of transformers from a registered name, a folder or the hub; safetensors only.

    Args:
        model: A name of `draft models`, a folder, or a hub id.
        revision: A hub revision; empty: the pinned one, see `_loading.hub_options`.
        device: Where to put it.
        where: The reward's name, for errors.

    Returns:
        The model, frozen and in evaluation mode, with its tokenizer and preprocessing.

    Raises:
        DraftError: There is no such model here, or its weights are missing or of another architecture.
    """
    from transformers import AutoConfig, Owlv2ForObjectDetection, OwlViTForObjectDetection

    families = {"owlvit": OwlViTForObjectDetection, "owlv2": Owlv2ForObjectDetection}
    path, options, what = draft.model_path(model), hub_options(revision, model), "OWL-ViT detector"
    with explained(what, model, where=where, revision=revision):
        kind = AutoConfig.from_pretrained(path, **options).model_type
        if kind not in families:
            raise ValueError(f"its model_type must be owlvit or owlv2 (got {kind!r})")
        preprocessing = read_preprocessing(path, options, kind={"owlvit": "OwlViT", "owlv2": "Owlv2"}[kind])
    tokenizer = load_tokenizer(model, revision=revision, what=what, where=where)
    network = load_frozen(families[kind], model, revision=revision, device=device, what=what, where=where)
    return Detector(network, tokenizer, preprocessing)


def query_vectors(detector: Detector, queries: Sequence[str], template: str) -> Callable[[Sequence[str]], Tensor]:
    """The vectors of each prompt's queries, every text encoded once.

    Args:
        detector: The detector whose text tower encodes them.
        queries: The option `queries`, Q texts.
        template: The option `template`.

    Returns:
        A function from B prompts to float32 (B, Q, D).
    """
    import torch

    vector = lru_cache(maxsize=8192)(detector.query_vector)

    def vectors(prompts: Sequence[str]) -> Tensor:
        rows = zip(*(_texts(query, template, prompts) for query in queries), strict=True)
        return torch.stack([torch.stack([vector(text) for text in row]) for row in rows])

    return vectors


def query_readings(detector: Detector, queries: Sequence[str], template: str) -> tuple[Reading, ...]:
    """How the queries are cut; arguments as of `query_vectors`."""
    limit = getattr(detector.model, detector.model.base_model_prefix).config.text_config.max_position_embeddings
    return tuple(reading(detector.tokenizer, limit, partial(_texts, query, template)) for query in queries)


def _texts(query: str, template: str, prompts: Sequence[str]) -> list[str]:
    # A prompt is a sentence already.
    if query == PROMPT:
        return list(prompts)
    return [template.replace(PLACE, text) for text in draft.per_prompt(query, prompts)]
