"""`draft rewards`: what rewards are installed, what they want, and whether they keep their contract."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import yaml

from draft.errors import ConfigError
from draft.registry.describe import headline, options, summary, yaml_example
from draft.registry.discovery import Entry, reward_entries
from draft.registry.loading import find_reward
from draft.registry.reward import Reward
from draft.registry.terms import build_reward

app = typer.Typer(
    help="List, show and check rewards.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Name = Annotated[str, typer.Argument(help="The reward's name, or distribution:name.")]


@app.callback()
def rewards_command(context: typer.Context) -> None:
    """List, show and check rewards; alone, it lists them."""
    if context.invoked_subcommand is None:
        list_command(as_json=False)


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """List the installed rewards, from package metadata alone: no plugin is imported."""
    entries = reward_entries()
    if as_json:
        rows = [
            {"name": e.name, "package": e.dist, "version": e.version, "module": e.module, "summary": summary(e)}
            for e in entries
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    counted = [entry.name for entry in entries]
    rows = [(_shown(entry, counted), entry.source, summary(entry)) for entry in entries]
    typer.echo(columns([("reward", "package", "what it scores"), *rows]))


@app.command("show")
def show_command(name: Name) -> None:
    """Show one reward: description, source, options with bounds, package, and YAML to paste."""
    reward = find_reward(name)
    entry = next(entry for entry in reward_entries() if name in (entry.name, entry.qualified))
    typer.echo(card(reward, entry))


@app.command("check")
def check_command(
    name: Name,
    settings: Annotated[list[str] | None, typer.Argument(help="Options as key=value, e.g. quality=80.")] = None,
    device: Annotated[str, typer.Option(help="Where to load it.")] = "cpu",
) -> None:
    """Run the conformance kit over one reward; exit code 1 if it breaks its contract."""
    reward = build_reward(name, parse_settings(settings or []), where=name)
    from draft.testing import run_checks, table

    results = run_checks(reward, device=device)
    typer.echo(table(results))
    bad = sum(not result.good for result in results)
    typer.echo(f"{name}: {'keeps its contract' if not bad else f'breaks {bad} of {len(results)} checks'}")
    if bad:
        raise typer.Exit(1)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Options from ``key=value`` words, the values as YAML.

    Args:
        settings: Words such as ``"quality=80"``.

    Returns:
        Name to value.

    Raises:
        ConfigError: A word has no ``=``, or its value is not YAML.
    """
    parsed = {}
    for word in settings:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ConfigError(f"must be key=value (got {word!r})", where="command line")
        try:
            parsed[key] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"the value is not YAML (got {value!r})", where=f"command line, {word!r}") from error
    return parsed


def card(reward: type[Reward], entry: Entry) -> str:
    """A reward on one page of plain text."""
    kind = "differentiable" if reward.differentiable else "a metric, not differentiable"
    rest = (reward.__doc__ or "").strip().partition("\n\n")[2]
    parts = [f"{reward.name}   {entry.source}   {kind}", headline(reward)]
    if rest:
        parts.append(inspect.cleandoc("\n" + rest))
    if reward.cite:
        parts.append(f"source: {reward.cite}")
    if listed := options(reward):
        rows = [(o.name, o.type, o.default, o.bounds, o.description) for o in listed]
        parts.append(columns([("option", "type", "default", "bounds", "meaning"), *rows]))
    parts.append(f"in a pipeline:\n\n{_indent(yaml_example(reward))}")
    return "\n\n".join(parts)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, the first one a heading; a terminal gets lines no longer than it is wide."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if sys.stdout.isatty():
        limit = shutil.get_terminal_size().columns
        lines = [line if len(line) <= limit else f"{line[: limit - 1]}…" for line in lines]
    return "\n".join(lines)


def _shown(entry: Entry, names: Sequence[str]) -> str:
    return entry.name if names.count(entry.name) == 1 else entry.qualified


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
