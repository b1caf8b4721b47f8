"""Pipelines that name code to run: loaded without running it, and again once the user has allowed it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from draft.isolation.consent import allow
from draft.pipeline.check import Pipeline
from draft.pipeline.isolated import build_missing, isolations
from draft.pipeline.load import load_pipeline
from draft.progress import Progress


def load_allowed(
    file: str | Path,
    overrides: Sequence[str],
    progress: Progress,
    *,
    rehearse: bool = False,
    trust: bool = False,
    needed: bool = True,
    build: bool = True,
) -> Pipeline:
    """Load a pipeline, and ask the environments of its isolated rewards as far as the user has allowed it.

    Args:
        file: A pipeline file.
        overrides: Changes as full dotted keys.
        progress: Told what is allowed and what is made.
        rehearse: Whether to load the small version of it.
        trust: Allow all that the file names now, and remember that.
        needed: Whether everything must be allowed.
        build: Whether to make the environments that are still to be made.

    Returns:
        The pipeline; terms whose environment was not asked have an `UnbuiltReward`.

    Raises:
        ConfigError: Something is wrong with the file.
        ConsentError: What must be allowed is not.
    """
    pipeline = load_pipeline(file, overrides, rehearse=rehearse)
    named = isolations(pipeline.terms)
    if not named:
        return pipeline
    if needed or trust:
        allow(named, trust=trust, say=progress.say)
    if build:
        build_missing(pipeline.terms, progress)
    return load_pipeline(file, overrides, rehearse=rehearse, ask=True)
