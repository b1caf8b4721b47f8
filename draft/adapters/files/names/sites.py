"""A module of a transformer under its two names: the original code's, which fuses some layers, and diffusers'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Site:
    """One linear layer of the original code, and the layers of diffusers that hold its rows.

    Args:
        native: Its path in the original code, `#` for the block's number.
        members: diffusers' paths, in the order of the rows.
        inner: Its input, in units of the transformer's width; 0 where the width does not say.
        rows: The rows of each member in the same unit; 0 where the width does not say.
        swapped: Whether the two halves of its rows change places where it has just two widths of them: the original
            code has shift before scale in a last modulation, diffusers scale before shift.
    """

    native: str
    members: tuple[str, ...]
    inner: int = 1
    rows: tuple[int, ...] = (1,)
    swapped: bool = False


@dataclass(frozen=True)
class Plan:
    """The layers of one transformer family, and the sizes that it comes in.

    Args:
        title: Its name in messages.
        architecture: What `modelspec.architecture` begins with in its files.
        sites: Every layer that a LoRA may change.
        widths: Blocks by kind for every width the family was published in.
        marks: Parts of diffusers' paths that no other family here has.
        native: Parts of the original code's names that no other family here has.
    """

    title: str
    architecture: str
    sites: tuple[Site, ...]
    widths: Mapping[int, Mapping[str, int]]
    marks: tuple[str, ...]
    native: tuple[str, ...]
    by_member: Mapping[str, tuple[Site, int]] = field(init=False)

    def __post_init__(self) -> None:
        """Index the sites by member; the first that has a member counts, since later ones are another tool's."""
        by_member: dict[str, tuple[Site, int]] = {}
        for site in self.sites:
            for index, member in enumerate(site.members):
                by_member.setdefault(member, (site, index))
        object.__setattr__(self, "by_member", by_member)
