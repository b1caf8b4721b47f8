"""A new reward package: everything a stranger needs to publish one, and tests that pass as they stand."""

from __future__ import annotations

import json
import keyword
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from draft.errors import ConfigError
from draft.rewards.discovery import REWARDS, all_entries
from draft.rewards.reward import Reward

LONGEST = 40
"""Most characters of a reward's name: it becomes part of the names of files and of the distribution."""
REQUIREMENT = "draft-diffusion>=0.1,<1"
"""What a new package needs: any Draft that may understand it; `api_version` decides when the reward is loaded."""
LICENCE = "LICENSE"
_PLACEHOLDER = "YOUR NAME"
"""What is to be replaced before a package is published; its workflow refuses to publish it."""


@dataclass(frozen=True)
class Names:
    """What a reward, its class, its module and its distribution are called.

    Args:
        reward: The reward's name, e.g. ``"warm_light"``.
    """

    reward: str

    @property
    def class_name(self) -> str:
        """``"WarmLight"``."""
        name = "".join(word.capitalize() for word in self.reward.split("_"))
        # The module imports a Sequence already.
        return "SequenceReward" if name == "Sequence" else name

    @property
    def module(self) -> str:
        """``"draft_reward_warm_light"``."""
        return f"draft_reward_{self.reward}"

    @property
    def distribution(self) -> str:
        """``"draft-reward-warm-light"``."""
        return f"draft-reward-{re.sub('_+', '-', self.reward).strip('-')}"


def check_name(name: str) -> Names:
    """Check that a new reward may be called so.

    Args:
        name: The name.

    Returns:
        What its parts are called.

    Raises:
        ConfigError: It is no name for Python and YAML, or an installed reward has it.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > LONGEST:
        better = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")[:LONGEST]
        hint = f"such as {better!r}" if re.match(r"[a-z]", better) else "such as 'warm_light'"
        raise ConfigError(
            f"a reward's name must be lower-case letters, digits and '_', a letter first, "
            f"at most {LONGEST} characters (got {name!r})",
            where="command line",
            hint=hint,
        )
    if keyword.iskeyword(name) or name in ("true", "false", "null"):
        raise ConfigError(
            f"a reward's name must not be a word of Python or YAML (got {name!r})",
            where="command line",
            hint=f"such as '{name}_reward'",
        )
    if existing := [entry for entry in all_entries(REWARDS) if entry.name == name]:
        raise ConfigError(
            f"there is a reward {name!r} already, from {existing[0].source}",
            where="command line",
            hint="choose another name; `draft rewards list` shows those that are taken",
        )
    return Names(name)


@dataclass(frozen=True)
class Author:
    """Whose package it is.

    Args:
        name: As in the licence and the metadata.
        email: Empty: none is given.
        url: The repository's address; empty: a placeholder.
    """

    name: str = _PLACEHOLDER
    email: str = ""
    url: str = ""


def check_author(author: str, url: str) -> Author:
    """Read an author as people write one.

    Args:
        author: ``"Name"`` or ``"Name <mail@example.org>"``; empty: a placeholder.
        url: The repository's address; empty: a placeholder.

    Returns:
        The author.

    Raises:
        ConfigError: It is none.
    """
    match = re.fullmatch(r"([^<>\n]+?)\s*(?:<([^<>@\s]+@[^<>@\s]+)>)?", author.strip() or _PLACEHOLDER)
    if match is None:
        raise ConfigError(
            f"must be a name, or 'Name <mail@example.org>' (got {author!r})", where="command line, --author"
        )
    if url and not re.fullmatch(r"https?://[^\s\"\\]+", url):
        raise ConfigError(f"must be an address such as https://... (got {url!r})", where="command line, --url")
    return Author(match[1], match[2] or "", url)


def write_package(names: Names, folder: Path, author: Author | None = None) -> list[Path]:
    """Write the package of a new reward; files that are there are never touched.

    Args:
        names: As `check_name` gives them.
        folder: Where to; made if need be, and may hold other files. A licence that is there stays.
        author: Whose it is; None: placeholders.

    Returns:
        The files written, in the order in which an author reads them.

    Raises:
        ConfigError: A file is there already, or cannot be written.
    """
    files = {folder / path: text for path, text in package_files(names, author).items()}
    if (folder / LICENCE).is_file():
        del files[folder / LICENCE]
    if existing := [file for file in files if file.exists() or file.is_symlink()]:
        raise ConfigError(
            f"there is a file already, and nothing is overwritten (got {str(existing[0])!r})",
            where="command line",
            hint="give another folder with -o",
        )
    try:
        for file, text in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
    except OSError as error:
        raise ConfigError(
            f"cannot write the package: {error.strerror} (got {str(error.filename or folder)!r})", where="command line"
        ) from error
    return list(files)


def package_files(names: Names, author: Author | None = None) -> dict[str, str]:
    """The files of a new reward's package.

    Args:
        names: What its parts are called.
        author: Whose it is; None: placeholders.

    Returns:
        Path in the package to content.
    """
    author = author or Author()
    url = author.url or f"https://github.com/{_PLACEHOLDER.replace(' ', '-')}/{names.distribution}"
    mail = f", email = {json.dumps(author.email)}" if author.email else ""
    words = {
        "name": names.reward,
        "class_name": names.class_name,
        "module": names.module,
        "distribution": names.distribution,
        "api_version": str(Reward.api_version),
        "requirement": REQUIREMENT,
        "author_name": author.name,
        "author_toml": f"{{ name = {json.dumps(author.name, ensure_ascii=False)}{mail} }}",
        "url_toml": json.dumps(url),
    }
    sources = {
        f"{names.module}/__init__.py": "package.py",
        f"tests/test_{names.reward}.py": "test.py",
        "tests/test_wheel.py": "test_wheel.py",
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        LICENCE: "LICENSE",
        ".github/workflows/test.yml": "workflow.yml",
        ".github/workflows/publish.yml": "publish.yml",
        ".gitignore": "gitignore",
    }
    folder = resources.files("draft.authoring") / "template"
    files = {
        path: Template((folder / f"{source}.template").read_text(encoding="utf-8")).substitute(words)
        for path, source in sources.items()
    }
    return files | {f"{names.module}/py.typed": ""}
