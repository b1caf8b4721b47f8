"""What is installed, read from package metadata alone: nothing in here imports a plugin."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

REWARDS = "draft"
"""The entry-point group of rewards: name = the reward's name, value = the module with `draft_rewards`."""
EXTENSIONS = "draft.extensions"
"""The entry-point group of what a run needs besides rewards: named models and observers."""
DISTRIBUTION = "draft-diffusion"
"""Draft's own distribution, which no environment variable turns off."""


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
    values = os.environ if environment is None else environment
    if _canonical(dist) == DISTRIBUTION:
        return True
    if values.get("DRAFT_DISABLE_PLUGINS", "0") not in ("", "0"):
        return False
    chosen = values.get("DRAFT_PLUGINS")
    return chosen is None or _canonical(dist) in {_canonical(name) for name in chosen.split(",")}


def reward_entries() -> list[Entry]:
    """The rewards that are installed and not turned off, from metadata only, sorted by name."""
    return entries(REWARDS)


def _canonical(dist: str) -> str:
    # Names of distributions compare as in the packaging specification (PEP 503).
    return re.sub(r"[-_.]+", "-", dist.strip()).lower()
