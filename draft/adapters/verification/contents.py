"""What of an adapter file decides where it loads, and how strong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from draft.adapters.changes import Changes, scale_of
from draft.adapters.factors import Adapter
from draft.adapters.files.config import Alphas, read_alphas
from draft.adapters.files.container import read_tensors
from draft.adapters.files.header import read_header

# A tensor's name without the module: every ending that some tool knows.
_ENDING = re.compile(
    r"(?P<xlabs>.+\.processor\.(?:qkv|proj)_lora\d?)\.(?:down|up)\.weight"
    r"|(?P<name>.+?)(?:(?:\.lora|_lora|\.lora_linear_layer)\.(?:down|up)\.weight|\.lora_(?:down|mid|up)\.weight"
    r"|\.lora_[AB](?:\.\w+)?\.weight|\.lora_magnitude_vector(?:\.\w+)*"
    r"|\.(?:alpha|dora_scale|hada_\w+|lokr_\w+)|:(?:up|down|alpha))"
)
_KINDS = {
    "DoRA": re.compile(r"(.+)\.(?:dora_scale|lora_magnitude_vector(?:\.\w+)*)"),
    "LoHa": re.compile(r"(.+)\.hada_w1_a"),
    "LoKr": re.compile(r"(.+)\.lokr_w1(?:_a)?"),
    "LoCon": re.compile(r"(.+)\.lora_mid\.weight"),
    "LoRA": re.compile(
        r"(.+?)(?:\.lora_down|\.lora_A(?:\.\w+)?|[._]lora\.down|\.lora_linear_layer\.down|:down|(?<=_lora\d)\.down|"
        r"(?<=_lora)\.down)(?:\.weight)?"
    ),
}


@dataclass(frozen=True)
class Contents:
    """What of a file a tool's verdict depends on.

    Args:
        shapes: Shapes by tensor name, in the file's order.
        alphas: Values of the `.alpha` tensors by name.
        header: What the header says of alpha.
        in_header: Whether it says anything.
        strengths: By module path the factor of B A that the file means.
        targets: By part of the pipeline the modules that the header lists, as peft's `target_modules`; None where it
            says nothing of any.
    """

    shapes: Mapping[str, Sequence[int]]
    alphas: Mapping[str, float]
    header: Alphas
    in_header: bool
    strengths: Mapping[str, float]
    targets: Mapping[str, str | Sequence[str]] | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the file's modules, as it spells them, in its order."""
        endings = [match for name in self.shapes if (match := _ENDING.fullmatch(name))]
        return tuple(dict.fromkeys(match["xlabs"] or match["name"] for match in endings))


def contents_of(file: Path, adapter: Adapter | Changes) -> Contents:
    """What of a file decides where it loads.

    Args:
        file: The safetensors file.
        adapter: What was read from it.

    Returns:
        Names, shapes and alphas as they are in the file, and the strengths it means.
    """
    header = read_header(file)
    ordered = sorted(header.tensors.items(), key=lambda item: item[1].start)
    named = [name for name, _ in ordered if name.endswith(".alpha")]
    alphas: dict[str, float] = {}
    if named:
        tensors, _ = read_tensors(file)
        alphas = {name: float(tensors[name].reshape(-1)[0]) for name in named}
    return Contents(
        shapes={name: info.shape for name, info in ordered},
        alphas=alphas,
        header=read_alphas(None, header.metadata, where=str(file), dora=True),
        in_header="lora_adapter_metadata" in header.metadata,
        strengths={name: scale_of(change) for name, change in adapter.modules.items()},
        targets=_targets(header.metadata),
    )


def kinds_of(names: Iterable[str]) -> dict[str, int]:
    """In which ways a file's modules are changed.

    Args:
        names: The tensors' names.

    Returns:
        How many modules, as the file counts them, are a `LoRA`, a `LoCon` with a core, a `LoHa`, `LoKr` or `DoRA`.
    """
    kinds: dict[str, str] = {}
    for name in names:
        for kind, pattern in _KINDS.items():
            match = pattern.fullmatch(name)
            if match and kinds.get(match[1]) in (None, "LoRA"):
                kinds[match[1]] = kind
    return dict(sorted(Counter(kinds.values()).items()))


def _targets(metadata: Mapping[str, str]) -> dict[str, str | Sequence[str]] | None:
    if "lora_adapter_metadata" not in metadata:
        return None
    entries = [(key.split("."), value) for key, value in json.loads(metadata["lora_adapter_metadata"]).items()]
    return {key[0]: value for key, value in entries if len(key) == 2 and key[1] == "target_modules" and value}
