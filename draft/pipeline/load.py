"""From a pipeline file and overrides to a checked `Pipeline`, or to all its errors at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

import draft
from draft.errors import ConfigError, ConfigErrors, DraftError
from draft.pipeline.check import Pipeline, check_document
from draft.pipeline.describe import keys_at
from draft.pipeline.document import Document, parse_document, parse_value
from draft.pipeline.document import Path as Keys
from draft.pipeline.schema import KINDS, Head
from draft.registry.discovery import did_you_mean


def load_pipeline(file: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Load a pipeline file, apply overrides, resolve variables, and check everything that needs no torch.

    Args:
        file: A YAML file, or the name of one that ships with Draft.
        overrides: Changes as full dotted keys, e.g. ``["stages.train.max_steps=20"]``; values are YAML.

    Returns:
        The pipeline, valid as far as can be seen without loading a model.

    Raises:
        ConfigError: Something is wrong; `ConfigErrors` holds several, in the order of the file.
    """
    path = find_pipeline(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the file is not UTF-8 text: byte {error.start}", where=str(path)) from None
    except OSError as error:
        raise ConfigError(f"the file cannot be read: {error.strerror}", where=str(path)) from None
    document, errors = parse_document(text, str(file) if Path(file).is_file() else str(path))
    broken = _apply(document, overrides, errors)
    pipeline, found = check_document(document, path)
    # What could not be resolved is missing only because of that.
    errors += [error for error in found if error.what not in {f"missing key {key!r}" for key in broken}]
    if errors or pipeline is None:
        errors.sort(key=lambda error: _order(error.where, document.name))
        raise errors[0] if len(errors) == 1 else ConfigErrors(errors)
    return pipeline


def find_pipeline(file: str | Path) -> Path:
    """The path of a pipeline file.

    Args:
        file: A path, or the bare name of a shipped pipeline such as ``"quickstart"``.

    Returns:
        An existing file.

    Raises:
        ConfigError: There is neither.
    """
    path = Path(file).expanduser()
    if path.is_file():
        return path
    shipped = {path.stem: path for folder in _shipped_folders() for path in sorted(folder.glob("*.yaml"))}
    if str(file) in shipped:
        return shipped[str(file)]
    names = list(shipped)
    known = f"shipped pipelines: {', '.join(names)}" if names else "give the path of a YAML file"
    what = "a pipeline is a file, not a folder" if path.is_dir() else "no such pipeline file"
    hint = did_you_mean(path.stem, names, otherwise=known) if path.parent == Path() else known
    raise ConfigError(f"{what} (got {str(file)!r})", hint=hint)


def _shipped_folders() -> list[Path]:
    package = Path(draft.__file__).parent
    # A wheel has them inside the package; an editable install has them in the checkout.
    found = [folder for folder in (package / "pipelines", package.parent / "pipelines") if folder.is_dir()]
    return found[:1]


def _order(where: str, name: str) -> tuple[int, int]:
    if where.startswith(f"{name}:") and where.removeprefix(f"{name}:").isdigit():
        return (0, int(where.removeprefix(f"{name}:")))
    return (2, 0) if where.startswith("command line") else (1, 0)


def _apply(document: Document, overrides: Sequence[str], errors: list[DraftError]) -> list[str]:
    """Apply overrides and resolve interpolations in `document.data`; returns the keys that could not be resolved."""
    config = OmegaConf.create()
    for key, value in document.data.items():
        try:
            config[key] = _hold(value, (key,), document, errors)
        except OmegaConfBaseException as error:
            errors.append(ConfigError(_first_line(error), where=document.place((key,))))
    for text in overrides:
        try:
            _override(config, text, document, errors)
        except ConfigError as error:
            error.where = error.where or f"command line, {text!r}"
            errors.append(error)
    broken: list[str] = []
    try:
        document.data = _resolve(config, (), document, errors, broken)
    except RecursionError:
        errors.append(ConfigError("an interpolation contains itself", where=document.name))
    return broken


def _override(config: Any, text: str, document: Document, errors: list[DraftError]) -> None:
    key, equals, value_text = text.partition("=")
    parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"an override must be key=value (got {text!r})", where="command line", hint="e.g. stages.train.max_steps=20"
        )
    _known(config, parts, value_text)
    keys: Keys = ()
    node: Any = config
    for part in parts:
        keys = (*keys, int(part) if OmegaConf.is_list(node) and part.isdigit() else part)
        node = OmegaConf.select(config, ".".join(map(str, keys)), throw_on_missing=False) if _plain(node) else None
    for below in [path for path in document.lines if path[: len(keys)] == keys]:
        del document.lines[below]
    document.places.pop(keys, None)
    document.places[keys] = f"command line, {text!r}"
    value = _hold(parse_value(value_text), keys, document, errors)
    try:
        OmegaConf.update(config, ".".join(parts), value, merge=False, force_add=True)
    except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"cannot set {key!r}: {_first_line(error)}") from None


