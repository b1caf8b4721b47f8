"""Interpolation: `${vars.name}` becomes its value, while references and prompts stay as they are written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from draft.errors import ConfigError, DraftError, did_you_mean
from draft.pipeline.document import Document, Keys
from draft.pipeline.references import parse_reference


def hold(value: Any, keys: Keys, document: Document, errors: list[DraftError]) -> Any:
    """Hide from OmegaConf what it must not read: references, and prompts, which are taken as they are written.

    NUL marks the hidden text: it cannot occur in a YAML file.

    Args:
        value: Plain data.
        keys: Where it stands in the file.
        document: The file, for places.
        errors: Gets every text that is no readable interpolation.

    Returns:
        What OmegaConf may have.
    """
    if isinstance(value, dict):
        return {key: hold(inner, (*keys, key), document, errors) for key, inner in value.items()}
    if isinstance(value, list):
        return [hold(inner, (*keys, index), document, errors) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    if keys[:1] == ("stages",) and _is_prompt(keys[2:]):
        return value.replace("${", "\0$\0{").replace("???", "\0???")
    hidden = re.sub(r"(?<!\\)\$\{out:([^{}]*)\}", "\0out:\\1\0", value)
    if "${" in hidden:
        try:
            OmegaConf.create({"value": hidden})
        except OmegaConfBaseException:
            errors.append(
                ConfigError(
                    f"{'.'.join(map(str, keys))} is not a readable interpolation (got {value!r})",
                    where=document.place(keys),
                    hint="write ${vars.name}, or \\${ for the two characters themselves",
                )
            )
            return ""
    return hidden


def plain_data(config: Any, document: Document, errors: list[DraftError]) -> tuple[dict[str, Any], list[str]]:
    """Resolve all interpolations.

    Args:
        config: OmegaConf's configuration, made of what `hold` returned.
        document: The file, for places.
        errors: Gets what cannot be resolved.

    Returns:
        Plain data, newly made, and the dotted keys that are missing from it because they could not be resolved.
    """
    broken: list[str] = []
    try:
        return _resolve(config, (), document, errors, broken), broken
    except RecursionError:
        errors.append(ConfigError("an interpolation contains itself", where=document.name))
        return dict(document.data), broken


def environment_values(raw: Any) -> Mapping[str, str]:
    """The values that a file takes from the environment, which may be secrets.

    Args:
        raw: Plain data before interpolation.

    Returns:
        Value to name of the variables that it names; of all variables, where a name is itself an interpolation.
    """
    if isinstance(raw, Mapping):
        return _united(raw.values())
    if isinstance(raw, list):
        return _united(raw)
    if not isinstance(raw, str) or "oc.env" not in raw:
        return {}
    names = re.findall(r"oc\.env:\s*([A-Za-z0-9_]+)\s*[,}]", raw)
    variables = names if len(names) == raw.count("oc.env") else list(os.environ)
    return {os.environ[name]: name for name in variables if os.environ.get(name)}


def escaped(value: Any, keys: Keys, environment: Mapping[str, str]) -> Any:
    """Plain data as a file must have it, so that it is read back as it is: every `${` that is no reference escaped.

    Args:
        value: A stage, or a part of one.
        keys: Where in the stage it stands; prompts are taken as they are written.
        environment: Value to name of variables, which stand in the file by their names: they may be secrets.

    Returns:
        Plain data, newly made.
    """
    if isinstance(value, Mapping):
        return {key: escaped(inner, (*keys, key), environment) for key, inner in value.items()}
    if isinstance(value, list):
        return [escaped(inner, (*keys, index), environment) for index, inner in enumerate(value)]
    if not isinstance(value, str) or parse_reference(value) or _is_prompt(keys):
        return value
    longest_first = sorted(environment, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", value) if environment else [value]
    return "".join(
        f"${{oc.env:{environment[part]}}}" if part in environment else part.replace("${", "\\${") for part in parts
    )


def first_line(error: Exception) -> str:
    """An error of OmegaConf in one line that begins like ours."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line[:1].lower() + line[1:]


def _united(parts: Iterable[Any]) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for part in parts:
        values |= environment_values(part)
    return values


def _is_prompt(keys: Keys) -> bool:
    """Whether a text in a stage is one of its prompts, wherever it has them; options of rewards are not."""
    return keys[-2:-1] == ("prompts",) and isinstance(keys[-1], int) and "rewards" not in keys


def _release(text: str) -> str:
    return re.sub("\0out:([^\0]*)\0", r"${out:\1}", text).replace("\0$\0{", "${").replace("\0???", "???")


def _resolve(node: Any, keys: Keys, document: Document, errors: list[DraftError], broken: list[str]) -> Any:
    if isinstance(node, str):
        return _release(node)
    if not OmegaConf.is_config(node):
        return node
    resolved: dict[Any, Any] = {}
    for key in node if OmegaConf.is_dict(node) else range(len(node)):
        inner_keys = (*keys, key)
        try:
            value = node[key]
        except (OmegaConfBaseException, RecursionError) as error:
            errors.append(_unresolved(error, inner_keys, node, document))
            broken.append(".".join(map(str, inner_keys)))
            continue
        resolved[key] = _resolve(value, inner_keys, document, errors, broken)
    return resolved if OmegaConf.is_dict(node) else list(resolved.values())


def _unresolved(error: Exception, keys: Keys, node: Any, document: Document) -> ConfigError:
    place, key = document.place(keys), ".".join(map(str, keys))
    text = _release(str(OmegaConf.to_container(node, resolve=False)[keys[-1]]))  # type: ignore[index,call-overload]
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{key} must be given (got '???')", where=place)
    if isinstance(error, InterpolationKeyError) and (match := re.search(r"key '([^']*)' not found", str(error))):
        head, _, last = match[1].rpartition(".")
        names = [str(name) for name in document.data.get("vars") or {}] if head in ("", "vars") else []
        hint = did_you_mean(last, names, otherwise=f"the variables are {', '.join(names)}" if names else "")
        if not head and last in names:
            hint = f"write ${{vars.{last}}}"
        return ConfigError(f"{key} names an unknown key {match[1]!r} (got {text!r})", where=place, hint=hint)
    return ConfigError(
        f"{key} cannot be resolved: {first_line(error)} (got {text!r})",
        where=place,
        hint="write ${vars.name}, ${out:stage.output}, or \\${ for the two characters themselves",
    )
