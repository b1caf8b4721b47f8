"""Calls into the code of plugins: what they change is put back, what they print and raise is that plugin's."""

from __future__ import annotations

import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from draft.errors import DraftError, DraftWarning, RewardError
from draft.rewards import waiting
from draft.rewards.discovery import EXTENSIONS, REWARDS, all_entries
from draft.rewards.surroundings import RANDOM, surroundings

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Reward, Score
    from draft.types import Images, Scores

_LONGEST = 300
"""Characters of an exception's message in one line."""


class _Printing:
    """Standard output as standard error while any thread calls a plugin."""

    def __init__(self) -> None:
        self._lock, self._depth, self._output = threading.Lock(), 0, sys.stdout

    def begin(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._output = sys.stdout
                sys.stdout = sys.stderr
            self._depth += 1

    def end(self) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                sys.stdout = self._output


_printing = _Printing()


@dataclass(frozen=True)
class Called:
    """Whose code is called.

    Args:
        what: What it is, e.g. ``"reward 'mine'"``.
        modules: Gives the names of the modules that it is defined in; asked for only when something is to be said.
    """

    what: str
    modules: Callable[[], Sequence[str]]

    def __str__(self) -> str:
        """What it is, with its distribution and version where a plugin's entry point names its modules."""
        source = next(filter(None, map(_source, self.modules())), "")
        return f"{self.what} ({source})" if source else self.what


class calling:
    """A block that calls a plugin's code.

    After the block, what all code in the process shares is as before: current folder, random generators, torch's modes
    (`draft.rewards.surroundings`); what was changed is named in a warning. What the block prints goes to standard
    error, so that results on standard output stay readable by programs. When it takes long, a line says what is waited
    for. Whatever it raises but Draft's own errors, full memory and what stops a run (`KeyboardInterrupt` and its kinds)
    becomes a `RewardError`: also `SystemExit`, with which a plugin would end the whole run as if it were done.

    Args:
        called: Whose code it is.
        doing: What it does, in words that continue "while": ``"loading"``.
        device: The device whose random generator counts besides the CPU's.
        passing: Exceptions that stay what they are, too.
    """

    def __init__(
        self,
        called: Called,
        doing: str,
        *,
        device: torch.device | None = None,
        passing: type[BaseException] | tuple[type[BaseException], ...] = (),
    ) -> None:
        self._called, self._doing, self._device, self._passing = called, doing, device, passing

    def __enter__(self) -> Self:
        self._before = surroundings(self._device)
        self._wait = waiting.begin(lambda: f"{self._called} while {self._doing}")
        _printing.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> Literal[False]:
        _printing.end()
        waiting.end(self._wait)
        changed = self._before.restored()
        if changed:
            way = ""
            if self._doing == "loading" and any(name.endswith(RANDOM) for name in changed):
                way = "; `draft.frozen_network` makes a network without drawing"
            warnings.warn(
                f"{self._called} changed {', '.join(changed)} while {self._doing}; put back as before{way}",
                DraftWarning,
                stacklevel=2,
            )
        if error is None or isinstance(error, (KeyboardInterrupt, DraftError, self._passing)) or _memory(error):
            return False
        raise RewardError(f"{self._called.what} raised {brief(error)} ({where_raised(error, self._called)})") from error


def load_reward(reward: Reward, device: torch.device, called: Called) -> Score:
    """Load a reward; see `calling`.

    Args:
        reward: The reward with its parameters.
        device: Where to load it.
        called: Who it is.

    Returns:
        Its scoring function.

    Raises:
        DraftError: It cannot be loaded.
    """
    with calling(called, "loading", device=device):
        return reward.load(device)


def protected(score: Score, called: Called, device: torch.device) -> Score:
    """A scoring function that is called as `calling` does, and with a copy of the images.

    Args:
        score: A loaded reward.
        called: Who it is.
        device: Where it was loaded.

    Returns:
        The same function; the gradient goes through the copy.
    """

    def call(images: Images, prompts: Sequence[str]) -> Scores:
        given = images.clone()
        before = version_of(given)
        with calling(called, "scoring", device=device):
            scores = score(given, prompts)
        warn_if_changed(given, before, called)
        return scores

    return call


def version_of(images: Images) -> int:
    """The number of changes in place that a tensor has seen; 0 in inference mode, where nobody counts."""
    return 0 if images.is_inference() else images._version


def warn_if_changed(images: Images, before: int, called: Called) -> None:
    """Warn of a reward that has changed its copy of the images in place, which nobody else has seen.

    Args:
        images: The copy.
        before: Its `version_of` when the reward got it.
        called: The reward.
    """
    if version_of(images) != before:
        text = f"{called} changed the images that it scores in place; it has a copy, so that nothing else sees it"
        warnings.warn(text, DraftWarning, stacklevel=2)


def brief(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:_LONGEST]}"


def where_raised(error: BaseException, called: Called) -> str:
    """The distribution, its version and the line of its own code that an exception comes from.

    Args:
        error: The exception.
        called: Whose code was called.

    Returns:
        E.g. ``"my-package 1.0, my_package/score.py:12"``; the path starts at the current folder where the file is in
        it, else at the package.
    """
    frames = [
        (frame.f_globals.get("__name__") or "", frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    tops = {name.partition(".")[0] for name in called.modules()}
    own = [frame for frame in frames if frame[0].partition(".")[0] in tops]
    if not frames:
        return ", ".join(filter(None, map(_source, called.modules())))
    module, file, line = (own or frames)[-1]
    source = _source(module) or next(filter(None, map(_source, called.modules())), "")
    return ", ".join(filter(None, (source, f"{_shown(Path(file), module)}:{line}")))


def _memory(error: BaseException) -> bool:
    # Whoever runs a stage reports it as what the machine lacks (`draft.diffusion.memory`).
    full = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    return isinstance(error, MemoryError | full) or "can't allocate memory" in str(error)


def _source(module: str) -> str:
    """The distribution and version of the plugin that a module belongs to; empty text: of none."""
    top = module.partition(".")[0]
    entries = [entry for group in (REWARDS, EXTENSIONS) for entry in all_entries(group)]
    exact = [entry for entry in entries if entry.module.partition(":")[0] == module]
    near = exact or [entry for entry in entries if entry.module.partition(".")[0] == top]
    return near[0].source if near else ""


def _shown(file: Path, module: str) -> str:
    try:
        return file.relative_to(Path.cwd()).as_posix()
    except (ValueError, OSError):
        top = module.partition(".")[0]
        parts = file.parts
        return "/".join(parts[len(parts) - 1 - parts[::-1].index(top) :]) if top in parts else file.name
