"""What `isolated` may run: files come from anybody, so the user allows each interpreter and installation once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from draft.errors import ConfigError, presentable
from draft.files import absolute, sha256, write_text
from draft.isolation.environment import requirement_contents
from draft.isolation.settings import Isolation

_WIDTH = 500
_ASKING: ContextVar[bool | None] = ContextVar("asking", default=None)
_ALLOWED_NOW: set[str] = set()
"""What was allowed in this process, where it cannot be remembered, too."""


class ConsentError(ConfigError):
    """A file names something to run or to install that the user has not allowed yet."""


@contextmanager
def asking(allowed: bool) -> Iterator[None]:
    """Decide whether the environments that a file names may be asked, in the block, what their rewards are.

    Args:
        allowed: Whether those that the user has allowed may be asked; the others are never executed here.

    Yields:
        Nothing.
    """
    token = _ASKING.set(allowed)
    try:
        yield
    finally:
        _ASKING.reset(token)


def may_ask(isolation: Isolation) -> bool:
    """Whether an environment may be asked here: outside of `asking` the caller has named it."""
    asked = _ASKING.get()
    return asked is None or (asked and consent_key(isolation) in _remembered())


def consents_file() -> Path:
    """The file with what the user has allowed.

    `DRAFT_CONFIG` names its folder; else it is Draft's in the user's folder for configuration (`XDG_CONFIG_HOME`, on
    Windows `APPDATA`, else `~/.config`).
    """
    if chosen := os.environ.get("DRAFT_CONFIG"):
        return absolute(Path.cwd(), chosen) / "allowed.json"
    base = os.environ.get("XDG_CONFIG_HOME") or (os.environ.get("APPDATA") if os.name == "nt" else "") or ".config"
    return absolute(Path(os.path.expanduser("~")), base) / "draft" / "allowed.json"


def consent_key(isolation: Isolation) -> str:
    """What a consent is given for: an interpreter with its content, or what pip installs with the content of files.

    Args:
        isolation: With absolute paths.

    Returns:
        64 hexadecimal digits.
    """
    if isolation.python is not None:
        parts = ["python", isolation.python, _content(Path(isolation.python))]
    else:
        parts = ["requirements", *requirement_contents(isolation), *_lines(isolation)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def described(isolation: Isolation) -> list[str]:
    """What an isolation runs or installs, in full, one line each."""
    if isolation.python is not None:
        path = Path(isolation.python)
        target = path.resolve()
        return [f"runs {path}" + (f" (which is {target})" if target != path else "")]
    lines = ["installs with pip, which can run code of what it builds:"]
    return [*lines, *(f"  {line}" for line in _lines(isolation))]


def allow(isolations: Mapping[str, Isolation], *, trust: bool, say: Callable[[str], None]) -> None:
    """See that the user has allowed what isolations run and install.

    Args:
        isolations: By their places.
        trust: Whether the user allows all of these now, which is remembered.
        say: Told what is allowed now.

    Raises:
        ConsentError: Something has not been allowed; all of it is shown.
    """
    known = _remembered()
    keys = {where: consent_key(isolation) for where, isolation in isolations.items()}
    missing = {where: isolations[where] for where, key in keys.items() if key not in known}
    if not missing:
        return
    text = "\n".join(_shown(where, isolation) for where, isolation in missing.items())
    if not trust:
        raise ConsentError(
            f"the file names code to run that you have not allowed:\n{text}",
            hint="if you trust it, add --trust: it is allowed then, and remembered",
        )
    say(f"allowed from now on:\n{text}")
    _ALLOWED_NOW.update(keys.values())
    file = consents_file()
    entries = known | {keys[where]: described(isolation) for where, isolation in missing.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(entries, indent=1) + "\n")
    except OSError as error:
        say(f"this cannot be remembered: {error.strerror} (at {file})")


def all_allowed(isolations: Mapping[str, Isolation]) -> bool:
    """Whether the user has allowed what isolations run and install."""
    known = _remembered()
    return all(consent_key(isolation) in known for isolation in isolations.values())


def _remembered() -> dict[str, list[str]]:
    try:
        entries = json.loads(consents_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = None  # nothing was allowed yet, or nobody can say what
    allowed_now: dict[str, list[str]] = {key: [] for key in _ALLOWED_NOW}
    return {**allowed_now, **(entries if isinstance(entries, dict) else {})}


def _content(python: Path) -> str:
    try:
        return sha256(python)
    except OSError:
        return ""  # one that may be executed and not be read


def _lines(isolation: Isolation) -> list[str]:
    wanted = isolation.requirements
    if isinstance(wanted, str):
        return [f"-r {wanted}", *Path(wanted).read_text(encoding="utf-8", errors="replace").splitlines()]
    return list(wanted or ())


def _shown(where: str, isolation: Isolation) -> str:
    # Cut into lines: a message shortens long ones, and here nothing may be left out.
    pieces = [
        f"    {escaped[start : start + _WIDTH]}"
        for line in described(isolation)
        for escaped in [presentable(line, len(line) * 10 + 1)]
        for start in range(0, max(len(escaped), 1), _WIDTH)
    ]
    return "\n".join([f"  {where}:", *pieces])
