"""What a stage's result depends on: its identity, the fingerprint of that, and what makes two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from draft.adapters.identity import files_of
from draft.family import ATTENTION
from draft.files import sha256, weights_digest
from draft.isolation.reward import IsolatedReward
from draft.marks import Extends, Holds, Inert, hints, marks, plain
from draft.pipeline.document import Keys, put
from draft.pipeline.fields import INPUTS, completed, walk
from draft.pipeline.kinds.kind import REWARDS, CheckedStage, Kind
from draft.pipeline.references import parse_reference
from draft.pipeline.resolve import masked
from draft.pipeline.sources import package_differences, packages_from_sources, stage_packages
from draft.prompts import prompts_digest
from draft.rewards.discovery import DISTRIBUTION
from draft.rewards.extensions import derived_model, named_models
from draft.rewards.terms import reward_config

_PARTS = ("kind", "version", "settings", "rewards", "seed", "packages", "sources", "reward_models", "upstream")
"""The parts of an identity that every stage may have; any other is a digest, or the labels of what is measured."""


def identity(stage: CheckedStage, upstream: Mapping[str, str]) -> dict[str, Any]:
    """Everything a stage's result depends on, as plain JSON.

    Args:
        stage: The stage.
        upstream: Fingerprints of the stages it refers to, by name.

    Returns:
        Its kind and version, resolved settings but for inert ones, seed, prompts, rewards with the packages that they
        come from and digests of the models they name, the stage's model, adapter files from outside, and `upstream`.
    """
    settings = _comparable(plain(stage.config, _counts_elsewhere(stage.kind)))
    entered = stage.environment
    settings = masked(settings, entered, (), _numbers(stage))
    for file in stage.files:
        put(settings, file.keys, _file_identity(file.source))
    parts: dict[str, Any] = {
        "kind": stage.kind.name,
        "version": stage.kind.version,
        "settings": settings,
        "rewards": {
            term.label: masked(reward_config(term), entered, (*keys, term.label))
            for keys, terms in stage.inputs.terms.items()
            for term in terms
        },
        "packages": stage_packages(stage),
        "reward_models": _reward_models(stage),
        "upstream": dict(upstream),
    }
    if "seed" in hints(type(stage.config)) and stage.kind.seeded(stage.config):
        parts["seed"] = masked(stage.seed, entered, ("seed",))
    parts |= {".".join(map(str, keys)): prompts_digest(prompts) for keys, prompts in stage.inputs.prompts.items()}
    for keys, terms in stage.inputs.terms.items():
        if keys != REWARDS:
            parts[".".join(map(str, keys))] = [term.label for term in terms]
    if stage.model:
        model = _model_identity(stage.model)
        parts["model"] = model if model != stage.model else masked(model, entered, ("model",))
    return json.loads(json.dumps(parts))


def settled(recorded: Mapping[str, Any], stage: CheckedStage) -> dict[str, Any]:
    """An identity that was written down, perhaps by another version, as this one writes it.

    Settings that have become inert are gone, those that were not there yet have their default, and renamed ones their
    new name; a change that gives another result raises the kind's version instead.

    Args:
        recorded: The identity in a record.
        stage: The stage that it is compared with.

    Returns:
        The identity.
    """
    kind, recorded_settings = stage.kind, recorded.get("settings")
    if recorded.get("kind") != kind.name or not isinstance(recorded_settings, Mapping):
        return dict(recorded)
    recorded_settings = {**recorded_settings, "kind": kind.name}
    settings = _comparable(completed(type(stage.config), recorded_settings, _counts_elsewhere(kind)))
    settings = masked(settings, stage.environment, (), _numbers(stage))
    parts = {kind.renamed.get(part, part): value for part, value in recorded.items()} | {"settings": settings}
    if before_packages(recorded):
        parts["packages"] = packages_from_sources(parts.pop("sources"), stage)
    return json.loads(json.dumps(parts))


def before_packages(recorded: Mapping[str, Any]) -> bool:
    """Whether an identity is older than the entries of reward packages: it has the sources of their modules alone."""
    return "packages" not in recorded and isinstance(recorded.get("sources"), Mapping)


def uncompared(recorded: Mapping[str, Any], stage: CheckedStage) -> str:
    """What an identity is too old to have, in words.

    Args:
        recorded: The identity in a record.
        stage: The stage that it is compared with.

    Returns:
        A clause about the versions and files of packages that were not compared; empty: everything was.
    """
    packages = stage_packages(stage) if before_packages(recorded) else {}
    labels = [label for label, each in packages.items() if each.get("name") != DISTRIBUTION or "data" in each]
    if not labels:
        return ""
    return f"its record has no versions and files of reward packages: those of {', '.join(labels)} are not compared"


def lengths(before: Mapping[str, Any], after: Mapping[str, Any], stage: CheckedStage) -> dict[str, tuple[Any, Any]]:
    """How far a stage goes in two identities, if nothing else differs.

    Args:
        before: An identity, settled.
        after: Another one.
        stage: The stage that both are of.

    Returns:
        Setting to both values, of those marked `Extends` that differ; nothing where anything else does, too.
    """
    keys = [key for key, hint in hints(type(stage.config)).items() if any(isinstance(m, Extends) for m in marks(hint))]
    old, new = before.get("settings"), after.get("settings")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return {}
    changed = {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}
    same = {**before, "settings": {**old, **{key: new.get(key) for key in changed}}} == after
    return changed if same else {}


def fingerprint(parts: Mapping[str, Any]) -> str:
    """The sha256 of an identity."""
    return _digest(parts)


def without_files(parts: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without the adapters that go in, which may be files here and references there."""
    return {**parts, "settings": _without_files(parts.get("settings") or {}), "upstream": {}}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes two identities differ, in words: ``"config changed: learning_rate 0.0001 -> 0.0002"``."""
    reasons = []
    if (old.get("kind"), old.get("version")) != (new.get("kind"), new.get("version")):
        reasons.append(
            f"stage kind changed: {old.get('kind')} {old.get('version')} -> {new.get('kind')} {new.get('version')}"
        )
    for part, noun in (("settings", "config"), ("rewards", "rewards")):
        before, after = _flat(old.get(part)), _flat(new.get(part))
        changed = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
        shown = [f"{key} {_words(before, key)} -> {_words(after, key)}" for key in changed[:3]]
        more = [f"and {len(changed) - 3} more"] if len(changed) > 3 else []
        if changed:
            reasons.append(f"{noun} changed: {', '.join(shown + more)}")
    if old.get("seed") != new.get("seed"):
        reasons.append(f"seed changed: {old.get('seed')} -> {new.get('seed')}")
    for part in dict.fromkeys(["prompts", "model", *old, *new]):
        if part not in _PARTS and old.get(part) != new.get(part):
            reasons.append(f"{part} changed")
    reasons += package_differences(old.get("packages"), new.get("packages"))
    before, after = old.get("reward_models") or {}, new.get("reward_models") or {}
    edited = [label for label in after if label in before and before[label] != after[label]]
    if edited:
        reasons.append(f"reward model changed: {', '.join(edited)}")
    before, after = old.get("upstream") or {}, new.get("upstream") or {}
    changed = [name for name in after if before.get(name) != after[name]]
    if changed:
        reasons.append(f"upstream changed: {', '.join(changed)}")
    return reasons


def _numbers(stage: CheckedStage) -> frozenset[Keys]:
    """Where a stage says how far it goes, which is compared as a number."""
    config = stage.config
    return frozenset(place.keys for place in walk(type(config), config) if place.mark(Extends))


def _counts_elsewhere(kind: Kind) -> Callable[[Any], bool]:
    """Whether a mark means that a field does not count, or that it counts by its content."""

    def apart(mark: Any) -> bool:
        inert = isinstance(mark, Inert) and not (mark.rounding and kind.timed)
        return inert or (isinstance(mark, Holds) and mark.what in INPUTS)

    return apart


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: _with_targets(value) for key, value in settings.items() if key not in ("kind", "seed")}


def _with_targets(value: Any) -> Any:
    """Of a hub id, whose family nobody knows yet, `lora.targets` counts as what nearly all families have."""
    if not isinstance(value, Mapping):
        return value
    settings = {key: _with_targets(inner) for key, inner in value.items()}
    return (
        {**settings, "targets": list(ATTENTION)}
        if "rank" in settings and settings.get("targets", "") is None
        else settings
    )


def _without_files(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_files(inner) for key, inner in value.items() if not _is_file(inner)}
    return [_without_files(inner) for inner in value if not _is_file(inner)] if isinstance(value, list) else value


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith("sha256:") or parse_reference(value) is not None)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_identity(source: str) -> str:
    if parse_reference(source):
        return source
    path = Path(source)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else files_of(path)
    # Not sha256(path): the fingerprints of earlier runs hold this.
    return "sha256:" + _digest([sha256(file) for file in files])


def _model_identity(path: str) -> str:
    """A hub id, or a local model by its weights, so that it may move and must not change.

    A derived model counts by its folder's name, which stands for its weights before they are made.
    """
    if (derived := derived_model(path)) is not None:
        return f"derived:{derived.path.name}"
    return f"sha256:{weights_digest(Path(path))}" if Path(path).exists() else path


def _reward_models(stage: CheckedStage) -> dict[str, str]:
    """The models on this machine that options of rewards name, by the option's key."""
    named = named_models() if stage.every_term else {}
    digests = {}
    for term in stage.every_term:
        remote_models = term.reward.isolated.models if isinstance(term.reward, IsolatedReward) else {}
        for option, value in _flat(term.reward.model_dump(mode="json")).items():
            path = named[value].path if isinstance(value, str) and value in named else value
            path = Path(remote_models[option]) if option in remote_models else path
            if isinstance(path, Path) or (isinstance(path, str) and Path(path).is_absolute()):
                keys = ("rewards", term.label, *option.split("."))
                digest = _model_identity(str(path))
                entered = {} if digest != str(path) else stage.environment
                digests[f"{term.label}.{option}"] = masked(digest, entered, keys)
    return digests


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            key: inner
            for name, item in value.items()
            for key, inner in _flat(item, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    return {prefix: value} if prefix else {}


def _words(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "nothing"
    value = values[key]
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
