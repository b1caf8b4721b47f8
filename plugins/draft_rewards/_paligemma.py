"""A frozen PaliGemma in pure tensors: how likely it is to give an answer about an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import draft
from draft_rewards._blip import padded
from draft_rewards._loading import explained, hub_options, load_frozen, load_tokenizer
from draft_rewards._preprocessing import read_preprocessing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from draft.types import Images
    from draft_rewards._answers import Answers


def load_paligemma(model: str, *, revision: str, device: torch.device, where: str) -> Answers:
    r"""The family `paligemma` of the reward `vqa`: a `PaliGemmaForConditionalGeneration`, PaliGemma 2 included.

    One sequence holds the image's places, ``<bos> question \n``, and ``answer <eos>``. The places and the question,
    the prefix, see each other in both directions; the answer sees the prefix and its own past. The answer's tokens
    and <eos> count. (Beyer et al., arXiv 2407.07726.)

    Args:
        model: A name of `draft models`, a folder, or a hub id.
        revision: A hub revision; empty: the pinned one, see `_loading.hub_options`.
        device: Where to put it.
        where: The reward's name, for errors.

    Returns:
        Its log-probabilities of answers.

    Raises:
        DraftError: There is no such model here, or its weights are missing or of another architecture.
    """
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    path, options, what = draft.model_path(model), hub_options(revision, model), "PaliGemma"
    with explained(what, model, where=where, revision=revision):
        preprocessing = read_preprocessing(path, options, kind="Siglip")
    tokenizer = load_tokenizer(model, revision=revision, what=what, where=where)
    network = load_frozen(
        PaliGemmaForConditionalGeneration, model, revision=revision, device=device, what=what, where=where
    )
    vision = network.config.vision_config
    places = [network.config.image_token_index] * (vision.image_size // vision.patch_size) ** 2

    @lru_cache(maxsize=8192)
    def prefix(question: str) -> list[int]:
        text = f"{tokenizer.bos_token}{question}\n"
        return [*places, *tokenizer(text, add_special_tokens=False)["input_ids"]]

    @lru_cache(maxsize=8192)
    def suffix(answer: str) -> list[int]:
        return tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]

    def answers(images: Images, questions: Sequence[str], wanted: Sequence[str]) -> Tensor:
        prefixes, suffixes = [prefix(question) for question in questions], [suffix(answer) for answer in wanted]
        rows = [[*before, *after] for before, after in zip(prefixes, suffixes, strict=True)]
        ids, real = padded(rows, tokenizer.pad_token_id, images.device)
        prefix_lengths = torch.tensor([len(before) for before in prefixes], device=ids.device)
        # Only the answers' logits, of a quarter of a million words each.
        logit_count = ids.shape[1] - min(len(before) for before in prefixes) + 1
        logits = network(
            input_ids=ids,
            pixel_values=preprocessing(images.float()),
            attention_mask=prefix_mask(prefix_lengths, real),
            logits_to_keep=logit_count,
            use_cache=False,
        ).logits
        log_probabilities = (
            logits[:, :-1].float().log_softmax(dim=-1).gather(2, ids[:, 1 - logit_count :, None])[..., 0]
        )
        counted = (torch.arange(ids.shape[1], device=ids.device) >= prefix_lengths[:, None]) & (real == 1)
        return log_probabilities.where(counted[:, 1 - logit_count :], 0).sum(dim=1)

    return answers


def prefix_mask(prefix_lengths: Tensor, real: Tensor) -> Tensor:
    """Which token sees which: all see the prefix, the others what is before them too, and nobody sees padding.

    It is made here because transformers' own way of asking for it has changed from version to version.

    Args:
        prefix_lengths: Lengths of the prefixes, int64 (B,).
        real: 1 for tokens and 0 for padding, which is at the end, int64 (B, L).

    Returns:
        Float32 (B, 1, L, L), to be added to attention's scores: 0 where the row's token sees the column's.
    """
    import torch

    place = torch.arange(real.shape[1], device=real.device)
    before = place[None, :] <= place[:, None]
    visible = (before | (place < prefix_lengths[:, None, None])) & (real[:, None, :] == 1)
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(visible.shape, device=real.device).masked_fill(~visible, lowest)[:, None]
