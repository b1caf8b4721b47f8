"""Settings of a training as plain frozen dataclasses; pipelines validate them, the trainer reads them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from draft.diffusion.settings import Device, LoraSettings, Precision, Resolution, SamplerSettings
from draft.marks import AtMost, Extends, Inert, Instead, Within
from draft.methods.values import DraftLV, Method
from draft.scoring.objective import LinearLoss, Loss, PenaltySettings, RobustSettings


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When the state of a training is written, so that a killed run goes on where it was.

    Args:
        every: Updates between two checkpoints; 0 writes none.
        keep: How many of the newest checkpoints stay on disk.
        keep_final: Whether a finished training keeps its last state, so that a larger `max_steps` can go on from it.
    """

    __pydantic_config__ = {"extra": "forbid"}
    every: Annotated[int, Ge(0), Within("max_steps")] = 50
    keep: Annotated[int, Ge(1)] = 2
    keep_final: bool = True


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """The picture grid that shows a training's progress on fixed prompts and seeds.

    Args:
        every: Updates between two grids, in addition to the one before the first update; 0: no grids.
        prompts: The prompts of the grid; empty: the first `count` training prompts.
        count: How many training prompts to show where `prompts` is empty.
        seed: Seed of the grid's noise.
    """

    __pydantic_config__ = {"extra": "forbid"}
    every: Annotated[int, Ge(0), Within("max_steps")] = 0
    prompts: tuple[str, ...] = ()
    count: Annotated[int, Ge(1)] = 4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """Everything about a training that does not depend on its method and its length; a comparison's have it in common.

    Args:
        sampler: How images are sampled while training.
        cfg_gradient: What classifier-free guidance does in calls that carry gradient: gradient through `both` branches,
            the unconditional one `detached`, or guidance `off`.
        loss: The loss of an image as a function of its weighted sum of rewards R.
        penalty: What keeps the adapter near the base model.
        robust: Train for the worst reward nearby.
        rollout_reuse: Gradients drawn from each rollout, by methods that draw them from a cached one.
        lora: Which low-rank weights are trained.
        warmup_steps: Updates over which the learning rate rises linearly from 0.
        batch_size: Images per forward pass.
        gradient_accumulation_steps: Forward passes per update.
        max_grad_norm: Largest gradient norm; larger ones are scaled down. 0 turns clipping off.
        adam_beta1: AdamW's first moment decay.
        adam_beta2: AdamW's second moment decay.
        weight_decay: AdamW's weight decay.
        mixed_precision: `bf16` keeps the frozen model in bfloat16; the LoRA stays in float32.
        gradient_checkpointing: Recompute in the backward pass instead of keeping activations: `auto` recomputes each
            recorded step when there are more than two, `true` also the blocks of denoiser and decoder.
        compile: Compile the denoiser (torch.compile) for the calls that carry no gradient, most of a rollout; the first
            update then takes a minute or more.
        micro_batch_size: Images decoded and scored at once in the split backward pass; 0: the whole batch.
        saturation: What the gradient does at pixel values that were decoded outside [0, 1] and clipped: with `clip` it
            is 0 there, with `straight_through` it passes as if nothing had been clipped. The images are the same.
        resolution: Side of square images, or [height, width], in pixels; None: the model's own.
        text_encoder: Which prompts are embedded when: `cached` embeds all that will be drawn first, into a cache on
            disk that later runs share, and frees the text encoders; `resident` keeps them and embeds each batch; `auto`
            is `cached`, in parts if all would exceed the cache's limit.
        device: Where to train; `auto` is the first accelerator, else the CPU.
    """

    __pydantic_config__ = {"extra": "forbid"}
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    cfg_gradient: Literal["both", "detached", "off"] = "both"
    loss: Loss = field(default_factory=LinearLoss)
    penalty: PenaltySettings = field(default_factory=PenaltySettings)
    robust: RobustSettings = field(default_factory=RobustSettings)
    rollout_reuse: Annotated[int, Ge(1)] = 1
    lora: LoraSettings = field(default_factory=LoraSettings)
    warmup_steps: Annotated[int, Ge(0), AtMost(4)] = 0
    batch_size: Annotated[int, Ge(1), Le(65_536), AtMost(6)] = 4
    gradient_accumulation_steps: Annotated[int, Ge(1), Instead(1)] = 1
    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    weight_decay: Annotated[float, Ge(0)] = 0.1
    mixed_precision: Precision = "no"
    gradient_checkpointing: Annotated[bool | Literal["auto"], Inert(rounding=True)] = "auto"
    compile: Annotated[bool, Inert(rounding=True)] = False
    micro_batch_size: Annotated[int, Ge(0), Inert(rounding=True), Instead(0)] = 1
    saturation: Literal["clip", "straight_through"] = "clip"
    resolution: Resolution = None
    text_encoder: Annotated[Literal["auto", "cached", "resident"], Inert()] = "auto"
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainSettings(LearningSettings):
    """Everything about a training besides its model, prompts and rewards.

    Args:
        method: Which sampling steps carry gradient, and what is substituted for the adjoint.
        learning_rate: AdamW's peak step size.
        lr_schedule: Shape of the learning rate after the warm-up.
        max_steps: Number of updates.
        checkpoint: When the state is written.
        preview: The grid of progress pictures.
        report_to: Experiment trackers of accelerate (`tensorboard`, `wandb`, ...); `metrics.jsonl` is always written.
    """

    method: Method = field(default_factory=DraftLV)
    learning_rate: Annotated[float, Gt(0), Le(100)] = 4e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_steps: Annotated[int, Ge(1), Extends(), AtMost(40)] = 2000
    checkpoint: Annotated[CheckpointSettings, Inert()] = field(default_factory=CheckpointSettings)
    preview: Annotated[PreviewSettings, Inert()] = field(default_factory=PreviewSettings)
    report_to: Annotated[tuple[str, ...], Inert(), Instead(())] = ()
