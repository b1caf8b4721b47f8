"""Settings of sampling and LoRA as plain frozen dataclasses; pipelines validate them, the mathematics reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from draft.errors import Problem
from draft.marks import AtMost, Inert, Instead

Frozen = Literal["auto", "epsilon", "velocity"]
"""What a linear surrogate holds fixed at steps that it does not record.

`auto`: velocity in flow matching and on a grid that starts without signal, as with zero terminal SNR, else epsilon.
"""

Precision = Annotated[Literal["no", "bf16"], Instead("no")]
Resolution = Annotated[
    Annotated[int, Ge(8)] | tuple[Annotated[int, Ge(8)], Annotated[int, Ge(8)]] | None, Instead(None)
]
"""The side of square images, or (height, width) as diffusers orders them, in pixels; None: the model's own size."""
Device = Annotated[str, Inert(rounding=True), Instead("auto", keep=("auto", "cpu"))]

STEPS = "sampler.num_inference_steps"
"""Where a stage has the number of sampling steps, for marks that refer to it."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How images are sampled.

    Args:
        num_inference_steps: Number T of sampling steps.
        guidance_scale: Guidance scale g, for Stable Diffusion at least 1; at 1 the unconditional branch is not
            computed.
        negative_prompt: The unconditional branch's prompt.
        spacing: How the T times are spread over the training schedule, as in diffusers' `timestep_spacing`.
        final: Where the last step lands: `one` is the clean image, `first_alpha` the schedule's first noise level
            (diffusers' `set_alpha_to_one` true and false).
        eta: Share of fresh noise in each step: 0 is deterministic DDIM, 1 as much as DDPM (arXiv 2010.02502, eq. 16).
    """

    __pydantic_config__ = {"extra": "forbid"}
    num_inference_steps: Annotated[int, Ge(1), AtMost(10)] = 50
    guidance_scale: Annotated[float, Ge(0), AtMost(2.0)] = 7.5
    negative_prompt: str = ""
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    final: Literal["one", "first_alpha"] = "one"
    eta: Annotated[float, Ge(0), Le(1)] = 0.0


def flow_problems(sampler: SamplerSettings) -> Iterator[Problem]:
    """Find the settings of a sampler that flow matching does not have.

    Args:
        sampler: How images are sampled.

    Yields:
        One problem each.
    """
    if sampler.final != "one":
        what = f"sampler.final must be 'one' for a flow-matching model (got {sampler.final!r})"
        yield Problem(("sampler", "final"), what, "only a diffusion schedule has a first alpha")
    if sampler.spacing == "leading":
        what = "sampler.spacing must be 'trailing' or 'linspace' for a flow-matching model (got 'leading')"
        yield Problem(("sampler", "spacing"), what, "leading would not start from noise")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Which low-rank weights are trained.

    Args:
        rank: Rank r of every adapted module.
        targets: Suffixes of the names of the adapted modules; None: those of the model's family, its attention.
    """

    __pydantic_config__ = {"extra": "forbid"}
    rank: Annotated[int, Ge(1)] = 8
    targets: Annotated[tuple[str, ...], MinLen(1)] | None = None
