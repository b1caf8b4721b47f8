"""`draft run`, `draft check` and `draft schema`: the commands about pipeline files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draft_cli.console import rows

File = Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or the name of a shipped one: quickstart.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes, e.g. stages.train.max_steps=20.")
]
Rehearse = Annotated[
    bool, typer.Option("--rehearse", help="Small and offline: stand-ins replace models, sizes and steps.")
]


Trust = Annotated[
    bool, typer.Option("--trust", help="Allow what the file's `isolated` runs and installs, and remember that.")
]


def run_command(
    file: File,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and why; write nothing.")] = False,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and all after it again.")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what could be reused.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete interrupted runs instead of resuming.")] = False,
    branch_from: Annotated[
        str | None,
        typer.Option(
            "--branch-from", metavar="[STAGE:]UPDATE", help="Begin a training at its checkpoint after an update."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all finished results and compare their sha256 before reusing them.")
    ] = False,
    rehearse: Rehearse = False,
    trust: Trust = False,
    runs_dir: Annotated[Path, typer.Option("--runs-dir", metavar="FOLDER", help="Where results go.")] = Path("runs"),
) -> None:
    """Run a pipeline: reuse what still holds, run the rest, resume what was interrupted."""
    from draft.pipeline.run import run_pipeline
    from draft.progress import progress

    result = run_pipeline(
        file,
        overrides or [],
        runs_dir=runs_dir,
        dry_run=dry_run,
        from_stage=from_stage,
        only=only,
        force=force,
        fresh=fresh,
        branch_from=branch_from,
        rehearse=rehearse,
        trust=trust,
        verify=verify,
        progress=progress(),
    )
    listed = [(f"{stage.name}.{name}", str(path)) for stage in result.stages for name, path in stage.outputs.items()]
    if listed:
        typer.echo(f"results in {result.folder}:\n{rows(listed)}")


def check_command(file: File, overrides: Overrides = None, rehearse: Rehearse = False, trust: Trust = False) -> None:
    """Check a pipeline file without running it: all errors at once, each with its line."""
    from draft.pipeline.allowed import load_allowed
    from draft.pipeline.isolated import unchecked
    from draft.pipeline.load import load_pipeline
    from draft.pipeline.models import missing_weights
    from draft.pipeline.rehearsal import listing
    from draft.progress import progress

    if trust:
        pipeline = load_allowed(file, overrides or [], progress(), rehearse=rehearse, trust=True, build=False)
    else:
        pipeline = load_pipeline(file, overrides or [], rehearse=rehearse)
    if pipeline.replacements:
        typer.echo(listing(pipeline.replacements))
    for line in (*unchecked(pipeline.terms), *missing_weights(pipeline.stages.values())):
        typer.echo(line)
    count = len(pipeline.stages)
    names = ", ".join(f"{name} ({stage.config.kind})" for name, stage in pipeline.stages.items())
    typer.echo(f"ok: {count} stage{'s' if count > 1 else ''}: {names}")


def schema_command(
    table: Annotated[bool, typer.Option("--table", help="Print the keys as Markdown tables instead.")] = False,
) -> None:
    """Print the JSON Schema of pipeline files, for editors."""
    import json

    from draft.pipeline.describe import json_schema, key_tables

    typer.echo(key_tables().rstrip() if table else json.dumps(json_schema(), indent=2))
