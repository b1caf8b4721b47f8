"""`draft models`: the models that pipelines may name."""

from __future__ import annotations

from pathlib import Path

import typer

from draft.rewards.extensions import named_models


def models_command() -> None:
    """Show the named models: kind, licence, size on disk, what they are, what was measured of them, folder."""
    for name, model in named_models().items():
        size = "made when first used" if model.derive and not model.path.exists() else size_on_disk(model.path)
        typer.echo(f"{name}  ({model.kind}, {size}, {model.licence or 'licence unknown'})")
        for line in (model.description, model.figures, str(model.path)):
            if line:
                typer.echo(f"  {line}")


def size_on_disk(path: Path) -> str:
    """The size of a file, or of all files under a folder, in MB (1 MB = 1000 kB); ``"missing"`` if there is none."""
    if not path.exists():
        return "missing"
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
