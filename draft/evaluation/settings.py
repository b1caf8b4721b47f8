"""Settings of evaluation and generation as plain frozen dataclasses; pipelines validate them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from draft.diffusion.settings import Device, Precision, Resolution, SamplerSettings
from draft.marks import AtMost, Inert, Layout


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """How images are sampled, and where.

    Args:
        sampler: How images are sampled.
        batch_size: Images sampled at once.
        mixed_precision: `bf16` runs the model in bfloat16.
        resolution: Side of square images, or [height, width], in pixels; None: the model's own.
        device: Where to run; `auto` is the first accelerator, else the CPU.
    """

    __pydantic_config__ = {"extra": "forbid"}
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    batch_size: Annotated[int, Ge(1), Inert(rounding=True), AtMost(16)] = 8
    mixed_precision: Precision = "no"
    resolution: Resolution = None
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(DrawSettings):
    """How images are made from prompts and fixed seeds.

    Args:
        images_per_prompt: Seeds per prompt.
    """

    images_per_prompt: Annotated[int, Ge(1), AtMost(2)] = 1


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(GenerateSettings):
    """How adapters are compared with the base model on the same prompts and seeds.

    Args:
        bootstrap_samples: Resamples behind each 95 % interval.
        shown: How many prompts the page shows as before/after rows.
    """

    bootstrap_samples: Annotated[int, Ge(100)] = 5000
    shown: Annotated[int, Ge(1), Layout()] = 12
