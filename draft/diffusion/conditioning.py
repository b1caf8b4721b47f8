"""What a denoiser is conditioned on besides latents and time, as one value that indexes, repeats and concatenates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.errors import DraftError


@dataclass(frozen=True)
class Conditioning:
    """Named tensors, the batch first; each family's `encode` makes its own and its `denoise` reads them.

    Stable Diffusion 1 and 2: text (B, L, D). SDXL: also pooled (B, P) and time_ids (B, 6). Methods, samplers and caches
    treat it as one value and never look inside.

    Args:
        tensors: Name to tensor; all have the same length B in their first dimension.

    Raises:
        DraftError: There is no tensor, or their lengths differ.

    Example:
        >>> both = Conditioning.cat([Conditioning({"text": torch.zeros(1, 77, 8)})] * 2)
        >>> len(both), len(both[:1]), both.expand(2) is both
        (2, 1, True)
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        lengths = {name: tensor.shape[0] for name, tensor in self.tensors.items()}
        if len(set(lengths.values())) != 1:
            raise DraftError(f"the tensors of a conditioning must have one length (got {lengths})")
        object.__setattr__(self, "tensors", dict(self.tensors))

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def __getitem__(self, chosen: slice | Sequence[int] | Tensor) -> Conditioning:
        return self._map(lambda tensor: tensor[chosen])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def repeat(self, times: int) -> Conditioning:
        """The batch `times` times in a row, (times * B, ...)."""
        if times == 1:
            return self
        return self._map(lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)))

    def expand(self, batch: int) -> Conditioning:
        """A conditioning of length 1 (or already `batch`) as one of length `batch`, without copying.

        Args:
            batch: The length B wanted.

        Returns:
            (B, ...) each.

        Raises:
            DraftError: The length is neither 1 nor B.
        """
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise DraftError(f"only a conditioning of length 1 can be expanded to {batch} (got {len(self)})")
        return self._map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))

    def with_tensor(self, name: str, tensor: Tensor) -> Conditioning:
        """The same with one more tensor, (B, ...), or another one under that name."""
        return Conditioning({**self.tensors, name: tensor})

    def vector(self, dtype: torch.dtype) -> Tensor:
        """Each sample's numbers as one vector, means over tokens; for a critic, which knows no family.

        Args:
            dtype: Precision of the means and of the result.

        Returns:
            (B, F): the tensors in the order of their names, (B, D) as it is, (B, L, D) as its mean over L.
        """
        parts = []
        for name in sorted(self.tensors):
            tensor = self.tensors[name].to(dtype)
            parts.append(tensor.flatten(1, -2).mean(1) if tensor.dim() > 2 else tensor.reshape(len(self), -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @classmethod
    def cat(cls, parts: Iterable[Conditioning]) -> Conditioning:
        """Several in a row, in order; all must have the same names.

        Args:
            parts: At least one.

        Returns:
            Their concatenation along the batch.

        Raises:
            DraftError: The names differ.
        """
        chosen = list(parts)
        names = {tuple(sorted(part.tensors)) for part in chosen}
        if len(names) != 1:
            raise DraftError(f"conditionings with different tensors cannot be concatenated (got {sorted(names)})")
        return cls({name: torch.cat([part.tensors[name] for part in chosen]) for name in chosen[0].tensors})

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning({name: function(tensor) for name, tensor in self.tensors.items()})
