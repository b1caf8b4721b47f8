"""How strongly one input of a mix takes part: its weight, that of its text encoders, factors of blocks. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from draft.adapters.selection import module_weights
from draft.errors import StageError


@dataclass(frozen=True)
class Strength:
    """How strongly one input takes part.

    Args:
        weight: Of all its modules.
        text_encoder: Of the modules of its text encoders, instead of `weight`; None: `weight`.
        blocks: Pattern of module paths (as in `MixSettings.blocks`) to a factor; 0 leaves the modules out.
    """

    weight: float = 1.0
    text_encoder: float | None = None
    blocks: Mapping[str, float] = field(default_factory=dict)

    @property
    def of_text(self) -> float:
        """The weight of text encoders."""
        return self.weight if self.text_encoder is None else self.text_encoder

    def __str__(self) -> str:
        """As the command line writes it: `0.7`, or `0.7:0.3` with a weight for text encoders."""
        return f"{self.weight:g}" if self.text_encoder is None else f"{self.weight:g}:{self.text_encoder:g}"


def check_strength(strength: Strength, where: str) -> None:
    """Refuse weights that are no finite numbers.

    Args:
        strength: What was asked for.
        where: The input, for errors.

    Raises:
        StageError: One is not finite.
    """
    for weight in (strength.weight, strength.of_text):
        if not math.isfinite(weight):
            raise StageError(f"a weight must be a finite number (got {weight})", where=where)


def added(strengths: Sequence[Strength]) -> list[Strength]:
    """The strengths of one input that is there several times, those with the same blocks as one.

    Args:
        strengths: In the order in which they were given.

    Returns:
        As few as have the same effect together.
    """
    sums: list[Strength] = []
    for strength in strengths:
        same = next((i for i, other in enumerate(sums) if dict(other.blocks) == dict(strength.blocks)), None)
        if same is None:
            sums.append(strength)
            continue
        other = sums[same]
        plain = other.text_encoder is None and strength.text_encoder is None
        text = None if plain else other.of_text + strength.of_text
        sums[same] = replace(other, weight=other.weight + strength.weight, text_encoder=text)
    return sums


def normalized(inputs: Sequence[Sequence[Strength]]) -> list[list[Strength]]:
    """Divide weights by their sum, those of text encoders by theirs; factors of blocks stay what they are.

    Args:
        inputs: The strengths of every input.

    Returns:
        The same with weights that sum to 1.

    Raises:
        StageError: Weights sum to 0.
    """
    flat = [strength for strengths in inputs for strength in strengths]
    total = _sum([strength.weight for strength in flat], "")
    if all(strength.text_encoder is None for strength in flat):
        return [[replace(s, weight=s.weight / total) for s in strengths] for strengths in inputs]
    text = _sum([strength.of_text for strength in flat], " of text encoders")
    return [
        [replace(s, weight=s.weight / total, text_encoder=s.of_text / text) for s in strengths] for strengths in inputs
    ]


def weights_by_module(strengths: Sequence[Strength], names: Iterable[str], where: str) -> float | dict[str, float]:
    """What one input's modules are multiplied with.

    Args:
        strengths: The input's, which add up.
        names: Its modules.
        where: The input, for errors.

    Returns:
        One number where all modules have the same, else a number by module.

    Raises:
        StageError: A weight of text encoders for an input without any, or a pattern that matches none of its modules.
    """
    if all(strength.text_encoder is None and not strength.blocks for strength in strengths):
        return math.fsum(strength.weight for strength in strengths)
    names = list(names)
    text = [name for name in names if name.startswith("text_encoder")]
    weights = dict.fromkeys(names, 0.0)
    for strength in strengths:
        if strength.text_encoder is not None and not text:
            raise StageError(
                f"it has no text encoder modules, for which a weight is given (got {strength.text_encoder:g})",
                where=where,
                hint="leave that weight out",
            )
        try:
            factors = module_weights(names, components={}, blocks=strength.blocks)
        except StageError as error:
            raise StageError(error.what, where=where, hint=error.hint) from error
        for name in names:
            weights[name] += factors[name] * (strength.of_text if name.startswith("text_encoder") else strength.weight)
    return weights


def _sum(weights: Sequence[float], of: str) -> float:
    total = math.fsum(weights)
    if abs(total) <= 1e-9 * math.fsum(map(abs, weights)):
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise StageError(f"weights{of} that sum to 0 cannot be normalised (got {listed})", hint="drop normalize")
    return total
