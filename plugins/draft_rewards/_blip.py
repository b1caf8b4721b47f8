"""A frozen BLIP of transformers in pure tensors: what it sees, and how likely it is to say a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import draft
from draft.rewards.reading import Reading
from draft_rewards._answers import ReadingAnswers
from draft_rewards._loading import explained, hub_options, load_frozen, load_tokenizer
from draft_rewards._preprocessing import Preprocessing, read_preprocessing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from draft.types import Images


@dataclass(frozen=True)
class Line:
    """A text as a decoder reads it.

    Args:
        ids: Its tokens with the one that starts it and the one that ends it.
        prefix_length: How many of the first ones, at least 1, are given to the decoder and not predicted by it.
    """

    ids: tuple[int, ...]
    prefix_length: int

    @property
    def counted(self) -> int:
        """How many tokens the decoder has to find."""
        return len(self.ids) - self.prefix_length


@dataclass(frozen=True)
class Blip:
    """A loaded BLIP with a decoder.

    Args:
        model: The frozen `BlipForConditionalGeneration` or `BlipForQuestionAnswering`, float32.
        tokenizer: Its tokenizer.
        preprocessing: Its image preprocessing.
    """

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing

    def image_states(self, images: Images) -> Tensor:
        """What the vision tower makes of images.

        Args:
            images: Float (B, 3, H, W) in [0, 1].

        Returns:
            Float32 (B, 1 + patches, D); the gradient reaches the pixels.
        """
        return self.model.vision_model(pixel_values=self.preprocessing(images.float())).last_hidden_state

    def words(self, text: str) -> list[int]:
        """The tokens of a text alone, without those that start and end it."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def line(self, text: str, *, before: str = "") -> Line:
        """`[DEC]` and the words of `before`, which are given, the words of `text`, and `[SEP]`, which ends it.

        Args:
            text: What is to be said; cut where the decoder has no more positions.
            before: What it goes on from.

        Returns:
            The tokens.
        """
        config = self.model.config.text_config
        start = [config.bos_token_id, *self.words(before)]
        words = self.words(text)[: max(config.max_position_embeddings - len(start) - 1, 0)]
        return Line((*start, *words, config.sep_token_id), len(start))

    def line_reading(self, *, before: str = "") -> Reading:
        """How `line` cuts its texts."""
        beside = 2 + len(self.words(before))

        def lengths(texts: Sequence[str]) -> list[int]:
            return [len(self.words(text)) + beside for text in texts]

        return Reading(self.model.config.text_config.max_position_embeddings, lengths)

    def log_likelihood(self, lines: Sequence[Line], states: Tensor) -> Tensor:
        """Sum of log p(token | the tokens before it, states) over the tokens of each line that count.

        Args:
            lines: B lines.
            states: What the decoder looks at, (B, S, D), all of it.

        Returns:
            Float32 (B,), at most 0.
        """
        import torch

        ids, real = padded([line.ids for line in lines], self.model.config.text_config.pad_token_id, states.device)
        logits = self.model.text_decoder(
            input_ids=ids, attention_mask=real, encoder_hidden_states=states, use_cache=False
        ).logits
        log_probabilities = logits[:, :-1].float().log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0]
        prefix_lengths = torch.tensor([line.prefix_length for line in lines], device=ids.device)
        counted = (torch.arange(1, ids.shape[1], device=ids.device) >= prefix_lengths[:, None]) & (real[:, 1:] == 1)
        return log_probabilities.where(counted, 0).sum(dim=1)


