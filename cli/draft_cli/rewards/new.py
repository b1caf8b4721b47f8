"""`draft rewards new`: a package to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draft.authoring.scaffold import LICENCE, check_author, check_name, write_package
from draft.files import usable


def new_command(
    name: Annotated[str, typer.Argument(help="What pipelines will call it: lower-case letters, digits and '_'.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Default: draft-reward-NAME.")
    ] = None,
    author: Annotated[
        str, typer.Option("--author", metavar="'NAME <MAIL>'", help="Whose package it is; a placeholder if not given.")
    ] = "",
    url: Annotated[str, typer.Option("--url", metavar="URL", help="Its repository; a placeholder if not given.")] = "",
) -> None:
    """Write a complete package for a reward of your own, which installs and passes its tests unchanged."""
    names, owner = check_name(name), check_author(author, url)
    folder = Path(names.distribution) if output is None else usable(output)
    files = write_package(names, folder, owner)
    typer.echo("\n".join(f"wrote {file}" for file in files))
    if folder / LICENCE not in files:
        typer.echo(f"kept {folder / LICENCE}: pyproject.toml and README.md name MIT; write there which licence it is")
    typer.echo(f"next: pip install -e {folder}, then draft rewards check {name}, and write your score in {files[0]}")
