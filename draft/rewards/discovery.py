"""What is installed, read from package metadata alone: nothing in here imports a plugin."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from draft.requirements import DISTRIBUTION

REWARDS = "draft"
"""The entry-point group of rewards: name = the reward's name, value = the module with `draft_rewards`."""
EXTENSIONS = "draft.extensions"
"""The entry-point group of what a run needs besides rewards: named models and observers."""


@dataclass(frozen=True, order=True)
class Entry:
    """One entry point of a plugin.

    Args:
        name: The entry point's name; in the group `draft` it is the reward's name.
        dist: The distribution that offers it, as written in its metadata.
        version: That distribution's version.
        module: The module it points at.
        group: The entry-point group.
    """

    name: str
    dist: str
    version: str
    module: str
    group: str = REWARDS

    @property
    def qualified(self) -> str:
        """The name that stays unique when two distributions use the same one: ``"dist:name"``."""
        return f"{self.dist}:{self.name}"

    @property
    def canonical(self) -> str:
        """The distribution's name as names of distributions compare, however its metadata writes it."""
        return _canonical(self.dist)

    @property
    def source(self) -> str:
        """Whom to blame: distribution and version."""
        return f"{self.dist} {self.version}"


def entries(group: str, environment: Mapping[str, str] | None = None) -> list[Entry]:
    """The entry points of a group whose distributions are not turned off, sorted by name.

    Args:
        group: `REWARDS` or `EXTENSIONS`.
        environment: Where ``DRAFT_DISABLE_PLUGINS`` (non-empty and not ``0``: only Draft's own) and
            ``DRAFT_PLUGINS`` (only these distributions besides Draft's own, separated by commas) are read;
            None: the process's environment.

    Returns:
        One `Entry` for each entry point.
    """
    return [entry for entry in all_entries(group) if enabled(entry.dist, environment)]


def all_entries(group: str) -> list[Entry]:
    """All entry points of a group, those of distributions that are turned off too, sorted by name."""
    entries = set()
    for point in metadata.entry_points(group=group):
        dist, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "?")
        entries.add(Entry(point.name, dist, version, point.value, group))
    return sorted(entries)


def enabled(dist: str, environment: Mapping[str, str] | None = None) -> bool:
    """Whether a distribution's plugins may be loaded; see `entries` for the two environment variables."""
    return not disabled_by(dist, environment)


def disabled_by(dist: str, environment: Mapping[str, str] | None = None) -> str:
    """The environment variable that turns a distribution's plugins off, as it is set; empty if none does.

    Args:
        dist: The distribution's name.
        environment: Where the variables are read; None: the process's environment.

    Returns:
        For example ``"DRAFT_DISABLE_PLUGINS=1"``.
    """
    values = os.environ if environment is None else environment
    if built_in(dist):
        return ""
    if (switch := values.get("DRAFT_DISABLE_PLUGINS", "0")) not in ("", "0"):
        return f"DRAFT_DISABLE_PLUGINS={switch}"
    chosen = values.get("DRAFT_PLUGINS")
    if chosen is None or _canonical(dist) in {_canonical(name) for name in chosen.split(",")}:
        return ""
    return f"DRAFT_PLUGINS={chosen}"


def turned_off(group: str, name: str = "") -> str:
    """Why a name may be missing: the packages that an environment variable turns off.

    Args:
        group: `REWARDS` or `EXTENSIONS`.
        name: Only packages with an entry point of this name, or ``"distribution:name"``; empty: all of them.

    Returns:
        A hint such as ``"DRAFT_DISABLE_PLUGINS=1 turns off draft-a 1.2, which offers it"``; empty where nothing is.
    """
    found = [entry for entry in all_entries(group) if not name or name in (entry.name, entry.qualified)]
    off = {entry.source: cause for entry in found if (cause := disabled_by(entry.dist))}
    if not off:
        return ""
    packages, cause = ", ".join(off), next(iter(off.values()))
    if not name:
        return f"{cause} turns off {packages}, which may offer it"
    return f"{cause} turns off {packages}, which {'offers' if len(off) == 1 else 'offer'} it"


def built_in(dist: str) -> bool:
    """Whether a distribution is Draft's own."""
    return _canonical(dist) == DISTRIBUTION


def choose(named: Sequence[Entry], name: str) -> list[Entry]:
    """The entry points that a name means: a built-in one keeps its plain name, whoever else uses it.

    Args:
        named: Entry points.
        name: A plain name, or ``"distribution:name"``.

    Returns:
        One; none where nothing has the name; several where packages share it and none of them is Draft's own.
    """
    found = [entry for entry in named if name in (entry.name, entry.qualified)]
    own = [entry for entry in found if built_in(entry.dist)]
    return own or found


def spellings(named: Sequence[Entry]) -> dict[Entry, str]:
    """The shortest name that means each entry point: its plain one, or ``"distribution:name"`` where that is another's.

    Args:
        named: Entry points.

    Returns:
        Entry point to name.
    """
    return {entry: entry.name if choose(named, entry.name) == [entry] else entry.qualified for entry in named}


def reward_entries() -> list[Entry]:
    """The rewards that are installed and not turned off, from metadata only, sorted by name."""
    return entries(REWARDS)


def _canonical(dist: str) -> str:
    # Names of distributions compare as in the packaging specification (PEP 503).
    return re.sub(r"[-_.]+", "-", dist.strip()).lower()
