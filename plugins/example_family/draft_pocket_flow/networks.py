"""The networks of Pocket Flow: a joint transformer as in FLUX, a text encoder, a decoder."""

from __future__ import annotations

import math
import re
import zlib
from functools import partial
from typing import Any

import torch
from draft.diffusion.lora import adapters_kept
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

_TIMES = 16  # numbers that a time or a guidance scale becomes


class PocketTransformer(nn.Module):
    """v(x, s, text, pooled, g): image and text tokens attend to one another, each with its own weights.

    Args:
        channels: Of a token: those of 2 x 2 latents.
        width: Of the tokens inside.
        heads: Of the attention; a head's width is a multiple of 4.
        blocks: Number of blocks.
        text_width: Of the text's tokens.
        pooled_width: Of the text's one vector.
        guidance: Whether the guidance scale is an input.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        heads: int,
        blocks: int,
        text_width: int,
        pooled_width: int,
        guidance: bool = True,
    ) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(channels, width)
        self.context_embedder = nn.Linear(text_width, width)
        self.time_embedder = nn.Sequential(nn.Linear(_TIMES, width), nn.SiLU(), nn.Linear(width, width))
        self.guidance_embedder = nn.Linear(_TIMES, width) if guidance else None
        self.pooled_embedder = nn.Linear(pooled_width, width)
        self.blocks = nn.ModuleList(_Block(width, heads, last=i == blocks - 1) for i in range(blocks))
        self.proj_out = nn.Linear(width, channels)
        self.recompute = False

    def forward(
        self, tokens: Tensor, ids: Tensor, level: Tensor, text: Tensor, pooled: Tensor, guidance: Tensor
    ) -> Any:
        """The velocity at each image token.

        Args:
            tokens: (B, N, channels).
            ids: Row and column of each image token, (N, 2); a text token is at (0, 0).
            level: The noise level s, a scalar.
            text: (B, L, text_width).
            pooled: (B, pooled_width).
            guidance: The guidance scale of each sample, (B,).

        Returns:
            (B, N, channels).
        """
        x, y = self.x_embedder(tokens), self.context_embedder(text)
        vector = self.time_embedder(_waves(level.reshape(1) * 1000).to(x.dtype)) + self.pooled_embedder(pooled)
        if self.guidance_embedder is not None:
            vector = vector + self.guidance_embedder(_waves(guidance * 100).to(x.dtype))
        places = torch.cat([ids.new_zeros(text.shape[1], 2), ids])
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                # Adapters may be switched before backward: the block is computed again with those that are on now.
                context_fn: Any = partial(adapters_kept, block)
                x, y = checkpoint(block, x, y, vector, places, use_reentrant=False, context_fn=context_fn)
            else:
                x, y = block(x, y, vector, places)
        return self.proj_out(x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.attn = _JointAttention(width, heads, last=last)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, y: Tensor, vector: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift, gate = self.modulation(silu(vector))[:, None].chunk(3, dim=-1)
        image, text = self.attn(self.norm(x) * (1 + scale) + shift, self.norm(y) * (1 + scale) + shift, places)
        x = x + gate * image
        if text is not None:
            y = y + gate * text
            y = y + self.ff(self.norm(y))
        return x + self.ff(self.norm(x)), y


class _JointAttention(nn.Module):
    """Image and text tokens attend to all; in the last block the text only answers: nothing reads what it becomes."""

    def __init__(self, width: int, heads: int, *, last: bool) -> None:
        super().__init__()
        self.heads, self.last = heads, last
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        if not last:
            self.add_q_proj, self.to_add_out = (nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor, places: Tensor) -> tuple[Tensor, Tensor | None]:
        def split(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        words = y.shape[1]
        q = _rotated(split(self.to_q(x)), places[words:])
        k = _rotated(split(torch.cat([self.add_k_proj(y), self.to_k(x)], dim=1)), places)
        v = split(torch.cat([self.add_v_proj(y), self.to_v(x)], dim=1))
        if not self.last:
            q = torch.cat([_rotated(split(self.add_q_proj(y)), places[:words]), q], dim=2)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.last:
            return self.to_out[0](mixed), None
        return self.to_out[0](mixed[:, words:]), self.to_add_out(mixed[:, :words])


def _rotated(heads: Tensor, places: Tensor) -> Tensor:
    """Turn pairs of numbers of (B, H, N, D) by angles that grow with rows and columns: rotary positions."""
    count = heads.shape[-1] // 4
    speeds = 10 ** -torch.linspace(0, 1, count, device=heads.device, dtype=heads.dtype)
    angles = (places.to(heads.dtype)[:, :, None] * speeds).flatten(1)  # (N, D / 2)
    a, b = heads.chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)


def _waves(numbers: Tensor) -> Tensor:
    """Numbers in about 0 to 1000, (B,), as sines and cosines, (B, 16)."""
    speeds = torch.exp(-math.log(1000) * torch.arange(_TIMES // 2, device=numbers.device) / (_TIMES // 2))
    angles = numbers[:, None] * speeds.to(numbers.dtype)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class PocketTextEncoder(nn.Module):
    """A word's vector and its place's, each word for itself; and the sum of all words as one vector.

    Args:
        words: Numbers that a word may have, see `word_numbers`.
        length: Words of a prompt.
        width: Of a word's vector.
        pooled_width: Of the one vector.
    """

    def __init__(self, *, words: int, length: int, width: int, pooled_width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(length, width)
        self.out_proj = nn.Linear(width, width)
        self.pooled_proj = nn.Linear(width, pooled_width)

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Text (B, L, width) and pooled (B, pooled_width) of words' numbers (B, L)."""
        states = self.out_proj(torch.tanh(self.words(numbers) + self.places.weight))
        return states, torch.tanh(self.pooled_proj(states.sum(dim=1)))


def word_numbers(prompt: str, words: int) -> list[int]:
    """The words of a prompt as numbers from 1, by their hash: no vocabulary is needed; 0 fills up."""
    return [1 + zlib.crc32(word.encode()) % (words - 1) for word in re.findall(r"\w+|[^\w\s]", prompt.lower())]


class PocketDecoder(nn.Module):
    """Latents to pixels, twice as many each way per stage.

    Args:
        channels: Of the latents.
        width: Inside.
        stages: How often the side is doubled.
        scaling_factor: The standard deviation of a latent is 1 / scaling_factor.
        shift_factor: The mean of a latent.
    """

    def __init__(
        self, *, channels: int, width: int, stages: int, scaling_factor: float = 1.0, shift_factor: float = 0.0
    ) -> None:
        super().__init__()
        self.scaling_factor, self.shift_factor = scaling_factor, shift_factor
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(stages))
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Images in about -1 to 1, (B, 3, H, W), of latents (B, channels, h, w)."""
        x = self.conv_in(latents / self.scaling_factor + self.shift_factor)
        for conv in self.convs:
            x = conv(interpolate(silu(x), scale_factor=2.0, mode="nearest"))
        return self.conv_out(silu(x))
