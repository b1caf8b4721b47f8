"""Texts embedded ahead of drawing, so that the text encoders are freed before the denoiser is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import TextToImage
from draft.types import Size

_CHUNK = 64
"""Texts whose embeddings are on the model's device at once."""


@dataclass(frozen=True)
class Embedded:
    """Texts with their conditioning.

    Args:
        rows: Text to its row in `conditioning`.
        conditioning: That of every distinct text, on the CPU, where many of them do no harm.
        unconditional: The negative prompt's, of length 1, on the model's device.
    """

    rows: Mapping[str, int]
    conditioning: Conditioning
    unconditional: Conditioning

    def take(self, texts: Sequence[str], device: torch.device) -> Conditioning:
        """The conditioning of B of the texts, in their order.

        Args:
            texts: B texts.
            device: Where to.

        Returns:
            Their conditioning, of length B.
        """
        return self.conditioning[[self.rows[text] for text in texts]].to(device)


def embed(model: TextToImage, texts: Sequence[str], size: Size, *, negative_prompt: str) -> Embedded:
    """Embed texts and a negative prompt; the text encoders stay.

    Args:
        model: The model.
        texts: What will be drawn; repetitions are embedded once.
        size: The images' size.
        negative_prompt: The other branch's prompt.

    Returns:
        Their conditioning.
    """
    rows = {text: row for row, text in enumerate(dict.fromkeys(str(text) for text in texts))}
    unconditional = model.unconditional(negative_prompt, size)
    return Embedded(rows, embed_texts(model, list(rows), size), unconditional)


def embed_texts(model: TextToImage, texts: Sequence[str], size: Size) -> Conditioning:
    """Embed texts, a few at a time on the model's device.

    Args:
        model: The model.
        texts: At least one.
        size: The images' size.

    Returns:
        Their conditioning on the CPU, in order.
    """
    chunks = [model.encode(texts[k : k + _CHUNK], size).to("cpu") for k in range(0, len(texts), _CHUNK)]
    return chunks[0] if len(chunks) == 1 else Conditioning.cat(chunks)
