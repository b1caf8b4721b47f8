"""The checks of what a reward leaves behind: in its inputs, in random generators, in the process. Imports torch."""

from __future__ import annotations

import concurrent.futures.thread
import os
import random
import sys
import threading
from typing import Any

import torch

from draft.rewards.calls import version_of
from draft.rewards.surroundings import random_states, without_drawing
from draft.testing.subject import Subject, require


def check_inputs_untouched(subject: Subject) -> str:
    """Neither the images nor the prompts are changed, not even to the same values: other terms score them, too."""
    smooth, prompts = subject.images(), list(subject.prompts)
    # The second batch holds what a clamp or a rounding in place would change or leave.
    for images in (smooth, ((smooth - 0.5) * 4).clamp(-0.001, 1.001)):
        before, version = images.clone(), version_of(images)
        # Only a plain list could be changed; one that has columns is read-only.
        subject.score(images, subject.prompts if subject.prompts.columns else prompts)
        same = torch.equal(images, before) and version_of(images) == version
        require(same, "the images were changed in place: work on `images.clone()`, or without methods that end in `_`")
        require(prompts == list(subject.prompts), "the prompts were changed in place")
    return ""


def check_randomness_untouched(subject: Subject) -> str:
    """Loading and scoring neither draw from the global generators of torch, random and numpy nor seed them."""
    with without_drawing():
        _scramble()
        before = random_states()
        score = subject.load()
        loaded = random_states()
        _scramble()
        unscored = random_states()
        score(subject.images(), subject.prompts)
        after = random_states()
        changed = {"`load`": _changed(before, loaded), "scoring": _changed(unscored, after)}
        for what, names in changed.items():
            if not names:
                continue
            # From another state a draw leads somewhere else, a seed to the same place.
            _scramble()
            if what == "`load`":
                subject.load()
                again, once = random_states(), loaded
            else:
                score(subject.images(), subject.prompts)
                again, once = random_states(), after
            verb = "seeds" if again.get(names[0]) == once[names[0]] else "draws from"
            way = "; draft.frozen_network makes a network without" if what == "`load`" and verb == "draws from" else ""
            require(False, f"{what} {verb} {names[0]}'s global generator{way}")
    return ""


def check_surroundings_untouched(subject: Subject) -> str:
    """What all code in the process shares stays: torch's default dtype and modes, the current folder, signals."""
    subject.load()(subject.images(), subject.prompts)
    for doing, changed in subject.changes.items():
        what = "`load`" if doing == "loading" else doing
        require(not changed, f"{what} changes {', '.join(sorted(changed))}")
    return ""


def check_threads(subject: Subject) -> str:
    """No thread is left running that would keep the program from ending."""
    before = set(threading.enumerate())
    subject.load()(subject.images(), subject.prompts)
    pools: Any = getattr(concurrent.futures.thread, "_threads_queues", {})  # Python ends these by itself
    left = [
        thread.name
        for thread in threading.enumerate()
        if thread not in before and thread not in pools and not thread.daemon
    ]
    require(not left, f"{len(left)} threads go on that are no daemons, e.g. {left[:1]}: the program would not end")
    return ""


def _scramble() -> None:
    """Put every generator into a state that no earlier call can have left."""
    seed = int.from_bytes(os.urandom(4))
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name, state in before.items() if after.get(name, state) != state]
