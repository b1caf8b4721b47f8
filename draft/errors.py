"""The errors a user can cause, each with its place and a way out."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


class DraftError(Exception):
    """Something the user can fix; shown without a traceback, exit code 2.

    Args:
        what: What is wrong, in lower case, with the value received: ``"rank must be at least 1 (got 0)"``.
        where: Where it is: ``"pipelines/a.yaml:12"``, ``"command line, 'seed=x'"``, a stage or a reward.
        hint: What to do about it, one sentence.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{place}{self.what}{hint}"


class ConfigError(DraftError):
    """A pipeline file, an override or a command-line argument is wrong."""


class OptionError(ConfigError, ValueError):
    """A reward's option is wrong: what a validator of its class raises where a `ValueError` could give no hint.

    Whoever reads the options collects it with the others and adds the place.
    """


class PluginError(DraftError):
    """A plugin cannot be found, imported or trusted to be what it says."""


class DraftWarning(UserWarning):
    """Something the user should know of, though the work goes on; the command line shows it as one line."""


class PluginWarning(DraftWarning):
    """A plugin is broken; the command goes on without it."""


class StageError(DraftError):
    """A stage of a pipeline could not do its work.

    Attributes:
        images: Images on which it failed, each a prompt and a tensor (3, H, W); the stage saves them in its folder.
    """

    images: tuple[tuple[str, Any], ...] = ()


class RewardError(StageError):
    """A reward's own code failed; `__cause__` is what it raised, where it raised something."""


class DivergedError(StageError):
    """A training broke: a score or a gradient is no longer a finite number.

    Attributes:
        checkpoint: Updates before the newest checkpoint, from which it could branch; None: there is none.
        by_reward: Whether the images were finite and a reward was not, so that smaller steps would not help.
    """

    checkpoint: int | None = None
    by_reward: bool = False


class ResourceError(StageError):
    """A stage cannot start or go on with what this machine has: memory, a GPU, a way to the model's files.

    Args:
        what: What is wrong, as in every `DraftError`.
        needs: What it needs, in a few words.
        where: Where it is.
        hint: What to do about it here; a run adds the command of a rehearsal.
    """

    def __init__(self, what: str, *, needs: str, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.needs = needs

    def __str__(self) -> str:
        text, mark, hint = super().__str__().partition("\n  hint: ")
        return f"{text}\n  needs: {self.needs}{mark}{hint}"


class ConfigErrors(ConfigError):
    """Several configuration errors found in one pass, all shown at once.

    Args:
        errors: The errors, in the order in which a reader meets them in the file.
    """

    def __init__(self, errors: list[DraftError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


@dataclass(frozen=True)
class Problem:
    """A setting that cannot be as it is, found by whoever declares it; a pipeline's check adds the place in the file.

    Args:
        keys: Where it is, from the settings that were asked about.
        what: What is wrong, beginning with its key.
        hint: What to do.
    """

    keys: tuple[str, ...]
    what: str
    hint: str = ""


def did_you_mean(value: str, known: list[str], *, otherwise: str = "") -> str:
    """A hint for a misspelt name: the closest known one, or else `otherwise`.

    Args:
        value: The name as the user wrote it.
        known: All names there are.
        otherwise: The hint where none is close.

    Returns:
        The hint.

    Example:
        >>> did_you_mean("jepg", ["jpeg", "clip_score"])
        "did you mean 'jpeg'?"
    """
    close = get_close_matches(value, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else otherwise
