"""Settings that a model's family cannot go with, found from its row and its configuration alone. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from draft.diffusion.settings import SamplerSettings, flow_problems
from draft.errors import DraftError, Problem, StageError
from draft.family import Family
from draft.types import Size

_USUAL_MULTIPLE = 8
"""Pixels per latent in all autoencoders of single-file checkpoints."""


def family_problems(family: Family, sampler: SamplerSettings, *, cfg_gradient: str = "both") -> Iterator[Problem]:
    """Find the settings of the sampler and of guidance that a family does not have.

    Args:
        family: The model's.
        sampler: How images are sampled.
        cfg_gradient: A training's setting of that name.

    Yields:
        One problem each.
    """
    if family.schedule == "flow":
        yield from flow_problems(sampler)
    name, scale = family.title or family.name, sampler.guidance_scale
    key = ("sampler", "guidance_scale")
    if family.guidance in ("classifier_free", "norm_rescaled") and scale < 1:
        what = f"sampler.guidance_scale must be at least 1 for {name} (got {scale:g})"
        yield Problem(key, what, "1 is without guidance")
    if family.guidance == "none" and scale != 1:
        what = f"sampler.guidance_scale must be 1 for {name}, which has no guidance (got {scale:g})"
        yield Problem(key, what, "sampler: {guidance_scale: 1}")
    if family.guidance in ("embedded", "none"):
        if sampler.negative_prompt:
            what = f"sampler.negative_prompt has no effect with {name}, which is not called with one"
            yield Problem(("sampler", "negative_prompt"), what, "leave negative_prompt out")
        if cfg_gradient != "both":
            what = f"cfg_gradient has no effect with {name}, which has no second branch (got {cfg_gradient})"
            yield Problem(("cfg_gradient",), what, "leave cfg_gradient out")


def latent_sides(size: Size, multiple: int) -> tuple[int, int]:
    """Divide an image's sides by what one latent covers.

    Args:
        size: The image's.
        multiple: Pixels along the side of one latent.

    Returns:
        The latents' height and width.

    Raises:
        DraftError: A side is no multiple, or it is no image.
    """
    if size.height % multiple or size.width % multiple or size.frames != 1:
        got = size.height if size == Size(size.height, size.height) else size
        raise DraftError(f"resolution must be a multiple of {multiple} for this model (got {got})")
    return size.height // multiple, size.width // multiple


def size_problems(model: str, resolution: int | tuple[int, int] | None, *, multiple: int = 0) -> Iterator[Problem]:
    """Find a size that a model cannot draw.

    Args:
        model: Folder or `.safetensors` file; of a hub id nothing is known before it is loaded.
        resolution: The setting.
        multiple: The family's, see `Family.multiple`.

    Yields:
        A problem where a side is no multiple of what the family says, or of what one latent covers.
    """
    multiple = multiple or _pixels_per_latent(Path(model))
    if resolution is None or not multiple:
        return
    sides = (resolution,) if isinstance(resolution, int) else resolution
    if any(side % multiple for side in sides):
        got = resolution if isinstance(resolution, int) else list(resolution)
        below = [side // multiple * multiple for side in sides]
        above = [-(-side // multiple) * multiple for side in sides]
        nearest = f"{below} or {above}" if len(sides) > 1 else f"{below[0]} or {above[0]}"
        what = f"resolution must be a multiple of {multiple} for this model (got {got})"
        yield Problem(("resolution",), what, f"for example {nearest}")


def require_family_settings(family: Family, sampler: SamplerSettings, *, cfg_gradient: str = "both") -> None:
    """Refuse settings of the sampler and of guidance that a family does not have.

    Args:
        family: The model's.
        sampler: How images are sampled.
        cfg_gradient: A training's setting of that name.

    Raises:
        StageError: There are such settings; it names all of them.
    """
    problems = list(family_problems(family, sampler, cfg_gradient=cfg_gradient))
    if problems:
        hints = dict.fromkeys(problem.hint for problem in problems if problem.hint)
        raise StageError("; ".join(problem.what for problem in problems), hint="; ".join(hints))


def _pixels_per_latent(path: Path) -> int:
    if path.is_file():
        return _USUAL_MULTIPLE
    try:
        config = json.loads((path / "vae" / "config.json").read_text(encoding="utf-8"))
        return 2 ** (len(config["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # another kind of autoencoder, or a hub id: loading knows
