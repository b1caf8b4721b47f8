"""The model family `pocket_flow`: its row, and a model of it. Importing this costs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import draft

FAMILY = draft.Family(
    name="pocket_flow",
    title="Pocket Flow",
    pipeline="PocketFlowPipeline",
    part="transformer",
    load="draft_pocket_flow.model:load",
    components={
        "transformer": "PocketTransformer",
        "vae": "PocketDecoder",
        "text_encoder": "PocketTextEncoder",
        "tokenizer": "",
    },
    schedule="flow",
    guidance="embedded",
    patch=2,
    multiple=8,
    targets=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"),
    stand_in="pocket_flow",
)


@draft.hookimpl
def draft_families() -> list[draft.Family]:
    """The families of this package."""
    return [FAMILY]


@draft.hookimpl
def draft_models() -> list[draft.NamedModel]:
    """A model with random weights, written when it is first loaded."""
    return [
        draft.NamedModel(
            name="pocket_flow",
            path=_place(),
            kind="text-to-image",
            description="a small flow-matching transformer with random weights, 32 px",
            licence="Apache-2.0",
            derive=_write,
            family=FAMILY.name,
        )
    ]


def _place() -> Path:
    """A folder's name that changes whenever what would be written there does."""
    sources = (Path(__file__).with_name(f"{name}.py") for name in ("networks", "weights"))
    return Path(f"pocket_flow-{hashlib.sha256(b''.join(file.read_bytes() for file in sources)).hexdigest()[:16]}")


def _write(folder: Path) -> None:
    from draft_pocket_flow.weights import write

    write(folder)
