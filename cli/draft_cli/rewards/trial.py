"""`draft rewards try`: what a reward wants, before a GPU is spent on it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draft.authoring.stand_in import choose_reward
from draft.errors import ConfigError
from draft.files import usable
from draft_cli.rewards.listing import columns
from draft_cli.rewards.options import AUTO, Force, Name, Python, Set, Settings, StandIn, check_output, parse_settings

if TYPE_CHECKING:
    from draft.authoring.ascent import Frame


class On(StrEnum):
    """What is changed."""

    PIXELS = "pixels"
    LATENTS = "latents"
    BOTH = "both"


class Start(StrEnum):
    """What it starts from."""

    MODEL = "model"
    NOISE = "noise"


def try_command(
    name: Name,
    words: Settings = None,
    settings: Set = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What is drawn first; again for more pictures.")
    ] = None,
    on: Annotated[On, typer.Option("--on", help="What is changed.")] = On.BOTH,
    start: Annotated[Start, typer.Option("--start", help="A picture that the model draws, or noise.")] = Start.MODEL,
    seconds: Annotated[float | None, typer.Option("--seconds", help="For all of it; 20 if nothing is said.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Instead of seconds: steps on each way.")] = None,
    less: Annotated[bool, typer.Option("--less", help="Climb down, as a negative weight does.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the first picture.")] = 0,
    model: Annotated[str, typer.Option("--model", help="What draws and decodes.")] = "emoji",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: NAME_try.png.")
    ] = None,
    device: Annotated[str, typer.Option(help=f"Where to run: {AUTO}")] = "auto",
    stand_in: StandIn = False,
    python: Python = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    force: Force = False,
) -> None:
    """See what a reward wants: climb it with a picture's pixels and with a model's latent, and draw a strip of both."""
    reward = choose_reward(name, parse_settings([*(words or []), *(settings or [])]), stand_in=stand_in, python=python)
    file = Path(f"{reward.name}_try.png") if output is None else usable(output)
    check_output(file, force=force)
    if file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"the strip must be a picture such as .png (got {str(file)!r})", where="command line")
    if not prompt:
        raise ConfigError("no prompt to start from", where="command line", hint='--prompt "a cat on a blue background"')
    if seconds is not None and steps is not None:
        raise ConfigError("a trial takes --seconds or --steps, not both", where="command line")
    from draft.authoring.ascent import Budget
    from draft.authoring.frames import draw_frames, json_text
    from draft.authoring.trial import TrialSettings, Way, pictured, try_reward
    from draft.progress import Silent, progress

    ways: tuple[Way, ...] = ("pixels", "latents") if on is On.BOTH else (on.value,)
    chosen = TrialSettings(
        ways=ways,
        start=start.value,
        budget=Budget(steps, 20.0 if seconds is None else seconds),
        less=less,
        seed=seed,
        model=model,
        device=device,
    )
    reporter = progress(sys.stderr) if sys.stderr.isatty() else Silent()
    prompts = pictured(reward, prompt)
    frames_by_way = try_reward(reward, prompts, chosen, reporter)
    options = " ".join(f"{key}={value}" for key, value in reward.model_dump(mode="json", exclude_defaults=True).items())
    title = f"{reward.name} {options}{' (less)' if less else ''}".replace("  ", " ")
    draw_frames(title, prompts, frames_by_way).save(file)
    if as_json:
        typer.echo(json_text(reward, prompts, frames_by_way), nl=False)
        typer.echo(f"wrote {file}", err=True)
    else:
        rows = [row for way, frames in frames_by_way.items() for row in _rows(way, frames)]
        typer.echo(columns([("on", "step", "score", "change"), *rows]))
        typer.echo(f"wrote {file}")


def _rows(way: str, frames: Sequence[Frame]) -> list[tuple[str, str, str, str]]:
    from draft.authoring.frames import change

    return [
        (
            way,
            str(frame.step),
            " ".join(f"{score:.4g}" for score in frame.scores),
            " ".join(f"{levels:.1f}" for levels in change(frame, frames[0])),
        )
        for frame in frames
    ]
