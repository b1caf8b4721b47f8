"""Importing one plugin module and checking that it is what its entry points say."""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from types import ModuleType
from typing import Any

import pluggy

from draft.errors import PluginError, did_you_mean
from draft.rewards.discovery import REWARDS, Entry, entries, reward_entries
from draft.rewards.hookspecs import ExtensionHooks, RewardHooks
from draft.rewards.reward import RESERVED, Reward

SUPPORTED_API = (1,)
"""The versions of the reward contract that this Draft understands: the current one and the one before."""


def find_reward(name: str) -> type[Reward]:
    """Load the one reward that is called `name`; no other plugin is imported.

    Args:
        name: The reward's name, or ``"distribution:name"``.

    Returns:
        The reward's class.

    Raises:
        PluginError: No such reward, or two of that name, or its plugin is broken.
    """
    known = reward_entries()
    matches = [entry for entry in known if name in (entry.name, entry.qualified)]
    if not matches:
        hint = did_you_mean(name, [entry.name for entry in known], otherwise="`draft rewards list` shows them all")
        raise PluginError(f"unknown reward (got {name!r})", hint=hint)
    if len(matches) > 1:
        owners = " and ".join(entry.source for entry in matches)
        ways = " or ".join(repr(entry.qualified) for entry in matches)
        raise PluginError(f"two plugins offer a reward {name!r}: {owners}", hint=f"write {ways}")
    entry = matches[0]
    return next(reward for reward in load_rewards(entry) if reward.name == entry.name)


def load_rewards(entry: Entry) -> list[type[Reward]]:
    """Import the module of a reward entry point and return the rewards it offers, all checked.

    Args:
        entry: One of `reward_entries()`.

    Returns:
        The classes that the module's hook `draft_rewards` returns.

    Raises:
        PluginError: The module fails to import, misspells a hook, or offers something else than its entry points say.
    """
    fail = partial(_error, entry)
    manager = new_manager()
    module = register(manager, entry)
    implementations = manager.hook.draft_rewards.get_hookimpls()
    if not implementations:
        raise fail("has no hook 'draft_rewards'", hint="mark the function with @draft.hookimpl")
    try:
        rewards = implementations[0].function()
    except Exception as error:
        raise fail(f"its hook 'draft_rewards' raised {_brief(error)}") from error
    if not isinstance(rewards, list | tuple):
        raise fail(f"'draft_rewards' must return a list of rewards (got {type(rewards).__name__})")
    for reward in rewards:
        _check_class(entry, reward)
    offered = sorted(reward.name for reward in rewards)
    same_module = {e.name for e in entries(REWARDS) if (e.dist, e.module) == (entry.dist, entry.module)}
    if offered != sorted(same_module):
        raise fail(
            f"its entry points promise {', '.join(sorted(same_module))} but {module.__name__} "
            f"offers {', '.join(offered) or 'nothing'}",
            hint="the names of the entry points and the `name` of the rewards must be the same",
        )
    return list(rewards)


def new_manager() -> pluggy.PluginManager:
    """A plugin manager that knows Draft's hooks and no plugin yet."""
    manager = pluggy.PluginManager("draft")
    manager.add_hookspecs(RewardHooks)
    manager.add_hookspecs(ExtensionHooks)
    return manager


def register(manager: pluggy.PluginManager, entry: Entry) -> ModuleType:
    """Import an entry point's module and register it; what fails leaves the manager as it was.

    Args:
        manager: Where to register it.
        entry: The entry point.

    Returns:
        The module.

    Raises:
        PluginError: The module cannot be imported, or a hook's name or arguments are not Draft's.
    """
    fail = partial(_error, entry)
    if ":" in entry.module:
        raise fail(f"its entry point must be a module (got {entry.module!r})", hint="drop the part after ':'")
    try:
        module = importlib.import_module(entry.module)
    except (Exception, SystemExit) as error:
        # A plugin is a stranger's code: whatever it raises must not take the command down with it.
        raise fail(f"cannot be imported: {_brief(error)}", hint=_import_hint(error)) from error
    if manager.is_registered(module):
        return module
    known = [name for name in vars(manager.hook) if name.startswith("draft_")]
    # pluggy lets an unknown hook pass until a check over all plugins, so this one is looked at alone first.
    for name in dir(module):
        if manager.parse_hookimpl_opts(module, name) is not None and name not in known:
            hint = did_you_mean(name, known, otherwise=f"hooks are {', '.join(known)}")
            raise fail(f"unknown hook {name!r}", hint=hint)
    for target in (new_manager(), manager):
        # The first one is a rehearsal: a plugin that fails halfway would leave its other hooks behind.
        try:
            target.register(module, name=f"{entry.dist}:{entry.module}")
            target.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise fail(str(error).strip().splitlines()[-1].strip()) from error
    return module


def _check_class(entry: Entry, reward: Any) -> None:
    fail = partial(_error, entry)
    if not (inspect.isclass(reward) and issubclass(reward, Reward)):
        got = reward.__name__ if inspect.isclass(reward) else repr(reward)
        raise fail(f"'draft_rewards' must return subclasses of draft.Reward (got {got})")
    if not isinstance(getattr(reward, "name", None), str):
        raise fail(f"{reward.__name__} has no `name`", hint='add a class attribute: name = "..."')
    if inspect.isabstract(reward):
        raise fail(f"reward {reward.name!r} has no method `load`")
    if reserved := [field for field in reward.model_fields if field in RESERVED]:
        raise fail(
            f"reward {reward.name!r} has a field {reserved[0]!r}, which Draft reserves",
            hint=f"rename it; reserved are {', '.join(RESERVED)}",
        )
    if unknown := [option for option in reward.stand_in or {} if option not in reward.model_fields]:
        raise fail(f"reward {reward.name!r} has a `stand_in` for {unknown[0]!r}, which is no option of it")
    if reward.api_version not in SUPPORTED_API:
        spoken = ", ".join(map(str, SUPPORTED_API))
        way = f"upgrade {'draft-diffusion' if reward.api_version > max(SUPPORTED_API) else entry.dist}"
        raise fail(
            f"reward {reward.name!r} is written for version {reward.api_version} of the reward contract, "
            f"this Draft speaks {spoken}",
            hint=way,
        )


def _error(entry: Entry, what: str, *, hint: str = "") -> PluginError:
    return PluginError(f"plugin {entry.source} ({entry.module}): {what}", hint=hint)


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _import_hint(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"is the package that holds {error.name!r} installed?"
    return "`draft plugins` shows all plugins and their state"