def _plain(node: Any) -> bool:
    return OmegaConf.is_config(node) and not OmegaConf.is_interpolation(node)


def _known(config: Any, parts: list[str], value: str) -> None:
    first, *rest = parts
    known = keys_at(Head, (), {})
    if first not in known:
        stages = config.get("stages") or {}
        full = [
            f"stages.{name}.{'.'.join(parts)}={value}"
            for name, stage in stages.items()
            if OmegaConf.is_dict(stage) and first in keys_at(KINDS.get(str(stage.get("kind")), Head), (), {})
        ]
        otherwise = f"the keys here are {', '.join(known)}"
        hint = f"keys are written in full: {full[0]}" if full else did_you_mean(first, known, otherwise=otherwise)
        raise ConfigError(f"unknown key {first!r}", hint=hint)
    for group, noun in (("stages", "stage"), ("vars", "variable")):
        names = [str(name) for name in config.get(group) or {}]
        if first == group and rest and rest[0] not in names:
            hint = did_you_mean(rest[0], names, otherwise=f"the {noun}s are {', '.join(names) or 'none'}")
            raise ConfigError(f"unknown {noun} {rest[0]!r}", hint=hint)


def _in_prompts(keys: Keys) -> bool:
    return (keys[:1] == ("stages",) and keys[2:3] == ("prompts",)) or keys[2:4] == ("preview", "prompts")


def _hold(value: Any, keys: Keys, document: Document, errors: list[DraftError]) -> Any:
    """Hide from OmegaConf what it must not read: references, and prompts, which are taken as they are written.

    NUL marks the hidden text: it cannot occur in a YAML file.
    """
    if isinstance(value, dict):
        return {key: _hold(inner, (*keys, key), document, errors) for key, inner in value.items()}
    if isinstance(value, list):
        return [_hold(inner, (*keys, index), document, errors) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    if _in_prompts(keys) and isinstance(keys[-1], int):
        return value.replace("${", "\0$\0{").replace("???", "\0???")
    held = re.sub(r"(?<!\\)\$\{out:([^{}]*)\}", "\0out:\\1\0", value)
    if "${" in held:
        try:
            OmegaConf.create({"value": held})
        except OmegaConfBaseException:
            errors.append(
                ConfigError(
                    f"{'.'.join(map(str, keys))} is not a readable interpolation (got {value!r})",
                    where=document.place(keys),
                    hint="write ${vars.name}, or \\${ for the two characters themselves",
                )
            )
            return ""
    return held


def _release(text: str) -> str:
    return re.sub("\0out:([^\0]*)\0", r"${out:\1}", text).replace("\0$\0{", "${").replace("\0???", "???")


def _resolve(node: Any, keys: Keys, document: Document, errors: list[DraftError], broken: list[str]) -> Any:
    if isinstance(node, str):
        return _release(node)
    if not OmegaConf.is_config(node):
        return node
    found: dict[Any, Any] = {}
    for key in node if OmegaConf.is_dict(node) else range(len(node)):
        here = (*keys, key)
        try:
            value = node[key]
        except (OmegaConfBaseException, RecursionError) as error:
            errors.append(_unresolved(error, here, node, document))
            broken.append(".".join(map(str, here)))
            continue
        found[key] = _resolve(value, here, document, errors, broken)
    return found if OmegaConf.is_dict(node) else list(found.values())


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
        f"{key} cannot be resolved: {_first_line(error)} (got {text!r})",
        where=place,
        hint="write ${vars.name}, ${out:stage.output}, or \\${ for the two characters themselves",
    )


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line[:1].lower() + line[1:]
