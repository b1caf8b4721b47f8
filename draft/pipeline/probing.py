"""What only a `probe` stage can have wrong."""

from __future__ import annotations

from typing import Any

from draft.diffusion.settings import LoraSettings
from draft.errors import ConfigError, DraftError
from draft.pipeline.document import Document
from draft.pipeline.document import Path as Keys
from draft.pipeline.schema import ProbeStage
from draft.rewards.parts import without_gradient
from draft.rewards.reward import Term


def check_probe(
    config: ProbeStage, keys: Keys, terms: list[Term], document: Document, errors: list[DraftError]
) -> None:
    """Check what only a probe forbids: rewards without gradient, and a LoRA that is both fresh and trained.

    Args:
        config: The stage's typed settings.
        keys: Where it is.
        terms: Its rewards.
        document: The file, for the places of errors.
        errors: Gets what is wrong.
    """
    prefix = ".".join(map(str, keys))

    def refuse(what: str, *place: Any, hint: str) -> None:
        errors.append(ConfigError(what, where=document.place((*keys, *place)), hint=hint))

    if config.adapter is not None:
        for key, own, default in (("lora", config.lora, LoraSettings()), ("lora_b", config.lora_b, 0.0)):
            if own != default:
                what = f"{prefix}.{key} describes a fresh LoRA, and {prefix}.adapter is probed instead of one"
                refuse(what, key, hint="leave one of the two out")
    for term in terms:
        for inner, reward in without_gradient(term.reward) if term.weight else ():
            what = f"reward {reward.name!r} has no gradient, so it cannot be probed"
            refuse(what, "rewards", term.label, *inner, hint="leave it out, or give it weight: 0 to log its score")
