"""An own small byte-level BPE in CLIP's format in which every word of the vocabulary is one token."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from draft_emoji.scenes import TEMPLATES_ONE, TEMPLATES_TWO
from draft_emoji.vocabulary import OTHER_WORDS, colours, entries

LENGTH = 24
"""Tokens in a caption, start and end included."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """Every word of the vocabulary, the colours, the templates and `OTHER_WORDS`, each once."""
    vocabulary: dict[str, None] = {}
    for entry in entries():
        for phrase in (*entry.words, *entry.other_forms):
            vocabulary.update(dict.fromkeys(phrase.split()))
    for template in (*TEMPLATES_ONE, *TEMPLATES_TWO):
        vocabulary.update(dict.fromkeys(word for word in template.split() if "{" not in word))
    vocabulary.update(dict.fromkeys([*colours(), *OTHER_WORDS]))
    return [word for word in vocabulary if word.isalpha()]


def train_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every word is one token.

    Ties are broken by spelling, so that the same words give the same merges everywhere.
    """
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for pieces in split:
            for pair in pairwise(pieces):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return merges
        best = max(sorted(counts), key=counts.__getitem__)
        merges.append(best)
        split = [_merge(pieces, best) for pieces in split]


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer's files and load them the way users will.

    The end token has the highest id, because OWL-ViT and CLIP's older path pool at ``argmax(input_ids)``. The full
    byte alphabet is in, because CLIP's unknown token is the end token: an unknown byte would end the caption.

    Args:
        folder: Where the files go; made if absent.

    Returns:
        The tokenizer as `CLIPTokenizer.from_pretrained` loads it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = train_merges(words())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *(a + b for a, b in merges), BEGIN, END]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH, pad_token=END)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids of captions as the Stable Diffusion pipeline makes them: int64, shape (B, 24)."""
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
