"""`draft resize FILE -o OUT --rank 8`: an adapter cut to a smaller rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from draft.errors import ConfigError
from draft_cli.convert import Base, check_files, print_conversion
from draft_cli.merge import find_model
from draft_cli.mix import Dtype, Format, mix_settings

Rank = Annotated[int | None, typer.Option("--rank", metavar="N", help="The largest rank of a module.")]
Energy = Annotated[
    float | None, typer.Option("--energy", metavar="SHARE", help="Keep this share of every module's energy.")
]
MaxError = Annotated[
    float | None, typer.Option("--max-error", metavar="ERROR", help="Relative error of all modules together.")
]


def resize(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file, or a peft folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The file to write.")],
    rank: Rank = None,
    energy: Energy = None,
    max_error: MaxError = None,
    format: Format = "auto",
    dtype: Dtype = "same",
    base: Base = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Cut an adapter to a smaller rank, the best there is, with an error that is known before writing."""
    bounds = {"rank": rank, "energy": energy, "max_error": max_error}
    refuse_bounds("draft resize", bounds)
    settings = mix_settings("draft resize", format=format, dtype=dtype, **bounds)
    model = find_model(base, command="draft resize") if base else None
    source, target = check_files(file, output, force=force, format=settings.format)

    from draft.adapters.conversion import resize_file

    conversion = resize_file(
        source,
        target,
        rank=rank,
        energy=energy,
        max_error=max_error,
        format=settings.format,
        dtype=settings.dtype,
        base=model,
        overwrite=force,
    )
    print_conversion(conversion, json=json)


def refuse_bounds(command: str, bounds: Mapping[str, float | None]) -> None:
    """Refuse more than one bound of a cut, or none.

    Args:
        command: The command, for errors.
        bounds: `rank`, `energy` and `max_error`, None where not given.

    Raises:
        ConfigError: Not exactly one is given.
    """
    chosen = [name for name, value in bounds.items() if value is not None]
    if len(chosen) != 1:
        listed = " and ".join(f"--{name.replace('_', '-')}" for name in chosen) or "none"
        raise ConfigError(
            f"give one of --rank, --energy and --max-error (got {listed})",
            where=command,
            hint="--rank 32, or --energy 0.99, which keeps 99% of every module's energy",
        )