def load_blip(family: Any, model: str, *, revision: str = "", device: torch.device, what: str, where: str) -> Blip:
    """Load a BLIP of transformers from a registered name, a folder or the hub; frozen.

    Args:
        family: `BlipForConditionalGeneration` or `BlipForQuestionAnswering`.
        model: A name of `draft models`, a folder, or a hub id.
        revision: A hub revision; empty: the pinned one, see `_loading.hub_options`.
        device: Where to put it.
        what: What is being loaded, e.g. ``"BLIP captioner"``, for errors.
        where: The reward's name, for errors.

    Returns:
        The model, frozen and in evaluation mode, with its tokenizer and preprocessing.

    Raises:
        DraftError: There is no such model here, or its weights are missing or of another architecture.
    """
    from transformers import AutoConfig

    path, options = draft.model_path(model), hub_options(revision, model)
    with explained(what, model, where=where, revision=revision):
        kind = AutoConfig.from_pretrained(path, **options).model_type
        if kind != "blip":
            raise ValueError(f"its model_type must be blip (got {kind!r})")
        preprocessing = read_preprocessing(path, options, kind="Blip")
    tokenizer = load_tokenizer(model, revision=revision, what=what, where=where)
    network = load_frozen(family, model, revision=revision, device=device, what=what, where=where)
    return Blip(network, tokenizer, preprocessing)


def load_blip_answers(model: str, *, revision: str, device: torch.device, where: str) -> ReadingAnswers:
    """The family `blip` of the reward `vqa`: a `BlipForQuestionAnswering`.

    An encoder reads ``[ENC] question [SEP]`` with the image in view, a decoder says ``[DEC] answer [SEP]`` with the
    encoder's states in view; the answer's tokens and [SEP] count, as in BLIP's own training and ranking.

    Args:
        model: A name of `draft models`, a folder, or a hub id.
        revision: A hub revision; empty: the pinned one, see `_loading.hub_options`.
        device: Where to put it.
        where: The reward's name, for errors.

    Returns:
        Its log-probabilities of answers.
    """
    import torch
    from transformers import BlipForQuestionAnswering

    blip = load_blip(
        BlipForQuestionAnswering, model, revision=revision, device=device, what="BLIP that answers", where=where
    )
    config, tokenizer = blip.model.config.text_config, blip.tokenizer
    start, answer_line = question_start(tokenizer, config), lru_cache(maxsize=8192)(blip.line)

    @lru_cache(maxsize=8192)
    def question_ids(question: str) -> tuple[int, ...]:
        words = blip.words(question)[: config.max_position_embeddings - 2]
        return (start, *words, tokenizer.sep_token_id)

    def answers(images: Images, questions: Sequence[str], wanted: Sequence[str]) -> Tensor:
        states, rows = blip.image_states(images), [question_ids(question) for question in questions]
        lines, total = [answer_line(answer) for answer in wanted], states.new_zeros(len(questions))
        # One length after the other, so that nothing is padded: transformers 5.23 takes the mask of what a decoder
        # looks at and does not use it, and answers would depend on how long the other questions are.
        for length in sorted({len(row) for row in rows}):
            places = [place for place, row in enumerate(rows) if len(row) == length]
            ids = torch.tensor([rows[place] for place in places], device=states.device)
            read = blip.model.text_encoder(
                input_ids=ids, encoder_hidden_states=states[places], is_decoder=False
            ).last_hidden_state
            likelihoods = blip.log_likelihood([lines[place] for place in places], read)
            total = total.index_put((torch.tensor(places, device=states.device),), likelihoods)
        return total

    # A question has two tokens around it, as a line has where nothing comes before it.
    return ReadingAnswers(answers, blip.line_reading(), blip.line_reading())


def question_start(tokenizer: Any, config: Any) -> int:
    """The token that starts a question: [ENC], as BLIP was trained, where the model has one, and else [CLS].

    Published models have [DEC] and [ENC] as two embeddings behind the tokenizer's own words, which transformers'
    processor does not know: it leaves [CLS] (transformers' issues 22732 and 25629).

    Args:
        tokenizer: The model's tokenizer.
        config: The configuration of its text.

    Returns:
        The token's id.
    """
    size = len(tokenizer)
    if "[ENC]" in tokenizer.get_vocab():
        return tokenizer.convert_tokens_to_ids("[ENC]")
    if config.bos_token_id == size and config.vocab_size >= size + 2:
        return size + 1
    return tokenizer.cls_token_id


def padded(rows: Sequence[Sequence[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, padded at their ends.

    Args:
        rows: B rows of tokens.
        padding: The token to pad with.
        device: Where to put it.

    Returns:
        The tokens and a mask that is 1 for what is no padding, both int64 (B, L).
    """
    import torch

    length = max(len(row) for row in rows)
    ids = [[*row, *[padding] * (length - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
