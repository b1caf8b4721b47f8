"""`draft rewards check`: whether a reward keeps its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draft.authoring.stand_in import choose_reward, offering_stand_in
from draft.rewards.calls import load_reward
from draft.rewards.parts import called
from draft_cli.rewards.options import AUTO, Name, Python, Set, Settings, StandIn, parse_settings


def check_command(
    name: Name,
    words: Settings = None,
    settings: Set = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts, with the columns that options name.")
    ] = None,
    device: Annotated[str, typer.Option(help=f"Where to load it: {AUTO}")] = "cpu",
    stand_in: StandIn = False,
    python: Python = "",
) -> None:
    """Run the conformance kit over one reward; exit code 1 if it breaks its contract."""
    reward = choose_reward(name, parse_settings([*(words or []), *(settings or [])]), stand_in=stand_in, python=python)
    from draft.prompts import load_prompts
    from draft.testing import PROMPTS, run_checks, table

    # Three images are enough to tell, and each check makes one for every prompt.
    texts = PROMPTS if prompts is None else load_prompts(prompts, where="command line, --prompts")[:3]
    from draft.diffusion.device import choose_device

    chosen = choose_device(device)
    with offering_stand_in(reward):
        # Weights that are missing are one error, not the failure of every check.
        load_reward(reward, chosen, called(name, reward))
    results = run_checks(reward, prompts=texts, device=str(chosen))
    typer.echo(table(results))
    bad = sum(not result.good for result in results)
    typer.echo(f"{name}: {'keeps its contract' if not bad else f'breaks {bad} of {len(results)} checks'}")
    if bad:
        raise typer.Exit(1)
