"""`draft plugins`: every plugin with its package, its hooks and whether it works."""

from __future__ import annotations

import typer

from draft.errors import PluginError
from draft.rewards.discovery import EXTENSIONS, REWARDS, Entry, all_entries, enabled
from draft.rewards.loading import load_rewards, new_manager, register
from draft_cli.rewards.listing import columns


def plugins_command() -> None:
    """Show the installed plugins: package, version, hooks and status. This imports each of them."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in all_entries(REWARDS) + all_entries(EXTENSIONS):
        groups.setdefault((entry.dist, entry.module, entry.group), []).append(entry)
    rows, notes = [], []
    for (dist, module, _), entries in groups.items():
        hooks, status = inspect_plugin(entries[0])
        names = ", ".join(entry.name for entry in entries)
        rows.append((dist, entries[0].version, module, names, hooks, status.partition(":")[0]))
        if status.startswith("broken"):
            notes.append(status)
    typer.echo(columns([("package", "version", "module", "offers", "hooks", "status"), *rows]))
    for note in notes:
        typer.echo(f"\n{note}")


def inspect_plugin(entry: Entry) -> tuple[str, str]:
    """Load one plugin and report the result.

    Args:
        entry: One of its entry points.

    Returns:
        Its hooks, separated by commas, and ``"ok"``, ``"off"`` or ``"broken: why"``.
    """
    if not enabled(entry.dist):
        return "", "off"
    manager = new_manager()
    try:
        module = register(manager, entry)
        hooks = sorted(caller.name for caller in manager.get_hookcallers(module) or [])
        if entry.group == REWARDS:
            load_rewards(entry)
    except PluginError as error:
        return "", f"broken: {error}"
    return ", ".join(hooks), "ok"
