"""Rehearsals: the same pipeline at small scale on the embedded models, by declared stand-ins."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from draft.diffusion.families import families, trainable
from draft.errors import ConfigError, DraftError
from draft.isolation.reward import IsolatedReward
from draft.pipeline.document import Document, Keys, put
from draft.pipeline.explain import validate
from draft.pipeline.fields import Place, walk
from draft.pipeline.isolated import reward_class
from draft.pipeline.kinds import kind_of
from draft.pipeline.references import parse_reference
from draft.pipeline.sizes import sizes
from draft.rewards.parts import part_options
from draft.rewards.reward import MODEL_OPTIONS, Reward

SUFFIX = "-rehearsal"
"""What a rehearsal's name ends with, so that its results never mix with those of the full-size run."""

_UNREAD = "emoji"
"""The stand-in of a hub id or a checkpoint, whose family is not known before it has been read."""

Chosen: TypeAlias = Callable[[Keys], bool]
"""Whether the value at a path was set for this rehearsal, so that no stand-in may replace it."""


@dataclass(frozen=True)
class Replacement:
    """One value that a rehearsal changed.

    Args:
        key: The full dotted key.
        before: The value in the file, or its default; None also where there is neither.
        after: The value in the rehearsal.
    """

    key: str
    before: Any
    after: Any


def use_stand_ins(
    document: Document,
    explicit: Collection[Keys],
    folder: Path,
    errors: list[DraftError],
    *,
    full_size: Document,
) -> list[Replacement]:
    """Replace, in `document.data`, what a full-size run has and a rehearsal cannot have.

    Args:
        document: The file with overrides applied and variables resolved.
        explicit: Paths of values that somebody chose for this rehearsal; they stay.
        folder: Where relative paths of the file start.
        errors: Gets what has no stand-in.
        full_size: The file before anybody chose a value for this rehearsal.

    Returns:
        What was replaced, in the order of the file.
    """

    def chosen(path: Keys) -> bool:
        return any(path[:length] in explicit for length in range(len(path) + 1))

    replacements: list[Replacement] = []
    if isinstance(name := document.data.get("name"), str) and not name.endswith(SUFFIX):
        document.data["name"] = f"{name}{SUFFIX}"
        replacements.append(Replacement("name", name, document.data["name"]))
    replaced_models: set[str] = set()
    holding: dict[str, list[Place]] = {}
    before_choices = _typed_stages(full_size)
    for name, config in _typed_stages(document).items():
        keys: Keys = ("stages", name)
        places = _places(config)
        holding[name] = [place for place in places if place.holds]
        changes: dict[Keys, tuple[Any, Any]] = {}
        for place in holding[name]:
            if place.holds == "model" and not is_embedded(place.value) and not chosen((*keys, *place.keys)):
                stand_in = _model_stand_in(place.value, (*keys, *place.keys), document, folder, errors)
                changes[place.keys] = (place.value, stand_in)
                replaced_models.add(name)
        full = _places(before_choices[name]) if name in before_choices else []
        for path, (before, after) in sizes(places, lambda path, keys=keys: chosen((*keys, *path)), full).items():
            changes[path] = (_plain(before), _plain(after))
        for place in holding[name]:
            for label, options in place.value.items() if place.holds == "rewards" else ():
                term_path = (*place.keys, label)
                changes |= _reward_stand_ins(term_path, options or {}, keys, chosen, document, folder, errors)
        for path, (before, after) in changes.items():
            put(document.data, (*keys, *path), after)
            replacements.append(Replacement(".".join(map(str, (*keys, *path))), before, after))
    for name, places in holding.items():
        # What has no model of its own works on what the others make.
        small = name in replaced_models if any(p.holds == "model" for p in places) else bool(replaced_models)
        for place in places if small else ():
            path = ("stages", name, *place.keys)
            adapter = place.value if place.holds == "adapter" else None
            if adapter and parse_reference(adapter) is None and not chosen(path):
                errors.append(_foreign_adapter(path, adapter, document))
    return replacements


def is_embedded(model: Any) -> bool:
    """Whether a value names a model of the embedded world: `emoji`, `emoji/clip`, ..."""
    worlds = {family.stand_in.partition("/")[0] for family in families().values()}
    # A name may be qualified by its distribution, where two plugins use it.
    return isinstance(model, str) and model.rpartition(":")[2].partition("/")[0] in worlds


def listing(replacements: Sequence[Replacement]) -> str:
    """What a rehearsal replaced, one line each: first what is the whole file's, then stage by stage.

    Args:
        replacements: As in `Pipeline.replacements`.

    Returns:
        Lines ``key: old -> new``.
    """
    grouped: dict[str, list[tuple[str, str]]] = {}
    for replacement in sorted(replacements, key=lambda replacement: replacement.key.startswith("stages.")):
        top, _, remainder = replacement.key.partition(".")
        stage, _, inner = remainder.partition(".") if top == "stages" else ("", "", replacement.key)
        grouped.setdefault(stage, []).append(
            (f"{inner}:", f"{_shown(replacement.before)} -> {_shown(replacement.after)}")
        )
    width = max((len(key) for group in grouped.values() for key, _ in group), default=0)
    lines = ["rehearsal on the embedded models, all as in the file except:"]
    for stage, group in grouped.items():
        lines += [f"  {stage}"] if stage else []
        lines += [f"{'    ' if stage else '  '}{key:<{width}} {change}" for key, change in group]
    return "\n".join(lines)


