"""A kind of stage that Draft does not know: it colours an adapter round by round, and goes on where it was killed."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from draft.diffusion.settings import Device
from draft.errors import DraftError, StageError
from draft.marks import AtMost, Inert
from draft.pipeline.inputs import AdapterInput, Model, PromptSource, Rewards, Seed
from draft.pipeline.kinds.kind import Candidate, Job, Kind


@dataclass(frozen=True, kw_only=True)
class TintStage:
    """Colour an adapter.

    Args:
        kind: `tint`.
        model: The model that it is of.
        prompts: What it is for.
        rewards: What it should please.
        adapter: The adapter, `{from, weight}`.
        colour: The colour.
        rounds: How often it is dipped.
        pause: Seconds between two rounds.
        device: Where.
        seed: The stage's own seed.
    """

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["tint"]
    model: Model
    prompts: PromptSource
    rewards: Annotated[Rewards, MinLen(1)]
    adapter: AdapterInput
    colour: Literal["red", "blue"] = "red"
    rounds: Annotated[int, Ge(1), AtMost(3)] = 4
    pause: Annotated[float, Ge(0), Inert()] = 0.0
    device: Device = "auto"
    seed: Seed = None


def write_adapter(path, words: list[str], metadata: Mapping[str, str]) -> None:
    """A LoRA of one module whose A and B have a number for each word."""
    module, size = "lora_unet_mid_block_attentions_0_proj_in", 4 * len(words)
    header = {
        "__metadata__": {key: metadata[key] for key in sorted(metadata)},
        f"{module}.lora_down.weight": {"dtype": "F32", "shape": [len(words), 1], "data_offsets": [0, size]},
        f"{module}.lora_up.weight": {"dtype": "F32", "shape": [1, len(words)], "data_offsets": [size, 2 * size]},
    }
    text = json.dumps(header).encode()
    numbers = struct.pack(f"<{len(words)}f", *(sum(map(ord, word)) % 256 for word in words))
    path.write_bytes(len(text).to_bytes(8, "little") + text + 2 * numbers)


def run(job: Job) -> Mapping[str, float]:
    """Dip it so many times; a file says how far it has come."""
    config, rounds = job.stage.config, job.folder / "rounds.txt"
    source = job.files["adapter", "from"].read_bytes()
    done = rounds.read_text().split() if rounds.exists() else []
    for number in range(len(done), config.rounds):
        if config.pause:
            time.sleep(config.pause)
        done.append(f"{config.colour}-{number}-{job.stage.seed}-{len(source)}")
        rounds.write_text(" ".join(done))
    words = [*done, *job.stage.prompts, *(term.label for term in job.stage.terms), f"{config.adapter.weight:g}"]
    write_adapter(job.folder / "adapter.safetensors", words, job.metadata)
    if config.rounds == 13:
        raise StageError("thirteen rounds are one too many")
    return {"rounds": float(len(done))}


def problems(candidate: Candidate) -> Iterator[DraftError]:
    """Blue takes two rounds at least."""
    if candidate.config.colour == "blue" and candidate.config.rounds < 2:
        yield candidate.error(f"{candidate.name('rounds')} must be at least 2 for blue (got 1)", "rounds")


TINT = Kind(settings=TintStage, outputs={"adapter": "adapter.safetensors"}, run="tint_kind:run", problems=problems)
