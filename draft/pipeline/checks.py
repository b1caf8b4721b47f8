"""What a stage works on - prompts, rewards, a model, files - found and checked without torch.

Each function appends what is wrong to `errors` and goes on, so that all errors of a file come at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from draft.errors import ConfigError, ConfigErrors, DraftError, did_you_mean
from draft.files import usable
from draft.isolation.reward import isolated_reward
from draft.pipeline.document import Document, Keys, put
from draft.pipeline.fields import walk
from draft.pipeline.isolated import read_isolation, written
from draft.pipeline.kinds.kind import HeldFile, Inputs
from draft.prompts import load_prompts
from draft.rewards.discovery import EXTENSIONS, turned_off
from draft.rewards.extensions import derived_model, model_place, named_model, named_models
from draft.rewards.reward import Term
from draft.rewards.terms import build_term
from draft.types import Prompts

Base: TypeAlias = Callable[[Keys], Path]
"""The folder that a relative path at these keys starts from."""

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def find_inputs(
    settings: type[Any], data: dict[str, Any], keys: Keys, document: Document, base: Base, errors: list[DraftError]
) -> Inputs:
    """Find what a stage works on, by the marks of its settings.

    Args:
        settings: The dataclass of its settings.
        data: Its plain data, a copy; paths in it become absolute.
        keys: Where it is.
        document: The file, for the places of errors.
        base: The folder that a relative path at some keys starts from.
        errors: Gets what is wrong.

    Returns:
        What could be found.
    """
    places = [place for place in walk(settings, data) if place.holds]
    prompts: dict[Keys, Prompts] = {}
    terms: dict[Keys, tuple[Term, ...]] = {}
    model, files = "", []
    for place in (place for place in places if place.holds == "prompts"):
        read, located = check_prompts(place.value, (*keys, *place.keys), document, base, errors)
        put(data, place.keys, located)
        if read is not None:
            prompts[place.keys] = read
    for place in places:
        full_keys = (*keys, *place.keys)
        match place.holds:
            case "prompts":
                pass
            case "rewards":
                term_prompts = prompts.get((*place.keys[:-1], "prompts"))
                checked, located = check_rewards(place.value, full_keys, term_prompts, document, base, errors)
                put(data, place.keys, located)
                terms[place.keys] = tuple(checked)
            case "model":
                model, name = check_model(place.value, full_keys, document, base, errors)
                put(data, place.keys, name)
            case output:
                source = check_file(place.value, output, full_keys, document, base, errors)
                if source:
                    put(data, place.keys, source)
                    files.append(HeldFile(place.keys, output, source))
    return Inputs(model=model, prompts=prompts, terms=terms, files=tuple(files))


def check_prompts(
    source: Any, keys: Keys, document: Document, base: Base, errors: list[DraftError]
) -> tuple[Prompts | None, Any]:
    """Read prompts.

    Args:
        source: A list, or a mapping with a file.
        keys: Where it is.
        document: The file, for the places of errors.
        base: The folder that a relative path at some keys starts from.
        errors: Gets what is wrong.

    Returns:
        The prompts (None where the schema has something to say), and the source with an absolute path.
    """
    if isinstance(source, list):
        if not all(isinstance(text, str) for text in source):
            return None, source
        for index, text in enumerate(source):
            if text and not text.strip():
                place, key = document.place((*keys, index)), ".".join(map(str, (*keys, index)))
                errors.append(ConfigError(f"{key} is empty text", where=place))
        return Prompts(source), source
    if not isinstance(source, Mapping) or not isinstance(source.get("file"), str) or not source["file"]:
        return None, source
    file_keys = (*keys, "file")
    located: Any = source
    try:
        path = usable(source["file"], base(file_keys))
        located = {**source, "file": str(path)}
        return load_prompts(path, where=document.place(file_keys)), located
    except DraftError as error:
        error.where = error.where or document.place(file_keys)
        errors.append(error)
        return None, located


def check_rewards(
    rewards: Any, keys: Keys, prompts: Prompts | None, document: Document, base: Base, errors: list[DraftError]
) -> tuple[list[Term], Any]:
    """Make reward terms, and look for the columns that their options name.

    Args:
        rewards: Label to options.
        keys: Where they are.
        prompts: The prompts that they will see.
        document: The file, for the places of errors.
        base: The folder that a relative path at some keys starts from.
        errors: Gets what is wrong.

    Returns:
        The terms, and the rewards with absolute paths in `isolated`.
    """
    terms: list[Term] = []
    if not isinstance(rewards, Mapping):
        return terms, rewards  # the schema says so
    located: dict[str, Any] = dict(rewards)
    for label, options in rewards.items():
        term_keys = (*keys, label)
        prefix = ".".join(map(str, term_keys))
        if options is not None and not isinstance(options, Mapping):
            continue  # the schema says so
        reward_options, make = dict(options or {}), None
        if (value := reward_options.pop("isolated", None)) is not None:
            isolation = read_isolation(value, (*term_keys, "isolated"), document, base, errors)
            if isolation is None:
                continue
            located[label] = {**reward_options, "isolated": written(isolation, value)}
            make = partial(isolated_reward, isolation)
        try:
            term = build_term(label, reward_options, where=prefix, make=make)
        except DraftError as error:
            for problem in error.errors if isinstance(error, ConfigErrors) else [error]:
                errors.append(_placed(problem, prefix, term_keys, document))
            continue
        terms.append(term)
        for option, value in _texts(term.reward.model_dump(mode="json"), ()):
            match = re.fullmatch(r"\{(\w+)\}", value)
            if match and prompts is not None and match[1] not in ("prompt", *prompts.columns):
                columns = ", ".join(prompts.columns) or "none"
                named = f"{prefix}.{option} names the column {match[1]!r}"
                errors.append(
                    ConfigError(
                        f"{named}, which the prompts do not have (columns: {columns})",
                        where=document.place((*term_keys, *option.split("."))),
                        hint="columns come from a csv or jsonl prompt file",
                    )
                )
    return terms, located


def _placed(error: DraftError, prefix: str, keys: Keys, document: Document) -> DraftError:
    """An error of a reward's options, moved from its dotted key to its line."""
    where = error.where if error.where.startswith(prefix) else prefix
    dotted = where.removeprefix(prefix).strip(".")
    indexed = tuple(int(part) if part.isdigit() else part for part in dotted.split(".")) if dotted else ()
    error.where = document.place((*keys, *indexed))
    if error.what.startswith("must "):
        error.what = f"{where} {error.what}"
        error.args = (error.what,)
    return error


