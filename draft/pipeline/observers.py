"""The plugins that watch a run: the hooks `draft_stage_started` and `draft_stage_finished`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draft.progress import Progress
from draft.rewards.calls import brief, calling
from draft.rewards.extensions import extensions, hooked


class Observers:
    """The observers of a run; one that fails gives a warning and the run continues, since hours of work depend on it.

    Args:
        reporter: Who hears about a failing observer.
    """

    def __init__(self, reporter: Progress) -> None:
        self._manager = extensions()
        self._reporter = reporter

    def started(self, stage: str, folder: Path) -> None:
        """Tell that a stage begins to run."""
        self._call("draft_stage_started", stage=stage, folder=folder)

    def finished(self, stage: str, outputs: Mapping[str, Path], metrics: Mapping[str, float]) -> None:
        """Tell that a stage has finished and its folder has its name."""
        self._call("draft_stage_finished", stage=stage, outputs=outputs, metrics=metrics)

    def _call(self, hook: str, **values: Any) -> None:
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                with calling(hooked(implementation), f"answering the hook {hook!r}", passing=BaseException):
                    implementation.function(*(values[name] for name in implementation.argnames))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                who = implementation.plugin_name.partition(":")[0]
                self._reporter.say(f"warning: plugin {who}: {hook} failed: {brief(error)}")
