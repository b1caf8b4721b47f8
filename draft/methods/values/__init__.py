"""The methods as values: frozen dataclasses that pydantic validates and the training loop reads. No torch."""

from __future__ import annotations

from draft.methods.values.backpropagation import AlignProp, Draft, DraftK, DraftLV, DRTune, ReFL
from draft.methods.values.leaps import (
    Cached,
    DirectAlign,
    FlowBPBridge,
    FlowBPLagrange,
    FlowBPSparse,
    LeapAlign,
)
from draft.methods.values.policy import DDPO, DPG, BestOfN
from draft.methods.values.regression import AdjointMatching, VGGFlow
from draft.methods.values.traits import Traits

Method = (
    Draft | DraftK | DraftLV | ReFL | AlignProp | DRTune | Cached | AdjointMatching | VGGFlow | DDPO | BestOfN | DPG
)

__all__ = [
    "DDPO",
    "DPG",
    "AdjointMatching",
    "AlignProp",
    "BestOfN",
    "DRTune",
    "DirectAlign",
    "Draft",
    "DraftK",
    "DraftLV",
    "FlowBPBridge",
    "FlowBPLagrange",
    "FlowBPSparse",
    "LeapAlign",
    "Method",
    "ReFL",
    "Traits",
    "VGGFlow",
]
