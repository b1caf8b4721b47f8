"""`draft mix` as the command line offers it; the work is `draft_cli.mix`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draft.errors import ConfigError
from draft_cli.mix import mix_command, output_name, parse_input
from draft_cli.sweep import plan_sweep, write_sweep


def mix(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:WEIGHT]...",
            help="Adapters with weights, e.g. a.safetensors:0.7; or hf://org/repo/file.safetensors@revision:0.7.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: named after the inputs.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", help="Cut every module to the best of this rank.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", metavar="E", help="Keep this share of every module's squared singular values."),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", metavar="X", help="The smallest ranks with this relative error of the whole."),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="PATTERN=FACTOR", help="Weigh a part, e.g. text_encoder=0 to drop it."),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option("--block", metavar="PATTERN=FACTOR", help="Weigh modules by their path, e.g. 'up_blocks.*=0.5'."),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Divide the weights by their sum.")] = False,
    method: Annotated[
        str,
        typer.Option("--method", metavar="METHOD", help="exact, or ties, dare, magnitude (with --rank, --density)."),
    ] = "exact",
    density: Annotated[
        float | None, typer.Option("--density", metavar="D", help="Share of entries that the other methods keep.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Of the method dare.")] = 0,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="Of the factors: same, fp32, fp16 or bf16.")
    ] = "same",
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="Keys: auto, kohya, diffusers or peft.")
    ] = "auto",
    verify: Annotated[
        str, typer.Option("--verify", metavar="HOW", help="Read back: factors, or full (by diffusers' reader too).")
    ] = "factors",
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep", metavar="A:B:N", help="Draw the mix at N strengths from A to B, with --model, --prompt."
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "--base", metavar="MODEL", help="What --sweep draws with.")] = "",
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What --sweep draws; again for more.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come out; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Mix adapters, each with a weight, into one exact adapter."""
    target, stage = output, None
    if sweep is not None and inputs:
        terms = [parse_input(text) for text in inputs]
        target = output or Path(output_name(terms))
        paths = [path for path, _ in terms]
        stage = plan_sweep(
            sweep, model=model, prompts=prompt or [], inputs=paths, target=target, force=force, dry_run=dry_run
        )
    elif model or prompt:
        raise ConfigError("--model and --prompt are for --sweep", where="draft mix", hint="add --sweep 0:1:5")
    mix_command(
        inputs,
        output=output,
        rank=rank,
        energy=energy,
        max_error=max_error,
        component=component or [],
        block=block or [],
        normalize=normalize,
        method=method,
        density=density,
        seed=seed,
        dtype=dtype,
        format=format,
        verify=verify,
        dry_run=dry_run,
        force=force,
        json=json,
    )
    if stage is not None and target is not None:
        write_sweep(stage, target.expanduser(), force=force, quiet=json)
