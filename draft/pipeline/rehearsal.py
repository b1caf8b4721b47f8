"""Rehearsals: the same pipeline at small scale on the embedded models, by declared stand-ins."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

from draft.diffusion.control.schedules import Combined, LastSteps
from draft.diffusion.control.values import NoiseOpt, PromptSearch
from draft.diffusion.families import families, trainable
from draft.errors import ConfigError, DraftError
from draft.isolation.reward import IsolatedReward
from draft.pipeline.document import Document, put
from draft.pipeline.document import Path as Keys
from draft.pipeline.explain import validate
from draft.pipeline.graph import parse_reference
from draft.pipeline.isolated import reward_class
from draft.pipeline.schema import (
    KINDS,
    CompareStage,
    EvaluateStage,
    GenerateStage,
    MixStage,
    ProbeStage,
    StripStage,
    TrainStage,
)
from draft.rewards.parts import part_options
from draft.rewards.reward import MODEL_OPTIONS, Reward

SUFFIX = "-rehearsal"
"""What a rehearsal's name ends with, so that its results never mix with those of the full-size run."""

_UNREAD = "emoji"
"""The stand-in of a hub id or a checkpoint, whose family is not known before it has been read."""

Chosen: TypeAlias = Callable[[Keys], bool]
"""Whether somebody chose the value at a path for this rehearsal, so that no stand-in may replace it."""


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
    document: Document, explicit: Collection[Keys], folder: Path, errors: list[DraftError]
) -> list[Replacement]:
    """Replace, in `document.data`, what a full-size run has and a rehearsal cannot have.

    Args:
        document: The file with overrides applied and variables resolved.
        explicit: Paths of values that somebody chose for this rehearsal; they stay.
        folder: Where relative paths of the file start.
        errors: Gets what has no stand-in.

    Returns:
        What was replaced, in the order of the file.
    """

    def chosen(path: Keys) -> bool:
        return any(path[:length] in explicit for length in range(len(path) + 1))

    found: list[Replacement] = []
    if isinstance(name := document.data.get("name"), str) and not name.endswith(SUFFIX):
        document.data["name"] = f"{name}{SUFFIX}"
        found.append(Replacement("name", name, document.data["name"]))
    replaced_models: list[str] = []
    typed = _typed_stages(document)
    for name, stage in typed.items():
        keys: Keys = ("stages", name)
        changes: dict[Keys, tuple[Any, Any]] = {}
        if not isinstance(stage, MixStage):
            if not is_embedded(stage.model) and not chosen((*keys, "model")):
                changes["model",] = (stage.model, _model_stand_in(stage.model, keys, document, folder, errors))
                replaced_models.append(name)
            changes |= _sizes(stage, keys, chosen)
        for place, rewards in _rewards(stage).items():
            for label, options in rewards.items():
                here = (*place, label)
                changes |= _reward_stand_ins(here, options or {}, keys, chosen, document, folder, errors)
        for path, (before, after) in changes.items():
            put(document.data, (*keys, *path), after)
            found.append(Replacement(".".join(map(str, (*keys, *path))), before, after))
    for name, stage in typed.items():
        small = bool(replaced_models) if isinstance(stage, MixStage) else name in replaced_models
        adapters: dict[Keys, Any] = {
            ("adapters", label): each for label, each in getattr(stage, "adapters", {}).items()
        }
        if isinstance(stage, ProbeStage) and stage.adapter:
            adapters["adapter",] = stage.adapter
        files: dict[Keys, str] = {(*place, "from"): adapter.from_ for place, adapter in adapters.items()}
        if isinstance(stage, TrainStage):
            files |= {("base_adapters", index, "file"): each.file for index, each in enumerate(stage.base_adapters)}
            files |= {("init_adapter",): stage.init_adapter} if stage.init_adapter else {}
        for place, file in files.items() if small else ():
            path = ("stages", name, *place)
            if parse_reference(file) is None and not chosen(path):
                errors.append(_foreign_adapter(path, file, document))
    return found


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
    for each in sorted(replacements, key=lambda each: each.key.startswith("stages.")):
        top, _, rest = each.key.partition(".")
        stage, _, inner = rest.partition(".") if top == "stages" else ("", "", each.key)
        grouped.setdefault(stage, []).append((f"{inner}:", f"{_shown(each.before)} -> {_shown(each.after)}"))
    width = max((len(key) for group in grouped.values() for key, _ in group), default=0)
    lines = ["rehearsal on the embedded models, all as in the file except:"]
    for stage, group in grouped.items():
        lines += [f"  {stage}"] if stage else []
        lines += [f"{'    ' if stage else '  '}{key:<{width}} {change}" for key, change in group]
    return "\n".join(lines)


