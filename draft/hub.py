"""The Hugging Face hub: whether it answers, asked once with a limit of seconds, and what of it is on this machine."""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

SECONDS = 5.0
"""How long the hub may take to answer; its libraries wait for minutes and try many times."""

ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)*")
"""What names a repository, or a file in one."""

_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_UNREACHED = "DRAFT_HUB_UNREACHED"
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ETIMEDOUT, errno.ECONNREFUSED}
_asked: set[int] = set()
"""The processes that have asked: a forked one asks again."""


def ask_once() -> None:
    """Find out, once per process, whether the hub answers; where it does not, its libraries are told not to try.

    Without this each file costs them minutes of retries. What is in the hub's cache is used all the same. The processes
    that this one starts know it, too.
    """
    if os.getpid() in _asked or switched_off():
        return
    _asked.add(os.getpid())
    reason = _unreached(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if not reason:
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ[_UNREACHED] = reason
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def unreached() -> str:
    """Why the hub could not be reached: ``"the hub did not answer within 5 s"``; empty where it was not tried."""
    return os.environ.get(_UNREACHED, "")


def switched_off() -> str:
    """The environment variable that forbids its libraries to ask the hub; empty where none does."""
    # As the hub's own library reads them.
    chosen = (name for name in _SWITCHES if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"))
    return next(chosen, "")


def may_be_id(name: str) -> bool:
    """Whether a name can be a repository of the hub, or a file in one, and is no path of this machine."""
    return len(name) <= 200 and ID.fullmatch(name) is not None and not Path(name).exists()


def is_elsewhere(name: str) -> bool:
    """Whether a model is a repository of the hub that is not, or not completely, on this machine.

    Args:
        name: A model as files name them: a registered one must not be asked about.

    Returns:
        False for paths, and for what is in the hub's cache.
    """
    if "/" not in name or not may_be_id(name):
        return False
    folder = _cache() / ("models--" + "--".join(name.split("/")[:2]))
    if any(folder.glob("blobs/*.incomplete")):
        return True
    return not any(path.is_file() for path in folder.glob("snapshots/*/*"))


def _cache() -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(name):
            return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home)) / "hub"


def _unreached(address: str) -> str:
    """Why an address gives no answer; empty where it gives one, or where the libraries had better find out."""
    reasons = [f"the hub did not answer within {SECONDS:g} s"]

    def ask() -> None:
        reasons[0] = _answer(address)

    # In a thread, because looking up a name has no limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS + 1)
    return reasons[0]


def _answer(address: str) -> str:
    try:
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "draft"})
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"the hub answers with {error.code}" if error.code >= 500 else ""
    except (OSError, ValueError, EOFError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            return f"the hub did not answer within {SECONDS:g} s"
        if isinstance(cause, socket.gaierror):
            return "the hub's name cannot be looked up"
        if isinstance(cause, OSError) and (cause.errno in _NO_WAY or isinstance(cause, ConnectionError)):
            return f"there is no connection to the hub ({os.strerror(cause.errno).lower() if cause.errno else cause})"
    except http.client.HTTPException:
        pass  # it speaks, if oddly
    return ""
