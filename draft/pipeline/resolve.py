"""Interpolation: `${vars.name}` becomes its value, while references and prompts stay as they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from draft.errors import ConfigError, DraftError, did_you_mean
from draft.pipeline.document import Document, Entered, Keys, is_prompt, value_at
from draft.pipeline.expression import parse
from draft.pipeline.interpolation import Interpolations, Unset
from draft.pipeline.references import parse_reference
from draft.pipeline.resolvers import UnknownName
from draft.report.withheld import TELLING

DIGEST = "environment:"
"""What stands before the digest of a value that came from the environment, where records need to see it change."""


def readable(value: Any, keys: Keys, document: Document, errors: list[DraftError]) -> Any:
    """Plain data of which every interpolation can be read; a text with another one becomes empty.

    Args:
        value: Plain data.
        keys: Where it stands in the file.
        document: The file, for places.
        errors: Gets every text that is no readable interpolation.

    Returns:
        Plain data, newly made.
    """
    if isinstance(value, dict):
        return {key: readable(inner, (*keys, key), document, errors) for key, inner in value.items()}
    if isinstance(value, list):
        return [readable(inner, (*keys, index), document, errors) for index, inner in enumerate(value)]
    if not isinstance(value, str) or "${" not in value or is_prompt(keys):
        return value
    try:
        parse(value)
    except ValueError:
        errors.append(
            ConfigError(
                f"{'.'.join(map(str, keys))} is not a readable interpolation (got {value!r})",
                where=document.place(keys),
                hint="write ${vars.name}, or \\${ for the two characters themselves",
            )
        )
        return ""
    return value


def plain_data(
    raw: Mapping[str, Any], document: Document, errors: list[DraftError]
) -> tuple[dict[str, Any], list[str], dict[Keys, Entered]]:
    """Resolve all interpolations.

    Args:
        raw: Plain data of which every interpolation can be read.
        document: The file, for places.
        errors: Gets what cannot be resolved.

    Returns:
        Plain data, newly made; the dotted keys that are missing from it because they could not be resolved; and where
        in it something came from the environment.
    """
    work, broken, entered = Interpolations(raw), [], {}

    def resolved(node: Any, keys: Keys) -> Any:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        values: dict[Any, Any] = {}
        for key, inner in items:
            path = (*keys, key)
            if isinstance(inner, dict | list):
                values[key] = resolved(inner, path)
                continue
            try:
                result = work.value(path)
            except (Unset, UnknownName, ValueError) as error:
                errors.append(_unresolved(error, path, inner, document))
                broken.append(".".join(map(str, path)))
                continue
            values[key] = result.value
            entered.update({(*path, *inside): entry for inside, entry in result.entered.items()})
        return values if isinstance(node, dict) else list(values.values())

    return resolved(raw, ()), broken, entered


def within(entered: Mapping[Keys, Entered], keys: Keys) -> dict[Keys, Entered]:
    """What came from the environment inside a place, by its keys from there."""
    return {path[len(keys) :]: entry for path, entry in entered.items() if path[: len(keys)] == keys}


def masked(value: Any, entered: Mapping[Keys, Entered], keys: Keys = (), numbers: Collection[Keys] = ()) -> Any:
    """Plain data with a digest for entry value that came from the environment, so that a record sees it change.

    Args:
        value: Plain data.
        entered: Where in it something came from the environment.
        keys: Where it is.
        numbers: Numbers at these keys stay as they are.

    Returns:
        Plain data, newly made where something was replaced.
    """
    if not entered:
        return value
    if keys in entered and not (keys in numbers and not isinstance(value, str)):
        if value is None or (isinstance(value, str) and value.startswith(DIGEST)):
            return value
        return DIGEST + hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
    if isinstance(value, Mapping):
        return {key: masked(inner, entered, (*keys, key), numbers) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, entered, (*keys, index), numbers) for index, inner in enumerate(value)]
    return value


def escaped(value: Any, keys: Keys, entered: Mapping[Keys, Entered]) -> Any:
    """Plain data as a file must have it, so that it is read back as it is: every `${` that is no reference escaped.

    Args:
        value: A stage, or a part of one.
        keys: Where in the stage it stands; prompts are taken as they are written.
        entered: Where in the stage something came from the environment: that stands in the file by its variable's
            name, for it may be a secret.

    Returns:
        Plain data, newly made.
    """
    if keys in entered:
        return written(value, entered[keys])
    if isinstance(value, Mapping):
        return {key: escaped(inner, (*keys, key), entered) for key, inner in value.items()}
    if isinstance(value, list):
        return [escaped(inner, (*keys, index), entered) for index, inner in enumerate(value)]
    if not isinstance(value, str) or parse_reference(value) or is_prompt(("stages", "", *keys)):
        return value
    return value.replace("${", "\\${")


def written(value: Any, entered: Entered) -> str:
    """A value that came from the environment as a file may have it.

    Args:
        value: The value, which may be the entered one made absolute.
        entered: What came from the environment.

    Returns:
        The text that makes it again.
    """
    if isinstance(value, str) and isinstance(entered.value, str) and entered.value and value.endswith(entered.value):
        return value.removesuffix(entered.value).replace("${", "\\${") + entered.source
    return entered.source


def texts(entered: Mapping[Keys, Entered]) -> dict[str, str]:
    """The texts that came from the environment, and the names of files among them, to what makes each.

    Args:
        entered: Where something came from the environment.

    Returns:
        A text that no page or report may hold, to what it has there.
    """
    values = {str(entry.value): entry.source for entry in entered.values() if isinstance(entry.value, str)}
    names = {Path(text).name: source for text, source in values.items() if "/" in text or "\\" in text}
    return {text: source for text, source in {**names, **values}.items() if text}


def withheld(message: str, entered: Mapping[Keys, Entered]) -> str:
    """A message without the texts that came from the environment, which may be secrets: logs are read by others.

    Args:
        message: The message; what it received is quoted.
        entered: Where in the file something came from the environment.

    Returns:
        The message with the expressions that made the texts.
    """
    for text, source in sorted(texts(entered).items(), key=lambda pair: -len(pair[0])):
        message = message.replace(repr(text), repr(source))
        if len(text) >= TELLING:
            message = message.replace(text, source)
    return message


def _unresolved(error: Exception, keys: Keys, text: Any, document: Document) -> ConfigError:
    place, key = document.place(keys), ".".join(map(str, keys))
    if isinstance(error, Unset):
        return ConfigError(f"{key} must be given (got '???')", where=place)
    if isinstance(error, UnknownName):
        head, _, last = error.name.rpartition(".")
        variables = value_at(document.data, ("vars",))
        names = [str(name) for name in variables] if head in ("", "vars") and isinstance(variables, dict) else []
        hint = did_you_mean(last, names, otherwise=f"the variables are {', '.join(names)}" if names else "")
        if not head and last in names:
            hint = f"write ${{vars.{last}}}"
        return ConfigError(f"{key} names an unknown key {error.name!r} (got {text!r})", where=place, hint=hint)
    return ConfigError(
        f"{key} cannot be resolved: {error} (got {text!r})",
        where=place,
        hint="write ${vars.name}, ${out:stage.output}, or \\${ for the two characters themselves",
    )