def _typed_stages(document: Document) -> dict[str, Any]:
    """The stages that are right as they are written; a stand-in must not hide what is wrong with the others."""
    stages = document.data.get("stages")
    found = {}
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        kind = stage.get("kind") if isinstance(stage, dict) else None
        if isinstance(kind, str) and kind in KINDS:
            config, _ = validate(KINDS[kind], stage, ("stages", name), document)
            found |= {name: config} if config is not None else {}
    return found


def _rewards(stage: Any) -> dict[Keys, Mapping[str, Any]]:
    """Where a stage has rewards, and those."""
    match stage:
        case TrainStage() | EvaluateStage() | GenerateStage() | ProbeStage() | StripStage():
            return {("rewards",): stage.rewards}
        case CompareStage():
            return {("rewards",): stage.rewards, ("measure", "rewards"): stage.measure.rewards}
    return {}


def _sizes(
    stage: TrainStage | EvaluateStage | GenerateStage | CompareStage | ProbeStage | StripStage,
    keys: Keys,
    chosen: Chosen,
) -> dict[Keys, tuple[Any, Any]]:
    """Path in the stage to its value and the smaller one."""
    wanted: dict[str, Any] = {
        "sampler.num_inference_steps": min(stage.sampler.num_inference_steps, 10),
        "sampler.guidance_scale": min(stage.sampler.guidance_scale, 2.0),
        "resolution": None,
        "mixed_precision": "no",
        "device": stage.device if stage.device in ("auto", "cpu") else "auto",
    }
    if isinstance(stage, TrainStage):
        wanted |= {"max_steps": min(stage.max_steps, 40)}
    if isinstance(stage, TrainStage | CompareStage):
        wanted |= {
            "warmup_steps": min(stage.warmup_steps, 4),
            "batch_size": min(stage.batch_size, 6),
            "gradient_accumulation_steps": 1,
            "micro_batch_size": 0,
        }
    if isinstance(stage, TrainStage):
        wanted |= {"report_to": ()}
        updates = stage.max_steps if chosen((*keys, "max_steps")) else wanted["max_steps"]
        for part in ("checkpoint", "preview"):
            # An interval that the shorter training would never reach.
            if attrgetter(part)(stage).every >= updates:
                wanted[f"{part}.every"] = max(1, updates // 4)
    elif isinstance(stage, CompareStage):
        wanted |= {
            "budget.updates": min(stage.budget.updates, 40),
            "budget.evaluations": min(stage.budget.evaluations, 240),
            "budget.seconds": min(stage.budget.seconds, 40.0),
            "curve.every": min(stage.curve.every, 5),
            "curve.prompts": min(stage.curve.prompts, 16),
            "measure.images_per_prompt": min(stage.measure.images_per_prompt, 2),
            "measure.batch_size": min(stage.measure.batch_size, 16),
        }
    elif isinstance(stage, ProbeStage):
        wanted |= {"batches": min(stage.batches, 8), "batch_size": min(stage.batch_size, 6), "micro_batch_size": 0}
    elif isinstance(stage, StripStage):
        wanted |= {"seeds": stage.seeds[:2], "batch_size": min(stage.batch_size, 16)}
    else:
        wanted |= {
            "images_per_prompt": min(stage.images_per_prompt, 2),
            "batch_size": min(stage.batch_size, 16),
        }
    changes = {tuple(key.split(".")): (attrgetter(key)(stage), value) for key, value in wanted.items()}
    chose = chosen((*keys, "sampler", "num_inference_steps"))
    steps = stage.sampler.num_inference_steps if chose else wanted["sampler.num_inference_steps"]
    if isinstance(stage, TrainStage | CompareStage):
        changes |= _recorded(stage, steps)
    elif isinstance(stage, EvaluateStage | GenerateStage):
        changes |= _scheduled(stage, steps)
    return {
        path: (_plain(own), _plain(value))
        for path, (own, value) in changes.items()
        if own != value and not chosen((*keys, *path))
    }


def _scheduled(stage: EvaluateStage | GenerateStage, steps: int) -> dict[Keys, tuple[Any, Any]]:
    """What schedules and methods say of more steps than a rehearsal samples, and of more samples than it takes."""
    part = steps / stage.sampler.num_inference_steps
    found: dict[Keys, tuple[Any, Any]] = {}
    for label, adapter in stage.adapters.items():
        here, schedule = ("adapters", label, "schedule"), adapter.schedule
        match schedule:
            case LastSteps(steps=last):
                found[*here, "steps"] = (last, max(1, round(last * part)))
            case Combined(base_steps=base):
                found[*here, "base_steps"] = (base, round(base * part))
                found[*here, "guidance_scale"] = (schedule.guidance_scale, min(schedule.guidance_scale, 2.0))
    match stage.method if isinstance(stage, GenerateStage) else None:
        case NoiseOpt(iterations=iterations, recorded=recorded):
            found["method", "iterations"] = (iterations, min(iterations, 10))
            found["method", "recorded"] = (recorded, recorded if recorded is None else min(recorded, steps))
        case PromptSearch(modifiers=modifiers, budget=budget):
            found["method", "budget"] = (budget, min(budget, max(8, len(modifiers) + 1)))
    return found


def _recorded(stage: TrainStage | CompareStage, steps: int) -> dict[Keys, tuple[Any, Any]]:
    """What methods say of more steps than a rehearsal samples."""
    methods: dict[Keys, Any] = (
        {("method",): asdict(stage.method)}
        if isinstance(stage, TrainStage)
        else {("methods", label, "method"): own.get("method") for label, own in stage.methods.items()}
    )
    return {
        (*path, name): (value, steps)
        for path, method in methods.items()
        for name in ("k", "window")
        if isinstance(method, Mapping) and isinstance(value := method.get(name), int) and value > steps
    }


def _model_stand_in(model: str, keys: Keys, document: Document, folder: Path, errors: list[DraftError]) -> str:
    try:
        text = (folder / Path(model).expanduser() / "model_index.json").read_text(encoding="utf-8")
        family = json.loads(text).get("_class_name")
    except (OSError, ValueError, AttributeError):
        family = None  # not a folder, or one that is told when it is loaded
    if family is None:
        return _UNREAD
    stand_ins = {row.pipeline: row.stand_in for row in trainable()}
    if family not in stand_ins:
        key = ".".join(map(str, (*keys, "model")))
        errors.append(
            ConfigError(
                f"model {model!r} is a {family}, a family without a stand-in, so it cannot be rehearsed",
                where=document.place((*keys, "model")),
                hint=f"set {key} under `rehearsal:`, e.g. to {_UNREAD}",
            )
        )
    return stand_ins.get(family, _UNREAD)


def _reward_stand_ins(
    here: Keys,
    options: Mapping[str, Any],
    keys: Keys,
    chosen: Chosen,
    document: Document,
    folder: Path,
    errors: list[DraftError],
) -> dict[Keys, tuple[Any, Any]]:
    """Path in the stage to its value and stand-in, for a term or for a reward that one is made of."""
    name = options.get("use", here[-1])
    reward = reward_class(name, options, (*keys, *here), document, folder)
    if reward is None:
        return {}  # told with the other errors of rewards, or not known before its environment is made
    if issubclass(reward, IsolatedReward) and reward.isolated.parts and not chosen((*keys, *here)):
        errors.append(_parts_elsewhere(name, (*keys, *here), document))
    wanted = dict(reward.stand_in or {})
    own = {option: options.get(option, _default(reward, option)) for option in reward.model_fields}
    if reward.stand_in is None:
        named = [option for option in own if _names_model(option)]
        given = [option for option in named if own[option]]
        full_size = [o for o in given if not is_embedded(own[o]) and not chosen((*keys, *here, o))]
        if named and (full_size or not given):
            key = ".".join(map(str, (*keys, *here, (full_size or named)[0])))
            errors.append(
                ConfigError(
                    f"reward {name!r} has no stand-in, so it cannot be rehearsed",
                    where=document.place((*keys, *here)),
                    hint=f"give its class a `stand_in`, or set {key} under `rehearsal:`",
                )
            )
    if options.get("device", "") not in ("", "auto", "cpu"):
        wanted["device"], own["device"] = "", options["device"]
    found = {
        path: (_plain(own.get(option)), _plain(value))
        for option, value in wanted.items()
        if _plain(own.get(option)) != _plain(value) and not chosen((*keys, *(path := (*here, option))))
    }
    for option in part_options(reward):
        parts = options.get(option)
        for label, given in parts.items() if isinstance(parts, Mapping) else ():
            if given is None or isinstance(given, Mapping):
                inner: Keys = (*here, option, label)
                found |= _reward_stand_ins(inner, given or {}, keys, chosen, document, folder, errors)
    return found


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
