"""`draft cache`: what is kept on disk because it can be made again, how large it may grow, and clearing it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from draft.files import cache_folder
from draft.shelves import cache_limit, drop, shelves

app = typer.Typer(
    help="Show or clear what Draft keeps on disk to save time.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def cache(context: typer.Context) -> None:
    """Show the cache of prompt embeddings: folder, size, limit, and what is in it, the last used first."""
    if context.invoked_subcommand is None:
        stored = shelves()
        size = sum(shelf.size for shelf in stored)
        typer.echo(f"{cache_folder()}: {_megabytes(size)} of prompt embeddings, at most {_megabytes(cache_limit())}")
        typer.echo("(DRAFT_CACHE names another folder, DRAFT_CACHE_LIMIT another limit in GB)")
        for shelf in stored:
            used = datetime.fromtimestamp(shelf.used, UTC).strftime("%Y-%m-%d %H:%M")
            about = shelf.about
            words = ", ".join(about[key] for key in ("family", "precision", "device", "size") if key in about)
            typer.echo(f"  {shelf.rows} prompts, {_megabytes(shelf.size)}, used {used} UTC: {words}")


@app.command("clear")
def clear(
    days: Annotated[float, typer.Option(min=0, help="Only what was not used for so many days.")] = 0.0,
) -> None:
    """Delete cached prompt embeddings; they are made again when they are needed."""
    now = datetime.now(UTC).timestamp()
    old = [shelf for shelf in shelves() if now - shelf.used >= days * 86400]
    for shelf in old:
        drop(shelf.folder)
    size = sum(shelf.size for shelf in old)
    typer.echo(f"deleted {sum(shelf.rows for shelf in old)} embeddings, {_megabytes(size)}")


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
