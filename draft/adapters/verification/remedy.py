"""What `draft convert` would make better: the formats we write, each walked through the tools' key maps."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from draft.adapters.changes import Change, Changes, inputs_of, outputs_of
from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import Format, read_adapter, write_adapter
from draft.adapters.verification.contents import contents_of
from draft.adapters.verification.models import BaseModel
from draft.adapters.verification.tools import tools
from draft.adapters.verification.verdict import judge
from draft.errors import StageError

FORMATS: tuple[Format, ...] = ("kohya", "diffusers", "peft")


def tools_by_format(adapter: Adapter | Changes, base: BaseModel) -> dict[Format, tuple[str, ...]]:
    """In which tools an adapter would load whole and right, by the format it is written in.

    A stand-in of the same modules at rank 1 is written in every format and judged.

    Args:
        adapter: The adapter.
        base: Its base model.

    Returns:
        Tools by format; formats that have no name for one of the modules are left out.
    """
    stand_in = Adapter({name: _thin(change) for name, change in adapter.modules.items()}, adapter.family)
    by_format: dict[Format, tuple[str, ...]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for format in FORMATS:
            file = Path(folder) / f"{format}.safetensors"
            try:
                write_adapter(stand_in, file, format=format)
            except StageError:
                continue
            contents = contents_of(file, read_adapter(file))
            verdicts = [judge(tool, base, contents) for tool in tools()]
            by_format[format] = tuple(verdict.tool for verdict in verdicts if verdict.right)
    return by_format


def _thin(change: Change) -> Factors:
    """Factors of rank 1 in the same shapes."""
    inputs = inputs_of(change)
    return Factors(
        torch.ones(1, *inputs, dtype=torch.bfloat16),
        torch.ones(outputs_of(change), 1, *[1] * (len(inputs) - 1), dtype=torch.bfloat16),
    )
