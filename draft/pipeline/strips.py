"""What only a `strip` stage can have wrong."""

from __future__ import annotations

from typing import Any

from draft.errors import ConfigError, DraftError
from draft.pipeline.document import Document
from draft.pipeline.document import Path as Keys
from draft.pipeline.schema import StripStage
from draft.strips.settings import SCALES


def check_strip(config: StripStage, keys: Keys, document: Document, errors: list[DraftError]) -> None:
    """Check what only a strip forbids: more than two adapters, a second axis without one, a scale or seed twice.

    Args:
        config: The stage's typed settings.
        keys: Where it is.
        document: The file, for the places of errors.
        errors: Gets what is wrong.
    """
    prefix = ".".join(map(str, keys))

    def refuse(what: str, key: str, *, hint: str = "") -> None:
        errors.append(ConfigError(f"{prefix}.{key} {what}", where=document.place((*keys, key)), hint=hint))

    count = len(config.adapters)
    if count > 2:
        refuse(f"must be one or two (got {count})", "adapters", hint="mix some of them first, in a mix stage")
    if count == 1 and config.scales_b != SCALES:
        refuse("has no effect with one adapter", "scales_b", hint="name a second one under adapters")
    axes: dict[str, tuple[Any, ...]] = {"scales": config.scales, "scales_b": config.scales_b, "seeds": config.seeds}
    for key, values in axes.items():
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if twice:
            refuse(f"has {twice[0]:g} twice", key)
