"""What `isolated` of a reward term says. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from annotated_types import Gt, MinLen

Words: TypeAlias = Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """Run a reward in an environment and a process of its own.

    Args:
        python: The Python of an environment that has Draft, PyTorch and the reward: a path, or the environment's
            folder, relative to the pipeline's folder.
        requirements: Instead of `python`, what pip installs into an environment that Draft creates and keeps: a list in
            pip's format, or a requirements file; paths are relative to the pipeline's folder.
        timeout: Longest time that scoring one batch may take, in seconds.
        load_timeout: Longest time until the reward is loaded, downloads of its weights included, in seconds.
    """

    __pydantic_config__ = {"extra": "forbid"}
    python: Words | None = None
    requirements: Annotated[tuple[Words, ...], MinLen(1)] | Words | None = None
    timeout: Annotated[float, Gt(0)] = 300
    load_timeout: Annotated[float, Gt(0)] = 1800
