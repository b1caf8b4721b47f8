"""The methods as values: frozen dataclasses that pydantic validates and the training loop reads. No torch."""

from __future__ import annotations

from draft.diffusion.methods.values.backpropagation import AlignProp, Draft, DraftK, DraftLV, DRTune, ReFL
from draft.diffusion.methods.values.traits import Traits

Method = Draft | DraftK | DraftLV | ReFL | AlignProp | DRTune

__all__ = ["AlignProp", "DRTune", "Draft", "DraftK", "DraftLV", "Method", "ReFL", "Traits"]
