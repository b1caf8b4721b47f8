"""A new reward package: everything a stranger needs to publish one, and tests that pass as they stand."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from draft.errors import ConfigError
from draft.rewards.discovery import REWARDS, all_entries

LONGEST = 40
"""Most characters of a reward's name: it becomes part of the names of files and of the distribution."""


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


def write_package(names: Names, folder: Path) -> list[Path]:
    """Write the package of a new reward; files that are there are never touched.

    Args:
        names: As `check_name` gives them.
        folder: Where to; made if need be, and may hold other files, such as a licence.

    Returns:
        The files written, in the order in which an author reads them.

    Raises:
        ConfigError: A file is there already, or cannot be written.
    """
    files = {folder / path: text for path, text in package_files(names).items()}
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


def package_files(names: Names) -> dict[str, str]:
    """The files of a new reward's package.

    Args:
        names: What its parts are called.

    Returns:
        Path in the package to content.
    """
    words = {
        "name": names.reward,
        "class_name": names.class_name,
        "module": names.module,
        "distribution": names.distribution,
    }
    sources = {
        f"{names.module}.py": "module.py",
        f"tests/test_{names.reward}.py": "test.py",
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".github/workflows/test.yml": "workflow.yml",
        ".gitignore": "gitignore",
    }
    folder = resources.files("draft.authoring") / "template"
    return {
        path: Template((folder / f"{source}.template").read_text(encoding="utf-8")).substitute(words)
        for path, source in sources.items()
    }
