"""What of an adapter file was left out because it cannot be read. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skipped:
    """A tensor that was left out because it cannot be read.

    Args:
        tensor: Its name in the file.
        reason: Why it cannot be read, or whose module cannot.
        pattern: What was given to leave it out.
    """

    tensor: str
    reason: str
    pattern: str
