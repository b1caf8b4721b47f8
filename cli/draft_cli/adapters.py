"""`draft mix` as the command line offers it; the work is `draft_cli.mix`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draft_cli.mix import mix_command


def mix(
    inputs: Annotated[
        list[str], typer.Argument(metavar="FILE[:WEIGHT]...", help="Adapters with weights, e.g. a.safetensors:0.7.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: named after the inputs.")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="Keys: auto, kohya, diffusers or peft.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Mix adapters, each with a weight, into one exact adapter."""
    mix_command(inputs, output=output, format=format, force=force, json=json)
