"""What an adapter is: low-rank factors of every module it changes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """One module's low-rank change dW = scale * up @ down.

    Args:
        down: A, shape (r, in) for a linear layer or (r, in, k, k) for a convolution.
        up: B, shape (out, r), or (out, r, 1, 1) for a convolution.
        scale: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732).
        stored: The dtype of the file that they come from, where they have more digits than it; None: their own.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    stored: torch.dtype | None = None

    @property
    def rank(self) -> int:
        """The number r of rows of A."""
        return self.down.shape[0]


class LazyFactors(Mapping[str, Factors]):
    """Factors by module path that are computed whenever they are asked for, by any thread."""

    @abstractmethod
    def shape(self, name: str) -> Factors:
        """A module's factors on the device `meta`: their shapes and dtypes, known without computing them."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA: the change of every module it touches.

    Args:
        modules: Factors by module path, which begins with the part of the pipeline:
            `unet.down_blocks.0.….to_q`, `transformer.transformer_blocks.0.….to_q`, `text_encoder.text_model.….q_proj`.
        family: `sd` (Stable Diffusion 1 and 2, and UNets like theirs), `sdxl`, `sd3` (Stable Diffusion 3 and 3.5) or
            `flux` (FLUX.1).
        metadata: The file's header, strings only.
    """

    modules: Mapping[str, Factors]
    family: str = "sd"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[int, int]:
        """How many modules have which rank, by rank."""
        return dict(sorted(Counter(factors.rank for factors in shapes_of(self.modules).values()).items()))


def shapes_of(modules: Mapping[str, Factors]) -> dict[str, Factors]:
    """The shapes and dtypes of factors; what is computed on demand is not computed for them.

    Args:
        modules: Factors by module path.

    Returns:
        Factors on the device `meta`, scale 1.
    """
    if isinstance(modules, LazyFactors):
        return {name: modules.shape(name) for name in modules}
    return {name: Factors(factors.down.to("meta"), factors.up.to("meta")) for name, factors in modules.items()}


def fold(factors: Factors) -> Factors:
    """The same change with scale 1: sqrt|scale| on both factors, the sign on B, computed in float64.

    Args:
        factors: Any factors.

    Returns:
        Factors of scale 1 in the same dtypes.
    """
    if factors.scale == 1.0:
        return factors
    root = math.sqrt(abs(factors.scale))
    down = (factors.down.double() * root).to(factors.down.dtype)
    up = (factors.up.double() * math.copysign(root, factors.scale)).to(factors.up.dtype)
    return Factors(down, up, 1.0)


def pad_ranks(modules: Mapping[str, Factors]) -> dict[str, Factors]:
    """Give all modules of a part of the pipeline one rank by zero rows and columns, which change no dW.

    diffusers (0.42.1 and before) reads kohya files whose modules have several ranks at wrong scales: the alphas of
    attention modules get lost under the names it makes of them. With one rank, and alpha equal to it, none can.

    Args:
        modules: Factors by module path.

    Returns:
        The same changes at equal ranks; `read_adapter` drops the padding again.
    """
    largest: dict[str, int] = {}
    for name, factors in modules.items():
        part = name.partition(".")[0]
        largest[part] = max(largest.get(part, 0), factors.rank)
    return {name: padded(factors, largest[name.partition(".")[0]]) for name, factors in modules.items()}


def padded(factors: Factors, rank: int) -> Factors:
    """The same change at a larger rank, by zero rows and columns.

    Args:
        factors: Any factors.
        rank: The new rank, at least the old one.

    Returns:
        Factors of this rank.
    """
    more = rank - factors.rank
    if not more:
        return factors
    down = torch.cat([factors.down, factors.down.new_zeros(more, *factors.down.shape[1:])], 0)
    up = torch.cat([factors.up, factors.up.new_zeros(factors.up.shape[0], more, *factors.up.shape[2:])], 1)
    return Factors(down, up, factors.scale)


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; a finite sum says so at once."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return bool(torch.isfinite(tensor.sum(dtype=wide))) or bool(torch.isfinite(tensor).all())


def trim_rank(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the rank-one terms that are zero on both sides, as `pad_ranks` adds them; one term always stays.

    Args:
        down: A.
        up: B.

    Returns:
        The same product at its smaller rank.
    """
    # A row of A whose first number is not zero is used; mostly that is all of them, and nothing else need be looked at.
    if (down.flatten(1)[:, 0] != 0).all():
        return down, up
    used = (down.flatten(1) != 0).any(1) | (up.flatten(1) != 0).any(0)
    if used.all():
        return down, up
    if not used.any():
        return down[:1], up[:, :1]
    return down[used], up[:, used]
