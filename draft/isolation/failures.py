"""What goes wrong outside of this process, as errors of the reward that it happened to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from draft import errors
from draft.errors import ConfigError, ConfigErrors, DraftError, PluginError, ResourceError, RewardError, StageError

_SHOWN = 20


class RemoteTraceback(Exception):
    """The traceback of an exception in a reward's process, as the cause of the error that is raised here.

    Args:
        text: As Python prints it there.
    """

    def __init__(self, text: str) -> None:
        super().__init__(f"in the reward's process\n{text.rstrip()}")


class IsolatedError(RewardError):
    """The process of an isolated reward, or the making of its environment, failed.

    Args:
        what: What is wrong, as in every `DraftError`.
        wrote: What the process wrote, of which the last lines are shown.
        where: The reward's place.
        hint: What to do about it.
    """

    def __init__(self, what: str, *, wrote: str = "", where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.wrote = wrote

    def __str__(self) -> str:
        text, mark, hint = super().__str__().partition("\n  hint: ")
        lines = last_lines(self.wrote)
        shown = "".join(f"\n    {line}" for line in lines)
        return f"{text}{mark}{hint}" + (f"\n  it wrote:{shown}" if lines else "")


def last_lines(text: str, count: int = _SHOWN) -> list[str]:
    """The last lines of a program's output that say something; a progress bar counts by its last state."""
    lines = [line.rstrip().rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return [line for line in lines if line][-count:]


def encode_error(error: DraftError) -> list[dict[str, str]]:
    """An error as plain values, to be sent to another process; `decode_error` makes it an error again."""
    if isinstance(error, ConfigErrors):
        return [entry for inner in error.errors for entry in encode_error(inner)]
    kind = next(cls.__name__ for cls in type(error).__mro__ if getattr(errors, cls.__name__, None) is cls)
    needs = {"needs": error.needs} if isinstance(error, ResourceError) else {}
    return [{"kind": kind, "what": error.what, "where": error.where, "hint": error.hint, **needs}]


def decode_error(entries: list[dict[str, str]], *, where: str) -> DraftError:
    """The error that another process sent.

    Args:
        entries: As `encode_error` returns them.
        where: The reward's place, for those that have none.

    Returns:
        One error, `ConfigErrors` for several.
    """
    decoded: list[DraftError] = []
    for entry in entries:
        kinds = {kind.__name__: kind for kind in (ConfigError, PluginError, StageError, RewardError)}
        place, what, hint = entry["where"] or where, entry["what"], entry["hint"]
        if "needs" in entry:
            decoded.append(ResourceError(what, needs=entry["needs"], where=place, hint=hint))
        else:
            decoded.append(kinds.get(entry["kind"], DraftError)(what, where=place, hint=hint))
    return decoded[0] if len(decoded) == 1 else ConfigErrors(decoded)


def raised(answer: Mapping[str, Any], *, name: str, where: str) -> DraftError:
    """The error for an exception that was no error of Draft's: a bug of the reward, or full memory.

    Args:
        answer: `type`, `message` and `traceback` of the exception, `place` in the reward's code, and where the reward
            was loaded, `device`.
        name: The reward's name.
        where: Its place.

    Returns:
        The error, caused by the traceback that the process had.
    """
    kind, message = answer["type"], answer["message"]
    if kind in ("OutOfMemoryError", "MemoryError"):
        return ResourceError(
            f"reward {name!r} ran out of memory in its process on {answer['device'] or 'its device'}",
            needs="more memory for this batch and this resolution",
            where=where,
            hint="make them smaller, or give the reward another `device`",
        )
    first = message.strip().splitlines()[0] if message.strip() else "no message"
    place = f" ({answer['place']})" if answer.get("place") else ""
    error = IsolatedError(f"reward {name!r} raised {kind}: {first}{place}", where=where)
    error.__cause__ = RemoteTraceback(answer["traceback"])
    return error


def missing(wrote: str, python: object) -> str:
    """What to do about a process that never said who it is, judged by what it wrote; empty text: unknown."""
    if re.search(r"No module named '?draft(\.isolation)?\b", wrote):
        way = "upgrade" if "draft.isolation" in wrote and "'draft'" not in wrote else "install"
        return f"{way} Draft there: {python} -m pip install {'-U ' if way == 'upgrade' else ''}draft-diffusion"
    if match := re.search(r"No module named '?([\w.]+)", wrote):
        return f"Draft in that environment lacks {match[1]!r}: {python} -m pip install {match[1].partition('.')[0]}"
    if re.search(r"[Uu]nknown option:? -P", wrote):
        return "Draft needs Python 3.11 or newer there"
    return ""
