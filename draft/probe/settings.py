"""Settings of a probe as plain frozen dataclasses; pipelines validate them, the probe reads them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from draft.diffusion.settings import Device, LoraSettings, Precision, Resolution, SamplerSettings
from draft.marks import AtMost, Inert, Instead


@dataclass(frozen=True, kw_only=True)
class OtherGrid:
    """A grid beside the sampler's, of which nothing is sampled: its sensitivities follow from the model's schedule.

    Args:
        num_inference_steps: Number of sampling steps; None: the sampler's.
        spacing: How the times are spread; None: the sampler's.
        final: Where the last step lands; None: the sampler's.
        eta: Share of fresh noise; None: the sampler's.
    """

    __pydantic_config__ = {"extra": "forbid"}
    num_inference_steps: Annotated[int, Ge(1)] | None = None
    spacing: Literal["trailing", "leading", "linspace"] | None = None
    final: Literal["one", "first_alpha"] | None = None
    eta: Annotated[float, Ge(0), Le(1)] | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How the gradient of a chain of sampling steps is measured.

    Args:
        sampler: How images are sampled; all of its steps are probed.
        grids: Other grids, whose sensitivities are shown beside the sampler's.
        cfg_gradient: What classifier-free guidance does in calls that carry gradient, as in a training. `off` has no
            chain of its own; `guidance_scale: 1` is that.
        lora: The fresh LoRA that is probed, where there is no adapter: that of a training with the same seed.
        lora_b: Standard deviation of the fresh LoRA's B. At 0, where a training begins, the gradient of A is 0, and
            what is measured is the gradient of B at the base model.
        batches: Rollouts that the figures are means over.
        batch_size: Images per rollout.
        micro_batch_size: Images decoded and scored at once; 0: the whole batch.
        saturation: What the gradient does at clipped pixel values, as in a training.
        mixed_precision: `bf16` keeps the frozen model in bfloat16; the LoRA stays in float32.
        resolution: Side of square images, or [height, width], in pixels; None: the model's own.
        device: Where to run; `auto` is the first accelerator, else the CPU.
    """

    __pydantic_config__ = {"extra": "forbid"}
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    grids: tuple[OtherGrid, ...] = ()
    cfg_gradient: Literal["both", "detached"] = "both"
    lora: LoraSettings = field(default_factory=LoraSettings)
    lora_b: Annotated[float, Ge(0)] = 0.0
    batches: Annotated[int, Ge(1), AtMost(8)] = 8
    batch_size: Annotated[int, Ge(1), AtMost(6)] = 4
    micro_batch_size: Annotated[int, Ge(0), Inert(rounding=True), Instead(0)] = 1
    saturation: Literal["clip", "straight_through"] = "clip"
    mixed_precision: Precision = "no"
    resolution: Resolution = None
    device: Device = "auto"
