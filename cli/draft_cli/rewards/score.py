"""`draft rewards score`: a reward's scores of image files."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draft.authoring.stand_in import choose_reward
from draft_cli.rewards.listing import columns
from draft_cli.rewards.options import AUTO, Force, Name, Python, Set, StandIn, check_output, parse_settings

if TYPE_CHECKING:
    from draft.authoring.scores import ScoredPicture


def score_command(
    name: Name,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Files, folders, and patterns such as 'runs/**/*.png'.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="One for all images, or again for each.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="Prompts by order, or by the column 'file' if there is one."),
    ] = None,
    settings: Set = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Most images scored at once.")] = 8,
    device: Annotated[str, typer.Option(help=f"Where to score: {AUTO}")] = "auto",
    stand_in: StandIn = False,
    python: Python = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the reward's options.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a table, with the reward's options.")
    ] = None,
    force: Force = False,
) -> None:
    """Score images: a table on a terminal, one line 'score<TAB>file<TAB>prompt' for each image elsewhere."""
    reward = choose_reward(name, parse_settings(settings or []), stand_in=stand_in, python=python)
    if csv is not None:
        check_output(csv, force=force)
    from draft.progress import Silent, progress

    # Results alone go to standard output; whoever reads them there sees how far it is.
    reporter = progress(sys.stderr) if sys.stderr.isatty() else Silent()
    from draft.authoring.pictures import find_pictures
    from draft.authoring.scores import csv_text, json_text, match_prompts, score_pictures
    from draft.diffusion.device import choose_device

    files = find_pictures(images)
    matched = match_prompts(files, prompt or [], prompts)
    rows = score_pictures(
        reward, files, matched, device=choose_device(device), batch_size=batch_size, progress=reporter
    )
    if csv is not None:
        csv.write_text(csv_text(reward, rows), encoding="utf-8", newline="")
        typer.echo(f"wrote {csv}: {len(rows)} scores, mean {_mean(rows)}", err=as_json)
    if as_json:
        typer.echo(json_text(reward, rows), nl=False)
    elif csv is None:
        typer.echo(_table(rows) if sys.stdout.isatty() else _lines(rows))


def _table(rows: Sequence[ScoredPicture]) -> str:
    # Long paths and prompts give way to the score, which is what somebody looks for.
    room = max(10, (shutil.get_terminal_size().columns - 14) // 2)
    cells = [(f"{row.score:.4g}", _tail(str(row.file), room), _flat(row.prompt)) for row in rows]
    listed = columns([("score", "image", "prompt"), *cells])
    return f"{listed}\nmean {_mean(rows)} of {len(rows)}" if len(rows) > 1 else listed


def _lines(rows: Sequence[ScoredPicture]) -> str:
    return "\n".join(f"{row.score:.6g}\t{row.file}\t{_flat(row.prompt)}".rstrip("\t") for row in rows)


def _mean(rows: Sequence[ScoredPicture]) -> str:
    return f"{statistics.fmean(row.score for row in rows):.4g}"


def _tail(text: str, room: int) -> str:
    return text if len(text) <= room else f"…{text[1 - room :]}"


def _flat(prompt: str | None) -> str:
    return " ".join((prompt or "").split())
