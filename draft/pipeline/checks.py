"""What a stage is made of - prompts, rewards, a model, files - found and checked without torch.

Each function appends what is wrong to `errors` and goes on, so that all errors of a file come at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from draft.errors import ConfigError, ConfigErrors, DraftError, did_you_mean
from draft.isolation.reward import isolated_reward
from draft.methods.values.problems import method_problems
from draft.pipeline.document import Document
from draft.pipeline.document import Path as Keys
from draft.pipeline.isolated import read_isolation, written
from draft.prompts import load_prompts
from draft.rewards.extensions import derived_model, model_place, named_models
from draft.rewards.parts import without_gradient
from draft.rewards.reward import Term
from draft.rewards.terms import build_term
from draft.training.settings import TrainSettings
from draft.types import Prompts

Base: TypeAlias = Callable[[Keys], Path]
"""The folder that a relative path at these keys starts from."""


def check_prompts(
    data: dict[str, Any], keys: Keys, document: Document, base: Base, errors: list[DraftError]
) -> Prompts | None:
    """Read a stage's prompts; makes the path of a file in `data` absolute."""
    source = data.get("prompts")
    if isinstance(source, list):
        if not all(isinstance(text, str) for text in source):
            return None  # the schema says so
        for index, text in enumerate(source):
            if text and not text.strip():
                place = document.place((*keys, "prompts", index))
                errors.append(ConfigError(f"{'.'.join(keys)}.prompts.{index} is empty text", where=place))  # type: ignore[arg-type]
        return Prompts(source)
    if not isinstance(source, Mapping) or not isinstance(source.get("file"), str) or not source["file"]:
        return None
    here = (*keys, "prompts", "file")
    path = base(here) / Path(source["file"]).expanduser()
    data["prompts"] = {**source, "file": str(path)}
    try:
        return load_prompts(path, where=document.place(here))
    except DraftError as error:
        errors.append(error)
        return None


def check_rewards(
    data: dict[str, Any], keys: Keys, prompts: Prompts | None, document: Document, base: Base, errors: list[DraftError]
) -> list[Term]:
    """Make a stage's reward terms, and look for the columns that their options name.

    Makes the paths of `isolated` in `data` absolute.
    """
    terms: list[Term] = []
    rewards = data.get("rewards")
    for label, options in rewards.items() if isinstance(rewards, Mapping) else ():
        here = (*keys, "rewards", label)
        prefix = ".".join(map(str, here))
        if options is not None and not isinstance(options, Mapping):
            continue  # the schema says so
        own, make = dict(options or {}), None
        if (value := own.pop("isolated", None)) is not None:
            isolation = read_isolation(value, (*here, "isolated"), document, base, errors)
            if isolation is None:
                continue
            located = {**own, "isolated": written(isolation, value)}
            data["rewards"] = {**data["rewards"], label: located}
            make = partial(isolated_reward, isolation)
        try:
            term = build_term(label, own, where=prefix, make=make)
        except DraftError as error:
            for each in error.errors if isinstance(error, ConfigErrors) else [error]:
                errors.append(_placed(each, prefix, here, document))
            continue
        terms.append(term)
        for option, value in _texts(term.reward.model_dump(mode="json"), ()):
            match = re.fullmatch(r"\{(\w+)\}", value)
            if match and prompts is not None and match[1] not in ("prompt", *prompts.columns):
                known = ", ".join(prompts.columns) or "none"
                named = f"{prefix}.{option} names the column {match[1]!r}"
                errors.append(
                    ConfigError(
                        f"{named}, which the prompts do not have (columns: {known})",
                        where=document.place((*here, *option.split("."))),
                        hint="columns come from a csv or jsonl prompt file",
                    )
                )
    return terms


def _placed(error: DraftError, prefix: str, keys: Keys, document: Document) -> DraftError:
    """An error of a reward's options, moved from its dotted key to its line."""
    where = error.where if error.where.startswith(prefix) else prefix
    rest = where.removeprefix(prefix).strip(".")
    indexed = tuple(int(part) if part.isdigit() else part for part in rest.split(".")) if rest else ()
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


