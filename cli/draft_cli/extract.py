"""`draft extract BASE TUNED -o OUT --rank 16`: a LoRA out of two models."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draft.errors import ConfigError
from draft.files import WEIGHTS, usable
from draft.outputs import check_output
from draft_cli.merge import find_model, real_path
from draft_cli.mix import Dtype, Format, mix_settings
from draft_cli.resize import Energy, MaxError, Rank, refuse_bounds

if TYPE_CHECKING:
    from draft.adapters.model.extraction import Extraction

_WHERE = "draft extract"
_SHOWN = 8


def extract(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="A named model, a folder in diffusers' format, a checkpoint, a hub id."),
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The same model, fine-tuned; a folder or a checkpoint.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The file to write.")],
    rank: Rank = None,
    energy: Energy = None,
    max_error: MaxError = None,
    format: Format = "auto",
    dtype: Dtype = "same",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Extract a LoRA from the difference of two models, with a known error; what no LoRA holds is named."""
    bounds = {"rank": rank, "energy": energy, "max_error": max_error}
    refuse_bounds(_WHERE, bounds)
    settings = mix_settings(_WHERE, format=format, dtype=dtype, **bounds)
    before, after = (find_model(name, command=_WHERE) for name in (base, tuned))
    target = usable(output)
    places = {real_path(before), real_path(after)}
    if len(places) == 1:
        raise ConfigError(f"both models are the same (got {str(before)!r} twice)", where=_WHERE)
    if places & {real_path(target), *real_path(target).parents}:
        raise ConfigError("the output is one of the models, or in it", where=str(target), hint="-o OTHER")
    folder = settings.format == "peft" and target.suffix != ".safetensors"
    check_output(target, overwrite=force, folder=folder, holds=(WEIGHTS,))

    from draft.adapters.model.extraction import extract_files

    extraction = extract_files(
        before, after, target, **bounds, format=settings.format, dtype=settings.dtype, overwrite=force
    )
    if json:
        print(json_module.dumps(_as_json(extraction, before, after, target), indent=2))
    else:
        print("\n".join(_lines(extraction, target)))


def _lines(found: Extraction, target: Path) -> Iterator[str]:
    from draft_cli.inspect import histogram, size

    modules = f"{found.modules} module{'' if found.modules == 1 else 's'}"
    yield f"wrote {target}  ({modules}, rank {histogram(found.ranks)}, {'/'.join(found.dtypes)}, {size(found.size)})"
    against = f"against the dense difference; {found.predicted:.3g} before rounding"
    yield f"relative error {found.error:.3g} over all modules, {against}"
    yield f"largest of a module {found.largest:.3g}, {found.worst}"
    if found.unchanged:
        yield f"the same in both models: {found.unchanged} layer{'' if found.unchanged == 1 else 's'}"
    if found.lost:
        yield f"lost, as no LoRA holds them: {len(found.lost)} tensors; relative error with them {found.overall:.3g}"
        for name, each in list(found.lost.items())[:_SHOWN]:
            yield f"  {name}: ||dW|| {each.norm:.3g}, {each.relative:.2%} of ||W||"
        if len(found.lost) > _SHOWN:
            yield f"  and {len(found.lost) - _SHOWN} smaller ones (--json names all)"
    if found.not_compared:
        listed = ", ".join(found.not_compared[:3])
        more = ", ..." if len(found.not_compared) > 3 else ""
        yield f"not compared, as one of the models lacks them: {len(found.not_compared)} tensors ({listed}{more})"


def _as_json(found: Extraction, base: Path, tuned: Path, target: Path) -> dict[str, Any]:
    return {
        "base": str(base),
        "tuned": str(tuned),
        "output": str(target),
        "modules": found.modules,
        "unchanged_layers": found.unchanged,
        "ranks": {str(rank): count for rank, count in found.ranks.items()},
        "dtypes": dict(found.dtypes),
        "bytes": found.size,
        "error": found.error,
        "predicted_error": found.predicted,
        "largest_error": found.largest,
        "worst_module": found.worst,
        "error_with_what_is_lost": found.overall,
        "lost": {name: {"norm": each.norm, "relative": each.relative} for name, each in found.lost.items()},
        "not_compared": list(found.not_compared),
    }
