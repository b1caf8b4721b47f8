"""What can be wrong with a mix before any adapter is read: settings that contradict each other."""

from __future__ import annotations

import math

from draft.adapters.settings import MixSettings, check_settings
from draft.errors import ConfigError, DraftError, StageError
from draft.pipeline.document import Document
from draft.pipeline.document import Path as Keys


def check_mixing(stage: MixSettings, keys: Keys, document: Document, errors: list[DraftError]) -> None:
    """Collect what contradicts in a mix stage's settings.

    Args:
        stage: The stage.
        keys: Where it stands in the file.
        document: For places.
        errors: Gets what is wrong.
    """
    prefix = ".".join(map(str, keys))
    try:
        check_settings(stage)
    except StageError as error:
        what = f"{'.'.join(map(str, keys))}: {error.what}"
        errors.append(ConfigError(what, where=document.place(keys), hint=error.hint))
    for name, patterns in (("components", stage.components), ("blocks", stage.blocks)):
        for pattern, factor in patterns.items():
            if not math.isfinite(factor):
                place = document.place((*keys, name, pattern))
                errors.append(
                    ConfigError(f"{prefix}.{name}: a factor must be a finite number (got {factor:g})", where=place)
                )