def check_model(data: dict[str, Any], keys: Keys, document: Document, base: Base, errors: list[DraftError]) -> str:
    """Find a stage's model; makes the path of a local one in `data` absolute.

    A registered name wins over a folder of the same name, as it does in the options of rewards.
    """
    name = data.get("model")
    here = (*keys, "model")
    if not isinstance(name, str) or not name or "${out:" in name:
        return ""  # the schema or the references say so
    place = document.place(here)
    path = base(here) / Path(name).expanduser()
    try:
        found = model_place(name)
        if found != name:
            if not Path(found).exists() and derived_model(found) is None:
                raise ConfigError(f"the model {name!r} has no weights (nothing at {found!r})")
            return found
        if path.exists():
            data["model"] = str(path)
            return str(path)
        if name[0] in "./~\\" or Path(name).suffix in (".safetensors", ".ckpt", ".pt", ".bin"):
            raise ConfigError(f"no such model (got {name!r}, which is {str(path)!r})")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
            known = list(named_models())
            otherwise = f"give a folder, a hub id such as owner/name, or one of {', '.join(known)}"
            raise ConfigError(f"no such model (got {name!r})", hint=did_you_mean(name, known, otherwise=otherwise))
    except DraftError as error:
        error.where = place
        errors.append(error)
    return name


def check_files(
    data: dict[str, Any], keys: Keys, document: Document, base: Base, errors: list[DraftError]
) -> dict[str, str]:
    """Find the adapters and curves that a stage names; makes their paths in `data` absolute."""
    files: dict[str, str] = {}
    for group in ("adapters", "curves"):
        if not isinstance(entries := data.get(group), Mapping):
            continue
        data[group] = dict(entries)
        for label, entry in entries.items():
            key = None if group == "curves" else "from"
            found, value = _file(entry, (*keys, group, label), key, document, base, errors)
            data[group][label] = found
            files |= {f"{group}.{label}": value} if value else {}
    if "adapter" in data:
        data["adapter"], value = _file(data["adapter"], (*keys, "adapter"), "from", document, base, errors)
        files |= {"adapter": value} if value else {}
    if "init_adapter" in data:
        data["init_adapter"], value = _file(data["init_adapter"], (*keys, "init_adapter"), None, document, base, errors)
        files |= {"init_adapter": value} if value else {}
    if isinstance(entries := data.get("base_adapters"), list):
        data["base_adapters"] = list(entries)
        for index, entry in enumerate(entries):
            here = (*keys, "base_adapters", index)
            data["base_adapters"][index], value = _file(entry, here, "file", document, base, errors)
            files |= {f"base_adapters.{index}": value} if value else {}
    return files


def _file(
    entry: Any, keys: Keys, key: str | None, document: Document, base: Base, errors: list[DraftError]
) -> tuple[Any, str]:
    """An entry that is a file or has one under a key, with an absolute path, and that path or reference."""
    here = keys if key is None else (*keys, key)
    value = entry if key is None else entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(value, str) or not value:
        return entry, ""  # the schema says so, or there is none
    if "${out:" in value:
        return entry, value
    path = base(here) / Path(value).expanduser()
    adapter = keys[2] != "curves"
    if not (path.exists() if adapter else path.is_file()):
        errors.append(ConfigError(f"no such file (got {str(path)!r})", where=document.place(here)))
    elif adapter and path.is_file() and path.suffix != ".safetensors":
        what = f"an adapter must be a .safetensors file (got {str(path)!r})"
        errors.append(ConfigError(what, where=document.place(here), hint="Draft never loads pickles"))
    return str(path) if key is None else {**entry, key: str(path)}, str(path)


def check_training(
    config: TrainSettings, keys: Keys, terms: list[Term], document: Document, errors: list[DraftError]
) -> None:
    """Check what only a training forbids: what its method cannot do, and why."""
    prefix = ".".join(map(str, keys))

    def refuse(what: str, *place: Any, hint: str = "") -> None:
        errors.append(ConfigError(what, where=document.place((*keys, *place)), hint=hint))

    for problem in method_problems(config):
        refuse(f"{prefix}.{problem.what}", *problem.keys, hint=problem.hint)
    for term in terms:
        if not term.weight:
            continue
        if config.method.traits.reward_gradient:
            for inner, reward in without_gradient(term.reward):
                refuse(
                    f"reward {reward.name!r} has no gradient, so {config.method.kind} cannot train for it",
                    *("rewards", term.label, *inner),
                    hint="measure it in an evaluate stage instead, or train by ddpo or best_of_n",
                )
        if not term.reward.per_image and config.loss.kind != "linear":
            refuse(
                f"{prefix}.loss must be linear with reward {term.reward.name!r}, whose scores depend on the batch "
                f"(got {config.loss.kind})",
                *("loss",),
                hint="other losses need each image's own gradient",
            )
        if not term.reward.per_image and config.method.traits.weighs_samples:
            refuse(
                f"{config.method.kind} cannot train for reward {term.reward.name!r}, whose scores depend on the batch: "
                "the method weighs each sample by itself",
                *("rewards", term.label),
                hint="use draft_lv or flow_bp_sparse",
            )
