"""`draft rewards list` and `show`: what rewards are installed, and all about one of them."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from draft.authoring.stand_in import choose_class
from draft.isolation.reward import IsolatedReward
from draft.rewards.describe import facts, headline, options, summary, yaml_example
from draft.rewards.discovery import reward_entries, spellings
from draft.rewards.loading import find_entry
from draft.rewards.reward import Reward
from draft_cli.rewards.options import Name, Python

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def list_command(as_json: Json = False) -> None:
    """List the installed rewards, from package metadata alone: no plugin is imported."""
    spelled = spellings(reward_entries())
    if as_json:
        rows = [
            {
                "name": e.name,
                "use": name,
                "package": e.dist,
                "version": e.version,
                "module": e.module,
                "summary": summary(e),
            }
            for e, name in spelled.items()
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    rows = [(name, entry.source, summary(entry)) for entry, name in spelled.items()]
    typer.echo(columns([("reward", "package", "what it scores"), *rows]))


def show_command(name: Name, python: Python = "") -> None:
    """Show one reward: description, source, options with bounds, package, and YAML to paste."""
    reward = choose_class(name, python=python)
    terms = {"use": json.dumps(name)} if name != reward.name else {}
    if issubclass(reward, IsolatedReward):
        terms["isolated"] = f"{{python: {json.dumps(str(reward.isolated.python))}}}"
        typer.echo(card(reward, reward.isolated.package, terms))
    else:
        typer.echo(card(reward, find_entry(name).source, terms))


def card(reward: type[Reward], source: str, terms: Mapping[str, str]) -> str:
    """A reward on one page of plain text; `terms` are what a pipeline has to write besides its options."""
    kind = "differentiable" if reward.differentiable else "a metric, not differentiable"
    details = (reward.__doc__ or "").strip().partition("\n\n")[2]
    parts = [f"{reward.name}   {source}   {kind}", headline(reward)]
    if details:
        parts.append(inspect.cleandoc("\n" + details))
    if entries := facts(reward):
        parts.append("\n".join(f"{name}: {text}" for name, text in entries))
    if listed := options(reward):
        rows = [(o.name, o.type, o.default, o.bounds, o.description) for o in listed]
        parts.append(columns([("option", "type", "default", "bounds", "meaning"), *rows]))
    parts.append(f"in a pipeline:\n\n{_indent(yaml_example(reward, terms))}")
    return "\n\n".join(parts)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, the first one a heading; a terminal gets lines no longer than it is wide."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if sys.stdout.isatty():
        limit = shutil.get_terminal_size().columns
        lines = [line if len(line) <= limit else f"{line[: limit - 1]}…" for line in lines]
    return "\n".join(lines)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
