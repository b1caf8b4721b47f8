"""The methods as values: frozen dataclasses that pydantic validates and a training reads. No torch."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from draft.marks import ByKind
from draft.methods.values.adjoint_matching import AdjointMatching
from draft.methods.values.alignprop import AlignProp
from draft.methods.values.best_of_n import BestOfN
from draft.methods.values.ddpo import DDPO
from draft.methods.values.direct_align import DirectAlign
from draft.methods.values.dpg import DPG
from draft.methods.values.draft import Draft, DraftK, DraftLV
from draft.methods.values.drtune import DRTune
from draft.methods.values.flow_bp import FlowBPBridge, FlowBPLagrange, FlowBPSparse
from draft.methods.values.leap_align import LeapAlign
from draft.methods.values.protocol import MethodValue
from draft.methods.values.refl import ReFL
from draft.methods.values.traits import Traits
from draft.methods.values.vgg_flow import VGGFlow

METHODS: list[type[MethodValue]] = [
    Draft,
    DraftK,
    DraftLV,
    ReFL,
    AlignProp,
    DRTune,
    DirectAlign,
    LeapAlign,
    FlowBPSparse,
    FlowBPBridge,
    FlowBPLagrange,
    AdjointMatching,
    VGGFlow,
    DDPO,
    BestOfN,
    DPG,
]
"""Every method, in the order in which they are listed to a user. This list is all that knows them."""

Method: TypeAlias = Annotated[MethodValue, ByKind(METHODS)]
"""One of them, as a field's type."""

__all__ = [
    "DDPO",
    "DPG",
    "METHODS",
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
