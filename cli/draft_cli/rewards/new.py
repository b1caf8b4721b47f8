"""`draft rewards new`: a package to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draft.authoring.scaffold import check_name, write_package
from draft.files import usable


def new_command(
    name: Annotated[str, typer.Argument(help="What pipelines will call it: lower-case letters, digits and '_'.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Default: draft-reward-NAME.")
    ] = None,
) -> None:
    """Write a complete package for a reward of your own, which installs and passes its tests unchanged."""
    names = check_name(name)
    folder = Path(names.distribution) if output is None else usable(output)
    files = write_package(names, folder)
    typer.echo("\n".join(f"wrote {file}" for file in files))
    typer.echo(f"next: pip install -e {folder}, then draft rewards check {name}, and write your score in {files[0]}")