def _places(config: Any) -> list[Place]:
    return list(walk(type(config), config, defaults=True))


def _typed_stages(document: Document) -> dict[str, Any]:
    """The stages that are right as they are written; a stand-in must not hide what is wrong with the others."""
    stages = document.data.get("stages")
    typed = {}
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if kind := kind_of(stage):
            config, _ = validate(kind.settings, stage, ("stages", name), document)
            typed |= {name: config} if config is not None else {}
    return typed


def _model_stand_in(model: str, keys: Keys, document: Document, folder: Path, errors: list[DraftError]) -> str:
    try:
        text = (folder / Path(model).expanduser() / "model_index.json").read_text(encoding="utf-8")
        family = json.loads(text).get("_class_name")
    except (OSError, ValueError, AttributeError, RuntimeError):
        family = None  # not a folder, or one that is told when it is loaded
    if family is None:
        return _UNREAD
    stand_ins = {row.pipeline: row.stand_in for row in trainable()}
    if family not in stand_ins:
        key = ".".join(map(str, keys))
        errors.append(
            ConfigError(
                f"model {model!r} is a {family}, a family without a stand-in, so it cannot be rehearsed",
                where=document.place(keys),
                hint=f"set {key} under `rehearsal:`, e.g. to {_UNREAD}",
            )
        )
    return stand_ins.get(family, _UNREAD)


def _reward_stand_ins(
    term_path: Keys,
    options: Mapping[str, Any],
    keys: Keys,
    chosen: Chosen,
    document: Document,
    folder: Path,
    errors: list[DraftError],
) -> dict[Keys, tuple[Any, Any]]:
    """Path in the stage to its value and stand-in, for a term or for a reward that one is made of."""
    name = options.get("use", term_path[-1])
    reward = reward_class(name, options, (*keys, *term_path), document, folder)
    if reward is None:
        return {}  # told with the other errors of rewards, or not known before its environment is made
    if issubclass(reward, IsolatedReward) and reward.isolated.parts and not chosen((*keys, *term_path)):
        errors.append(_parts_elsewhere(name, (*keys, *term_path), document))
    stand_ins = dict(reward.stand_in or {})
    current = {option: options.get(option, _default(reward, option)) for option in reward.model_fields}
    if reward.stand_in is None:
        named = [option for option in current if _names_model(option)]
        present = [option for option in named if current[option]]
        full_size = [o for o in present if not is_embedded(current[o]) and not chosen((*keys, *term_path, o))]
        if named and (full_size or not present):
            key = ".".join(map(str, (*keys, *term_path, (full_size or named)[0])))
            errors.append(
                ConfigError(
                    f"reward {name!r} has no stand-in, so it cannot be rehearsed",
                    where=document.place((*keys, *term_path)),
                    hint=f"give its class a `stand_in`, or set {key} under `rehearsal:`",
                )
            )
    if options.get("device", "") not in ("", "auto", "cpu"):
        stand_ins["device"], current["device"] = "", options["device"]
    changes = {
        path: (_plain(current.get(option)), _plain(value))
        for option, value in stand_ins.items()
        if _plain(current.get(option)) != _plain(value) and not chosen((*keys, *(path := (*term_path, option))))
    }
    for option in part_options(reward):
        parts = options.get(option)
        for label, part in parts.items() if isinstance(parts, Mapping) else ():
            if part is None or isinstance(part, Mapping):
                inner: Keys = (*term_path, option, label)
                changes |= _reward_stand_ins(inner, part or {}, keys, chosen, document, folder, errors)
    return changes


def _names_model(option: str) -> bool:
    return any(option == word or option.endswith(f"_{word}") for word in MODEL_OPTIONS)


def _default(reward: type[Reward], option: str) -> Any:
    field = reward.model_fields[option]
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _foreign_adapter(path: Keys, file: str, document: Document) -> ConfigError:
    key = ".".join(map(str, path))
    return ConfigError(
        f"{key} was trained on another model than the embedded one, so it cannot be rehearsed (got {file!r})",
        where=document.place(path),
        hint=f"set {key} under `rehearsal:`, e.g. to the output of a stage, ${{out:train.adapter}}",
    )


def _parts_elsewhere(name: str, path: Keys, document: Document) -> ConfigError:
    return ConfigError(
        f"reward {name!r} is made of others in an environment of its own, where nothing can stand in for them",
        where=document.place(path),
        hint=f"set {'.'.join(map(str, path))} under `rehearsal:` to a reward that runs on the embedded models",
    )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
