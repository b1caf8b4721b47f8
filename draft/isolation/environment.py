"""Which Python runs an isolated reward: one that is there already, or that of an environment made for it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

from draft.errors import ConfigError, DraftError
from draft.files import absolute, cache_folder
from draft.isolation.settings import Isolation
from draft.requirements import DISTRIBUTION

FINISHED = "draft.json"
"""The file in an environment's folder that is written last: without it the folder is half an environment."""

_LOCAL = re.compile(r"([./~].*?)(\[[^\]]*\])?")
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


def locate(isolation: Isolation, base: Callable[[tuple[str | int, ...]], Path], where: str) -> Isolation:
    """Make the paths of an isolation absolute, and look whether they are there.

    Args:
        isolation: As the file has it.
        base: From the keys of a value to the folder in which its relative path starts.
        where: The place of `isolated`, for errors.

    Returns:
        The same with absolute paths; a link stays a link, because an environment's Python is one.

    Raises:
        ConfigError: Something is not there, or there are not exactly one of `python` and `requirements`.
    """
    if (isolation.python is None) == (isolation.requirements is None):
        got = "neither" if isolation.python is None else "both"
        raise ConfigError(f"must have either 'python' or 'requirements' (got {got})", where=where)
    if isolation.python is not None:
        path = absolute(base(("python",)), isolation.python)
        return replace(isolation, python=str(_python(path, f"{where}.python")))
    if isinstance(isolation.requirements, str):
        path = absolute(base(("requirements",)), isolation.requirements)
        if not path.is_file():
            raise ConfigError(
                f"must be a requirements file or a list (got {str(path)!r})", where=f"{where}.requirements"
            )
        return replace(isolation, requirements=str(path))
    lines = []
    for index, line in enumerate(isolation.requirements or ()):
        place, text = f"{where}.requirements.{index}", line.strip()
        if not text or text.startswith("-"):
            raise ConfigError(
                f"must be a requirement such as 'package==1.2' or './folder' (got {line!r})",
                where=place,
                hint="pip's options go into a requirements file",
            )
        if local := _LOCAL.fullmatch(text):
            path = absolute(base(("requirements", index)), local[1])
            if not path.exists():
                raise ConfigError(f"must be there (got {str(path)!r})", where=place)
            text = f"{path}{local[2] or ''}"
        lines.append(text)
    return replace(isolation, requirements=tuple(lines))


def ready_python(isolation: Isolation) -> Path | None:
    """The Python of an isolation, None if its environment has not been made yet.

    Args:
        isolation: With absolute paths.

    Returns:
        A path, links unresolved.
    """
    if isolation.python is not None:
        return Path(isolation.python)
    folder = environment_folder(isolation)
    python = interpreter(folder)
    return python if (folder / FINISHED).is_file() and python.exists() else None


def environment_folder(isolation: Isolation) -> Path:
    """Where the environment of an isolation's `requirements` is kept, whether or not it has been made.

    The folder is named by what goes into it: the requirements as text, what local folders and files among them hold,
    Draft's own requirement, and the version of Python.

    Args:
        isolation: With absolute paths.

    Returns:
        A folder under `cache_folder()`.
    """
    parts: list[str] = [sys.version, sysconfig.get_platform(), *draft_requirement(), *requirement_contents(isolation)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return cache_folder() / "environments" / digest[:24]


def requirement_contents(isolation: Isolation) -> list[str]:
    """What pip is asked for: lines, and digests of the files and folders among them.

    Args:
        isolation: With absolute paths.

    Returns:
        The same texts for the same requirements.
    """
    if isinstance(isolation.requirements, str):
        return [_content(Path(isolation.requirements))]
    parts: list[str] = []
    for line in isolation.requirements or ():
        local = _LOCAL.fullmatch(line)
        parts += [f"{Path(local[1]).name}{local[2] or ''}", _content(Path(local[1]))] if local else [line]
    return parts


def interpreter(folder: Path) -> Path:
    """The Python in an environment's folder."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def draft_requirement() -> list[str]:
    """What makes pip install this very Draft: arguments, as this one was installed (PEP 610).

    Returns:
        ``["--editable", folder]`` for an editable checkout, one requirement otherwise.

    Raises:
        DraftError: Draft is not installed, but imported from a bare source tree.
    """
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        raise DraftError("Draft is not installed, so it cannot be installed elsewhere", hint="pip install it") from None
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    url = origin.get("url", "")
    if "dir_info" in origin:
        folder = unquote(urlsplit(url).path)
        return ["--editable", folder] if origin["dir_info"].get("editable") else [folder]
    if "vcs_info" in origin:
        return [f"{DISTRIBUTION} @ {origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"]
    return [f"{DISTRIBUTION} @ {url}"] if url else [f"{DISTRIBUTION}=={installed.version}"]


def child_variables() -> dict[str, str]:
    """The environment variables for another environment's Python: ours, without those that point at our packages."""
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN}


def _python(path: Path, where: str) -> Path:
    python = interpreter(path) if path.is_dir() else path
    if not python.is_file():
        hint = "give an environment's folder, or its bin/python" if path.is_dir() else ""
        raise ConfigError(f"must be a Python that is there (got {str(path)!r})", where=where, hint=hint)
    if not os.access(python, os.X_OK):
        raise ConfigError(f"must be a program (got {str(python)!r}, which cannot be executed)", where=where)
    return python


def _content(path: Path) -> str:
    """A digest of a file, or of a package's folder without what is made from it."""
    digest = hashlib.sha256()
    for file in sorted(_sources(path)) if path.is_dir() else [path]:
        digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        generated = entry.name.startswith(".") or entry.name in ("__pycache__", "build", "dist")
        if generated or entry.name.endswith(".egg-info") or (entry / "pyvenv.cfg").exists():
            continue
        if entry.is_dir():
            yield from _sources(entry)
        elif entry.is_file():
            yield entry
