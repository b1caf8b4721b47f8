"""Importing one plugin module and checking that it is what its entry points say."""

from __future__ import annotations

import importlib
import sys
import warnings
from functools import partial
from types import ModuleType
from weakref import WeakKeyDictionary

import pluggy

from draft.errors import PluginError, PluginWarning, did_you_mean
from draft.rewards.calls import Called, brief, calling
from draft.rewards.contract import check_class, plugin_error
from draft.rewards.discovery import (
    REWARDS,
    Entry,
    built_in,
    choose,
    entries,
    reward_entries,
    spellings,
    turned_off,
)
from draft.rewards.hookspecs import ExtensionHooks, RewardHooks
from draft.rewards.reward import Reward

_OFFERED: WeakKeyDictionary[type[Reward], Entry] = WeakKeyDictionary()


def find_reward(name: str) -> type[Reward]:
    """Load the one reward that is called `name`; no other plugin is imported.

    Args:
        name: The reward's name, or ``"distribution:name"``.

    Returns:
        The reward's class.

    Raises:
        PluginError: No such reward, or two of that name, or its plugin is broken.
    """
    entry = find_entry(name)
    return next(reward for reward in load_rewards(entry) if reward.name == entry.name)


def find_entry(name: str) -> Entry:
    """The entry point of the one reward that is called `name`; nothing is imported.

    Args:
        name: The reward's name, or ``"distribution:name"``. A plain name that Draft's own rewards have is theirs,
            and a package that uses it, too, is a warning.

    Returns:
        The entry point.

    Raises:
        PluginError: No such reward, perhaps because its package is turned off, or two of that name.
    """
    known = reward_entries()
    matches = choose(known, name)
    if not matches:
        hint = turned_off(REWARDS, name) or did_you_mean(
            name, [entry.name for entry in known], otherwise="`draft rewards list` shows them all"
        )
        raise PluginError(f"unknown reward (got {name!r})", hint=hint)
    if len(matches) > 1:
        owners = " and ".join(entry.source for entry in matches)
        ways = " or ".join(repr(entry.qualified) for entry in matches)
        raise PluginError(f"two plugins offer a reward {name!r}: {owners}", hint=f"write {ways}")
    for other in known:
        if other.name == name and built_in(matches[0].dist) and other != matches[0]:
            # One place of the code for all callers, so that each text is shown once.
            text = f"reward {name!r} is the built-in one; that of {other.source} is {other.qualified!r}"
            warnings.warn(text, PluginWarning, stacklevel=1)
    return matches[0]


def name_of(reward: type[Reward]) -> str:
    """The name by which `find_reward` finds a class: its own, or ``"distribution:name"`` where that is another's.

    Args:
        reward: A reward's class.

    Returns:
        The name; `reward.name` of a class that no package offers.
    """
    spelled = spellings(reward_entries())
    same = [entry for entry in spelled if entry.name == reward.name]
    for entry in same if len(same) > 1 else ():
        if any(value is reward for value in vars(sys.modules.get(entry.module, object)).values()):
            return spelled[entry]
    return reward.name


def recorded_name(reward: type[Reward]) -> str:
    """The name of a class in records of what a result depends on: two rewards of one name must differ there.

    Args:
        reward: A reward's class.

    Returns:
        ``"distribution:name"`` where the plain name is a built-in reward's and this is not that one; else its name,
        which stays the same when another package with that name is installed later.
    """
    shared = any(entry.name == reward.name and built_in(entry.dist) for entry in reward_entries())
    return name_of(reward) if shared else reward.name


def load_rewards(entry: Entry) -> list[type[Reward]]:
    """Import the module of a reward entry point and return the rewards it offers, all checked.

    Args:
        entry: One of `reward_entries()`.

    Returns:
        The classes that the module's hook `draft_rewards` returns.

    Raises:
        PluginError: The module fails to import, misspells a hook, or offers something else than its entry points say.
    """
    fail = partial(plugin_error, entry)
    manager = new_manager()
    module = register(manager, entry)
    implementations = manager.hook.draft_rewards.get_hookimpls()
    if not implementations:
        raise fail("has no hook 'draft_rewards'", hint="mark the function with @draft.hookimpl")
    try:
        with calling(plugin(entry), "answering the hook 'draft_rewards'", passing=BaseException):
            rewards = implementations[0].function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise fail(f"its hook 'draft_rewards' raised {brief(error)}", at=error) from error
    if not isinstance(rewards, list | tuple):
        got = type(rewards).__name__
        raise fail(f"'draft_rewards' must return a list of rewards (got {got})", at=implementations[0].function)
    for reward in rewards:
        check_class(entry, reward)
    offered = sorted(reward.name for reward in rewards)
    same_module = {e.name for e in entries(REWARDS) if (e.dist, e.module) == (entry.dist, entry.module)}
    if offered != sorted(same_module):
        raise fail(
            f"its entry points promise {', '.join(sorted(same_module))} but {module.__name__} "
            f"offers {', '.join(offered) or 'nothing'}",
            hint="the names of the entry points and the `name` of the rewards must be the same",
        )
    _OFFERED.update(dict.fromkeys(rewards, entry))
    return list(rewards)


def offered_by(reward: type[Reward]) -> Entry | None:
    """The entry point that a reward's class was loaded from last; None: it was not loaded as a plugin."""
    return _OFFERED.get(reward)


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
    fail = partial(plugin_error, entry)
    if ":" in entry.module:
        raise fail(f"its entry point must be a module (got {entry.module!r})", hint="drop the part after ':'")
    try:
        with calling(plugin(entry), "being imported", passing=BaseException):
            module = importlib.import_module(entry.module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # A plugin is a stranger's code: whatever it raises must not take the command down with it.
        raise fail(f"cannot be imported: {brief(error)}", hint=_import_hint(error), at=error) from error
    if manager.is_registered(module):
        return module
    known = [name for name in vars(manager.hook) if name.startswith("draft_")]
    # pluggy lets an unknown hook pass until a check over all plugins, so this one is looked at alone first.
    for name in dir(module):
        if manager.parse_hookimpl_opts(module, name) is not None and name not in known:
            hint = did_you_mean(name, known, otherwise=f"hooks are {', '.join(known)}")
            raise fail(f"unknown hook {name!r}", hint=hint, at=getattr(module, name))
    for target in (new_manager(), manager):
        # The first one is a rehearsal: a plugin that fails halfway would leave its other hooks behind.
        try:
            target.register(module, name=f"{entry.dist}:{entry.module}")
            target.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise fail(str(error).strip().splitlines()[-1].strip()) from error
    return module


def plugin(entry: Entry) -> Called:
    """The plugin of an entry point as what is called, for `draft.rewards.calls`."""
    return Called(f"plugin {entry.dist}", lambda: [entry.module.partition(":")[0]])


def _import_hint(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"is the package that holds {error.name!r} installed?"
    return "`draft plugins` shows all plugins and their state"
