"""How adapters are mixed, as a plain frozen dataclass that the command and the pipeline stage fill in. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from draft.errors import StageError


@dataclass(frozen=True, kw_only=True)
class MixSettings:
    """How adapters are added up, and how the sum is written.

    Args:
        method: `exact`: the weighted sum itself; `ties`, `dare` and `magnitude` thin out every input's dense change
            first, and need `density` and `rank`.
        rank: The largest rank of a module: the best approximation of that rank; null: the sum of the inputs' ranks.
        energy: Share of the squared singular values that every module keeps at least, by the smallest rank that does.
        max_error: Relative error of the sum over all modules together, reached with the smallest ranks.
        components: Pattern of a part (`unet`, `transformer`, `text_encoder*`) to a factor; 0 drops the part.
        blocks: Pattern of module paths (`up_blocks.*`, `*.attn2`) to a factor; 0 drops the modules.
        normalize: Divide the weights by their sum.
        density: Share of the entries of a change that `ties`, `dare` and `magnitude` keep.
        dtype: Dtype of the written factors; `same` is the widest of the inputs.
        format: The written file's key format; `auto` is what most programs read for this model family.
        skip: Patterns of tensors or modules that are left out if they cannot be read (a DoRA's magnitude, a norm).
            Each that is left out is reported.
        verify: `factors`: the written file is read back and compared with the sum; `full`: by diffusers' reader too.
    """

    __pydantic_config__ = {"extra": "forbid"}
    method: Literal["exact", "ties", "dare", "magnitude"] = "exact"
    rank: Annotated[int, Ge(1)] | None = None
    energy: Annotated[float, Gt(0), Le(1)] | None = None
    max_error: Annotated[float, Ge(0), Lt(1)] | None = None
    components: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, float] = field(default_factory=dict)
    normalize: bool = False
    density: Annotated[float, Gt(0), Le(1)] | None = None
    dtype: Literal["same", "fp32", "fp16", "bf16"] = "same"
    format: Literal["auto", "kohya", "diffusers", "peft"] = "auto"
    skip: tuple[str, ...] = ()
    verify: Literal["factors", "full"] = "factors"


def check_settings(settings: MixSettings) -> None:
    """Refuse settings that contradict each other.

    Args:
        settings: What was asked for.

    Raises:
        StageError: Two bounds at once, a method without what it needs, or a density that nothing uses.
    """
    bounds = {"rank": settings.rank, "energy": settings.energy, "max_error": settings.max_error}
    set_bounds = [name for name, value in bounds.items() if value is not None]
    if len(set_bounds) > 1:
        raise StageError(f"rank, energy and max_error exclude each other (got {' and '.join(set_bounds)})")
    if settings.method == "exact":
        if settings.density is not None:
            raise StageError(
                f"density is for the methods ties, dare and magnitude (got {settings.density:g} with exact)",
                hint="drop it, or choose a method",
            )
        return
    if settings.rank is None:
        raise StageError(
            f"the method {settings.method} needs a rank: it works on the dense change of each module (got no rank)",
            hint="16 to 128 are usual; the error of the cut is reported",
        )
    if settings.density is None:
        raise StageError(
            f"the method {settings.method} needs a density, the share of entries that it keeps (got none)",
            hint="0.2 is the paper's choice for ties, 0.1 for dare",
        )
