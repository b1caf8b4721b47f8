"""The hooks a plugin may implement; each docstring is its contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from draft.family import Family
    from draft.rewards.reward import Reward

hookspec = pluggy.HookspecMarker("draft")
hookimpl = pluggy.HookimplMarker("draft")


@dataclass(frozen=True)
class NamedModel:
    """A model on this machine that pipelines may name instead of giving a folder or a hub id.

    Args:
        name: What users write, e.g. ``"emoji"`` or ``"emoji/clip"``.
        path: The folder, in its library's own format. Of a model with `derive` it may be relative, to a folder in
            Draft's cache; its last part must change whenever what is made there would change, as it stands for the
            model in fingerprints.
        kind: What it is: ``"text-to-image"``, ``"clip"``, ``"image-classifier"``, ...
        description: One sentence.
        licence: The weights' licence, an SPDX id where there is one.
        figures: What was measured of it, in a few words.
        sha256: File, relative to `path`, to the digest it must have; a missing or damaged one is an error before
            anything is loaded. Empty: nothing is checked.
        remark: Given all prompts of a stage, what to warn about, e.g. of words the model does not know; empty text
            for nothing. None: no remarks.
        derive: Writes the model's files into the empty folder it is given, from what else is on this machine. It is
            called once, when the model is first loaded: never by a check, a plan or a list. The folder gets the name
            `path` when it is complete. None: the files are at `path` already.
        family: The family's name, of a text-to-image model with `derive`: what its files will say once they are
            made. Without it, settings that the family does not go with are found only then.
    """

    name: str
    path: Path
    kind: str
    description: str
    licence: str = ""
    figures: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    remark: Callable[[Sequence[str]], str] | None = None
    derive: Callable[[Path], None] | None = None
    family: str = ""


class RewardHooks:
    """Hooks of the entry-point group `draft`: loaded one by one, when a reward is named."""

    @hookspec
    def draft_rewards(self) -> list[type[Reward]]:  # type: ignore[empty-body]
        """The reward classes this module offers.

        Called once, right after the module is imported. The classes' names must be exactly the names of the
        entry points that point at the module.

        Returns:
            A list (not a generator) of `draft.Reward` subclasses.

        Example:
            @draft.hookimpl
            def draft_rewards():
                return [Brightness]
        """


class ExtensionHooks:
    """Hooks of the entry-point group `draft.extensions`: loaded when something is really run."""

    @hookspec
    def draft_models(self) -> list[NamedModel]:  # type: ignore[empty-body]
        """Models on this machine that pipelines and rewards may name.

        Returns:
            A list of `draft.NamedModel`. Must neither load weights nor make any; `NamedModel.derive` may.

        Example:
            @draft.hookimpl
            def draft_models():
                return [draft.NamedModel("tiny", Path("/models/tiny"), "text-to-image", "a small model")]
        """

    @hookspec
    def draft_families(self) -> list[Family]:  # type: ignore[empty-body]
        """Model families that this package can load, each a row; a name or a pipeline class that is taken is an error.

        Returns:
            A list of `draft.Family`. Must import neither torch nor diffusers; the module that `load` names may.

        Example:
            @draft.hookimpl
            def draft_families():
                return [draft.Family(name="toy", pipeline="ToyPipeline", part="transformer", load="toy.model:load")]
        """

    @hookspec
    def draft_stage_started(self, stage: str, folder: Path) -> None:
        """Called when a stage of a pipeline really begins to run (never for a reused one).

        Args:
            stage: The stage's name in the file.
            folder: The folder it writes into until it is finished.

        Example:
            @draft.hookimpl
            def draft_stage_started(stage):
                print(stage, "begins")
        """

    @hookspec
    def draft_stage_finished(self, stage: str, outputs: Mapping[str, Path], metrics: Mapping[str, float]) -> None:
        """Called when a stage has finished and its folder has its final name.

        Args:
            stage: The stage's name in the file.
            outputs: Output name to path, e.g. ``{"adapter": .../adapter.safetensors}``.
            metrics: The stage's closing figures by name.

        Example:
            @draft.hookimpl
            def draft_stage_finished(stage, metrics):
                print(stage, metrics)
        """
