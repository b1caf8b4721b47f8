"""Which modules take part in a mix, and how strongly: factors by patterns of parts and of module paths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from draft.errors import StageError, did_you_mean


def module_weights(
    names: Iterable[str], *, components: Mapping[str, float], blocks: Mapping[str, float]
) -> dict[str, float]:
    """The factor of every module: the product of all patterns that match it, 1 where none does.

    Args:
        names: Module paths, beginning with their part: `unet.up_blocks.0.….to_q`.
        components: Patterns of parts, `text_encoder*`.
        blocks: Patterns of paths, with or without the part. `*` matches any characters, dots too, and what lies under a
            match matches as well: `up_blocks.1` is everything in that block, `*.attn2` every cross-attention.

    Returns:
        Factor by module; 0 means that the module is left out.

    Raises:
        StageError: A factor that is not finite, or a pattern that matches nothing.

    Example:
        >>> module_weights(["unet.up_blocks.0.proj"], components={}, blocks={"up_blocks.*": 0.5})
        {'unet.up_blocks.0.proj': 0.5}
    """
    factors = dict.fromkeys(names, 1.0)
    for kind, patterns in (("component", components), ("block", blocks)):
        for pattern, factor in patterns.items():
            if not math.isfinite(factor):
                raise StageError(
                    f"the factor of a {kind} must be a finite number (got {factor:g})", where=repr(pattern)
                )
            matching = [name for name in factors if _matches(name, pattern, kind)]
            if not matching:
                raise _nothing(pattern, kind, list(factors))
            for name in matching:
                factors[name] *= factor
    return factors


def _matches(name: str, pattern: str, kind: str) -> bool:
    part, _, path = name.partition(".")
    if kind == "component":
        return fnmatchcase(part, pattern)
    return any(fnmatchcase(text, form) for text in (path, name) for form in (pattern, f"{pattern}.*"))


def _nothing(pattern: str, kind: str, names: list[str]) -> StageError:
    parts = sorted({name.partition(".")[0] for name in names})
    if kind == "component":
        hint = did_you_mean(pattern, parts, otherwise=f"the parts are {', '.join(parts)}")
        return StageError(f"no part of the adapters matches the component {pattern!r}", hint=hint)
    blocks: dict[str, None] = {}
    for name in names:
        pieces = name.split(".")[1:]
        for length in range(1, len(pieces) + 1):
            # An index alone is no name, it belongs to what it counts.
            blocks[".".join(pieces[:length])] = blocks[pieces[length - 1]] = None
    plain = pattern.strip("*.")
    hint = did_you_mean(plain, [text for text in blocks if not text.isdigit()], otherwise=f"one module is {names[0]}")
    return StageError(f"no module of the adapters matches the block {pattern!r}", hint=hint)
