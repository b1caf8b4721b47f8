"""`draft rewards list` and `show`: what rewards are installed, and all about one of them."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from draft.rewards.describe import facts, headline, options, summary, yaml_example
from draft.rewards.discovery import Entry, reward_entries
from draft.rewards.loading import find_reward
from draft.rewards.reward import Reward
from draft_cli.rewards.options import Name

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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


def show_command(name: Name) -> None:
    """Show one reward: description, source, options with bounds, package, and YAML to paste."""
    reward = find_reward(name)
    entry = next(entry for entry in reward_entries() if name in (entry.name, entry.qualified))
    typer.echo(card(reward, entry))


def card(reward: type[Reward], entry: Entry) -> str:
    """A reward on one page of plain text."""
    kind = "differentiable" if reward.differentiable else "a metric, not differentiable"
    details = (reward.__doc__ or "").strip().partition("\n\n")[2]
    parts = [f"{reward.name}   {entry.source}   {kind}", headline(reward)]
    if details:
        parts.append(inspect.cleandoc("\n" + details))
    if entries := facts(reward):
        parts.append("\n".join(f"{name}: {text}" for name, text in entries))
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
