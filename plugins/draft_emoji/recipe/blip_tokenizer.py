"""A small WordPiece vocabulary in BERT's format: the emoji world's words whole, anything else in letters."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import string

import torch
from transformers import BertTokenizer

from draft_emoji.recipe.tokenizer import words

LENGTH = 48
"""Tokens in a text, both ends included; as many as the towers have positions for."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_QUESTIONS = """
does do can you see i figure show shown contain describe match please answer yes or any
"""

QUESTION_WORDS = tuple(_QUESTIONS.split())
"""Words of questions and answers that no caption has."""

MARKS = tuple("?.,!:;'\"-()&/")


def make_tokenizer() -> BertTokenizer:
    """The tokenizer of the three BLIP models.

    A word outside the vocabulary is spelt in letters behind the longest known word that it begins with, so that two
    unknown words do not look the same. As in the published models, ``[DEC]``, which starts what a decoder writes, is
    the id behind the tokenizer's own.
    """
    characters = string.ascii_lowercase + string.digits
    pieces = [*SPECIAL, *MARKS, *characters, *(f"##{one}" for one in characters), *words(), *QUESTION_WORDS]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=vocab, model_max_length=LENGTH)


def encode(tokenizer: BertTokenizer, texts: list[str], length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of texts, ``[CLS] .. [SEP]``, as long as the longest, and their mask: int64, shape (B, L) both."""
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return encoded.input_ids, encoded.attention_mask


def encode_written(tokenizer: BertTokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for texts that a decoder writes, ``[DEC] .. [SEP]``."""
    ids, mask = encode(tokenizer, texts)
    ids[:, 0] = len(tokenizer)
    return ids, mask