def _texts(value: Any, keys: tuple[str, ...]) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [(".".join(keys), value)]
    if isinstance(value, Mapping):
        return [text for key, inner in value.items() for text in _texts(inner, (*keys, str(key)))]
    if isinstance(value, list):
        return [text for index, inner in enumerate(value) for text in _texts(inner, (*keys, str(index)))]
    return []


def check_model(name: Any, keys: Keys, document: Document, base: Base, errors: list[DraftError]) -> tuple[str, Any]:
    """Find a text-to-image model.

    A registered name wins over a folder of the same name, as it does in the options of rewards.

    Args:
        name: A registered name, a folder, a file or a hub id.
        keys: Where it is.
        document: The file, for the places of errors.
        base: The folder that a relative path at some keys starts from.
        errors: Gets what is wrong.

    Returns:
        Where the model is, empty where it cannot be, and its name as it is written down: a local one by its absolute
        path.
    """
    if not isinstance(name, str) or not name or "${out:" in name:
        return "", name  # the schema or the references say so
    try:
        path = usable(name, base(keys))
        registered = model_place(name)
        if registered != name:
            _check_named(name, registered)
            return registered, name
        if path.suffix in _PICKLES and not path.is_dir():
            what = f"a model's weights must be safetensors, in a folder or a single file (got {name!r})"
            raise ConfigError(what, hint="Draft never loads pickles, which can run code; convert the file first")
        if path.exists():
            return str(path), str(path)
        if name[0] in "./~\\" or path.suffix == ".safetensors":
            raise ConfigError(f"no such model (got {name!r}, which is {str(path)!r})")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
            otherwise = f"give a folder, a hub id such as owner/name, or one of {', '.join(_text_to_image())}"
            hint = did_you_mean(name, _text_to_image(), otherwise=turned_off(EXTENSIONS) or otherwise)
            raise ConfigError(f"no such model (got {name!r})", hint=hint)
    except DraftError as error:
        error.where = document.place(keys)
        errors.append(error)
        return "", name
    return name, name


def _check_named(name: str, path: str) -> None:
    model = named_model(name)
    if model is not None and model.kind != _DRAWS:
        known = ", ".join(_text_to_image()) or "none"
        what = f"the model {name!r} is no {_DRAWS} model (it is registered as {model.kind})"
        raise ConfigError(what, hint=f"registered models of that kind: {known}")
    if not Path(path).exists() and derived_model(path) is None:
        raise ConfigError(f"the model {name!r} has no weights (nothing at {path!r})")


_DRAWS = "text-to-image"


def _text_to_image() -> list[str]:
    return [name for name, model in named_models().items() if model.kind == _DRAWS]


def check_file(source: Any, output: str, keys: Keys, document: Document, base: Base, errors: list[DraftError]) -> str:
    """Find a file that a stage names, or see that it is a reference.

    Args:
        source: A path or a reference.
        output: The name of the output that it is, or could be.
        keys: Where it is.
        document: The file, for the places of errors.
        base: The folder that a relative path at some keys starts from.
        errors: Gets what is wrong.

    Returns:
        The reference, or the absolute path; nothing where there is none, or something is wrong with it.
    """
    if not isinstance(source, str) or not source:
        return ""  # the schema says so, or there is none
    if "${out:" in source:
        return source
    try:
        path = usable(source, base(keys))
    except DraftError as error:
        error.where = document.place(keys)
        errors.append(error)
        return ""
    adapter = output == "adapter"  # which may be a peft folder
    if not (path.exists() if adapter else path.is_file()):
        errors.append(ConfigError(f"no such file (got {str(path)!r})", where=document.place(keys)))
        return ""
    if adapter and path.is_file() and path.suffix != ".safetensors":
        what = f"an adapter must be a .safetensors file (got {str(path)!r})"
        errors.append(ConfigError(what, where=document.place(keys), hint="Draft never loads pickles"))
        return ""
    return str(path)
