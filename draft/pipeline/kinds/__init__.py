"""The kinds of stages, one file each. This list is all that knows them."""

from __future__ import annotations

from typing import Any

from draft.pipeline.kinds.compare import COMPARE
from draft.pipeline.kinds.evaluate import EVALUATE
from draft.pipeline.kinds.generate import GENERATE
from draft.pipeline.kinds.kind import Kind
from draft.pipeline.kinds.mix import MIX
from draft.pipeline.kinds.probe import PROBE
from draft.pipeline.kinds.strip import STRIP
from draft.pipeline.kinds.train import TRAIN

KINDS: dict[str, Kind] = {kind.name: kind for kind in (TRAIN, MIX, EVALUATE, GENERATE, COMPARE, PROBE, STRIP)}
"""Name to kind, in the order in which they are listed to a user; a closed set, which is what makes errors good."""


def kind_of(stage: Any) -> Kind | None:
    """The kind that plain data of a stage names; None where it is no such data, or there is no such kind."""
    name = stage.get("kind") if isinstance(stage, dict) else None
    return KINDS.get(name) if isinstance(name, str) else None
