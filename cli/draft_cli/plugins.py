"""`draft plugins`: every plugin with its package, its hooks and whether it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from draft.errors import PluginError
from draft.rewards.calls import brief
from draft.rewards.contract import plugin_error
from draft.rewards.discovery import EXTENSIONS, REWARDS, Entry, all_entries, disabled_by, reward_entries, spellings
from draft.rewards.extensions import ROWS, rows_of
from draft.rewards.loading import load_rewards, new_manager, register
from draft_cli.rewards.listing import columns


def plugins_command() -> None:
    """Show the installed plugins: status, package, version, hooks. This imports each; exit code 1 if one is broken."""
    spelled = spellings(reward_entries())
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in all_entries(REWARDS) + all_entries(EXTENSIONS):
        groups.setdefault((entry.dist, entry.module, entry.group), []).append(entry)
    rows, broken, notes = [], [], {}
    for (dist, module, _), entries in groups.items():
        hooks, status = inspect_plugin(entries[0])
        names = ", ".join(spelled.get(entry, entry.name) for entry in entries)
        # What a narrow terminal cuts off stands last.
        rows.append((status.partition(":")[0], dist, entries[0].version, names, module, hooks))
        if status.startswith("broken"):
            broken.append(status)
        if cause := disabled_by(dist):
            notes[f"off: {cause} turns off all packages but {_left(cause)}"] = None
    typer.echo(columns([("status", "package", "version", "offers", "module", "hooks"), *rows]))
    for note in [*notes, *broken]:
        typer.echo(f"\n{note}")
    if broken:
        typer.echo(f"\n{len(broken)} of {len(rows)} plugins broken")
        raise typer.Exit(1)


def inspect_plugin(entry: Entry) -> tuple[str, str]:
    """Load one plugin and report the result.

    Args:
        entry: One of its entry points.

    Returns:
        Its hooks, separated by commas, and ``"ok"``, ``"off"`` or ``"broken: why"``.
    """
    if disabled_by(entry.dist):
        return "", "off"
    manager = new_manager()
    try:
        module = register(manager, entry)
        hooks = sorted(caller.name for caller in manager.get_hookcallers(module) or [])
        if entry.group == REWARDS:
            load_rewards(entry)
        for hook, kind in ROWS.items():
            for implementation in getattr(manager.hook, hook).get_hookimpls():
                _call(entry, hook, kind, implementation.function)
    except PluginError as error:
        return "", f"broken: {error}"
    return ", ".join(hooks), "ok"


def _call(entry: Entry, hook: str, kind: Any, function: Callable[[], Any]) -> None:
    try:
        rows_of(hook, kind, function)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a stranger's code may raise anything
        raise plugin_error(entry, f"its hook {hook!r} failed: {brief(error)}", at=error) from error


def _left(cause: str) -> str:
    name, _, chosen = cause.partition("=")
    return f"Draft's own and {chosen}" if name == "DRAFT_PLUGINS" and chosen else "Draft's own"
