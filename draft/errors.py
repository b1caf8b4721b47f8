"""The errors a user can cause, each with its place and a way out."""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

LONGEST = 600
"""Characters of a line that a message shows."""


def presentable(text: str, longest: int = LONGEST) -> str:
    """A text as a terminal and a log may have it.

    Args:
        text: Any text, perhaps with parts that a file or a stranger chose.
        longest: Characters of a line.

    Returns:
        The text with control characters, marks of direction and halves of characters as escapes, and the middle of
        longer lines left out.

    Example:
        >>> presentable("\x1b[31mred")
        '\\x1b[31mred'
    """
    lines = ("".join(c if c.isprintable() or c == "\t" else _escape(c) for c in line) for line in text.split("\n"))
    return "\n".join(_shortened(line, longest) for line in lines)


def _shortened(line: str, longest: int) -> str:
    if len(line) <= longest:
        return line
    head, tail = line[: longest * 3 // 5], line[-longest // 5 :]
    return f"{head} ... ({len(line) - len(head) - len(tail)} characters) ... {tail}"


def _escape(character: str) -> str:
    # Spaces of other scripts and words joined by invisible marks are text that people write.
    code = ord(character)
    plain = character.isspace() and code > 0xA0 and code not in (0x2028, 0x2029)
    if plain or code in (0xA0, 0x200C, 0x200D):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


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
        place = f"{presentable(self.where, LONGEST // 2)}: " if self.where else ""
        hint = f"\n  hint: {presentable(self.hint)}" if self.hint else ""
        return f"{place}{presentable(self.what)}{hint}"


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


_REFUSED: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "free space on that disk{free}"),
    errno.EDQUOT: ("your share of the disk is used up", "a larger quota, or files of yours that may go"),
    errno.EFBIG: ("a file would become larger than is allowed", "a higher limit on the size of files (ulimit -f)"),
    errno.EROFS: ("the disk cannot be written to", "a folder on a disk that can"),
    errno.EACCES: ("permission denied", "the right to read and write there"),
    errno.EPERM: ("operation not permitted", "the right to read and write there"),
    errno.ENOENT: ("no such file or folder (any more)", "it; nothing may remove it in the meantime"),
    errno.ENOTDIR: ("not a folder", "a folder there"),
    errno.ENAMETOOLONG: ("the path is longer than this file system allows", "a shorter one"),
    errno.EMFILE: ("too many files are open", "a higher limit on open files (ulimit -n)"),
    errno.EIO: ("the disk fails (input/output error)", "a disk that works"),
}
"""The system's number of a refusal to what it is and what would be needed."""


def system_error(error: BaseException, at: Path | str = "") -> ResourceError | None:
    """Explain what this machine refused: the one place where such an exception becomes an error with a way out.

    Args:
        error: Anything that was raised.
        at: What was written to or read, where the exception does not name it: that of a full disk never does.

    Returns:
        The error, with the path and what is needed; None where the exception is none of the operating system's.
    """
    if (memory := memory_shortage(error)) is not None:
        return ResourceError(memory, needs="more memory than is free here")
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if stream := getattr(error, "stream", ""):  # the command line gives its standard streams names
        what = f"{stream} cannot be written to: {_first_lower(error)}"
        return ResourceError(what, needs="a file, terminal or pipe that takes what is printed")
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(at)
    what, needs = _REFUSED.get(error.errno, (_first_lower(error), "a system that does what it was asked to"))
    if not path and error.errno == errno.ENOENT:
        return ResourceError("the current folder is gone", needs="a folder to work in", hint="cd to one that is there")
    place = f" (at {shortened(path)!r})" if path else ""
    return ResourceError(f"{what}{place}", needs=needs.format(free=_free(path)))


def memory_shortage(error: BaseException) -> str | None:
    """Say whose memory is full and how much more is wanted, where that is what an exception is about; else None."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which is not imported here
        whose = "the accelerator's memory"
    elif isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError | OSError) and _NO_MEMORY.search(text) is not None
    ):
        whose = "this machine's memory"
    else:
        return None
    tried = re.search(r"ried to allocate (\d[\d.]* \w+)|[Uu]nable to allocate (\d[\d.]* \w+)", text)
    return f"{whose} is full" + (f", and {tried[1] or tried[2]} more are wanted" if tried else "")


_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory: you tried|[Cc]annot allocate memory|bad_alloc|failed to map segment"
    r"|can't start new thread"
)
"""What PyTorch, the C++ library, the linker and Python write where there is not enough memory."""


def _free(path: str) -> str:
    """The room on a path's disk in words, where it can be measured."""
    for folder in (Path(path), *Path(path).parents) if path else ():
        try:
            return f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB are free)"
        except OSError:
            continue
    return ""


def _first_lower(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def shortened(path: str, most: int = 300) -> str:
    """A path as an error shows it: the middle left out where it is longer than `most` characters."""
    return path if len(path) <= most else f"{path[: most // 2]}…{path[-most // 2 :]}"


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
