"""What an entry point's rewards must be, and errors of plugins that give the package, its version and the line."""

from __future__ import annotations

import inspect
import traceback
from functools import partial
from typing import Any

from draft.errors import PluginError
from draft.requirements import DISTRIBUTION
from draft.rewards.discovery import Entry, built_in
from draft.rewards.reward import RESERVED, Reward

SUPPORTED_API = (1,)
"""The versions of the reward contract that this Draft understands: the current one and the one before."""
UNDECLARED = 1
"""The version of a reward that declares none: there was no other when declaring one was optional."""


def check_class(entry: Entry, reward: Any) -> None:
    """Check one of the objects that a plugin's hook `draft_rewards` returns.

    Args:
        entry: An entry point of the plugin.
        reward: The object.

    Raises:
        PluginError: It is no class of a reward, or not one that this Draft can use.
    """
    fail = partial(plugin_error, entry, at=reward)
    if not (inspect.isclass(reward) and issubclass(reward, Reward)):
        got = reward.__name__ if inspect.isclass(reward) else repr(reward)
        raise fail(f"'draft_rewards' must return subclasses of draft.Reward (got {got})")
    if not isinstance(getattr(reward, "name", None), str):
        raise fail(f"{reward.__name__} has no `name`", hint='add a class attribute: name = "..."')
    if inspect.isabstract(reward):
        raise fail(f"reward {reward.name!r} has no method `load`")
    if taken := [field for field in reward.model_fields if field in RESERVED]:
        raise fail(
            f"reward {reward.name!r} has a field {taken[0]!r}, which Draft reserves",
            hint=f"rename it; reserved are {', '.join(RESERVED)}",
        )
    if unknown := [option for option in reward.stand_in or {} if option not in reward.model_fields]:
        raise fail(f"reward {reward.name!r} has a `stand_in` for {unknown[0]!r}, which is no option of it")
    version = api_version(entry, reward)
    if isinstance(version, bool) or not isinstance(version, int):
        raise fail(f"reward {reward.name!r} must have a whole number as `api_version` (got {version!r})")
    if version not in SUPPORTED_API:
        spoken = ", ".join(map(str, SUPPORTED_API))
        raise fail(
            f"reward {reward.name!r} is written for version {version} of the reward contract, "
            f"this Draft speaks {spoken}",
            hint=f"upgrade {DISTRIBUTION if version > max(SUPPORTED_API) else entry.dist}",
        )


def api_version(entry: Entry, reward: type[Reward]) -> Any:
    """The version of the contract that a reward's class was written for.

    Args:
        entry: An entry point of its plugin.
        reward: The class.

    Returns:
        What the class or one of its bases below `Reward` declares as `api_version`, `UNDECLARED` if none does: never
        what it inherits from this Draft, which is always the current version. Draft's own rewards have that.
    """
    if built_in(entry.dist):
        return Reward.api_version
    declared = [vars(kind)["api_version"] for kind in reward.__mro__ if "api_version" in vars(kind)]
    return declared[0] if len(declared) > 1 else UNDECLARED  # the last one is `Reward` itself


def plugin_error(entry: Entry, what: str, *, hint: str = "", at: object = None) -> PluginError:
    """An error of a plugin.

    Args:
        entry: An entry point of the plugin.
        what: What is wrong.
        hint: What to do about it.
        at: The exception, class or function that it is about; None: the module as a whole.

    Returns:
        The error, with distribution, version and module, and file and line where they are known.
    """
    place = _line(entry, at)
    return PluginError(f"plugin {entry.source} ({entry.module}): {what}{f' at {place}' if place else ''}", hint=hint)


def _line(entry: Entry, at: object) -> str:
    if isinstance(at, SyntaxError) and at.filename:
        return f"{at.filename}:{at.lineno}"
    if isinstance(at, BaseException):
        # The plugin's last line, not that of the library which it called.
        top = entry.module.partition(":")[0].partition(".")[0]
        lines = [
            f"{frame.f_code.co_filename}:{line}"
            for frame, line in traceback.walk_tb(at.__traceback__)
            if str(frame.f_globals.get("__name__")).partition(".")[0] == top
        ]
        return lines[-1] if lines else ""
    if not (inspect.isclass(at) or inspect.isfunction(at)):
        return ""
    try:
        return f"{inspect.getsourcefile(at)}:{inspect.getsourcelines(at)[1]}"
    except (OSError, TypeError):  # it was not made by a file
        return ""
