"""What the commands about one reward have in common: its name, its options, and where it runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from draft.errors import ConfigError
from draft.pipeline.document import parse_value

Name = Annotated[str, typer.Argument(help="The reward's name, or distribution:name.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="The same as --set.", hidden=True)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the reward, e.g. quality=80; again for more."),
]
Python = Annotated[
    str, typer.Option("--python", metavar="ENV", help="Where the reward is installed: an environment, or its Python.")
]
StandIn = Annotated[bool, typer.Option("--stand-in", help="The small embedded models instead of the reward's weights.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")]
_LITERAL = re.compile(r"""|\{\w+\}|#.*|[^'"\[{].*\s#.*""")
"""Text that YAML would take for nothing, a mapping or a comment, all of which in a file only quotes prevent."""
AUTO = "auto, cpu, cuda, cuda:1, ..."


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Options from ``key=value`` words, the values as in a pipeline file; ``{column}`` and ``#`` need no quotes here.

    Args:
        settings: Words such as ``"quality=80"``.

    Returns:
        Name to value.

    Raises:
        ConfigError: A word has no ``=``, comes twice, or its value is not YAML.
    """
    parsed: dict[str, Any] = {}
    for word in settings:
        key, equals, value = word.partition("=")
        where = f"command line, {word!r}"
        if not (key and equals):
            raise ConfigError(
                f"an option must be key=value (got {word!r})", where="command line", hint="e.g. quality=80"
            )
        if key in parsed:
            raise ConfigError(f"option {key!r} is given twice", where=where)
        try:
            parsed[key] = value if _LITERAL.fullmatch(value) else parse_value(value)
        except ConfigError as error:
            error.where = where
            raise
    return parsed


def check_output(file: Path, *, force: bool) -> None:
    """Refuse, before anything is loaded, a file that is there already or has no folder to be in.

    Args:
        file: The file to write.
        force: Whether it may be overwritten.

    Raises:
        ConfigError: It is there, or cannot be written.
    """
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else "lies in a folder that does not exist"
        raise ConfigError(f"the output {what} (got {str(file)!r})", where="command line")
    if file.exists() and not force:
        raise ConfigError(
            "the output is already there", where=str(file), hint="add --force to overwrite it, or name another file"
        )
