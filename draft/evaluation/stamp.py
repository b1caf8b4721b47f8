"""What an evaluation writes into a copy of every adapter it compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from draft.adapters.files.metadata import draft_version
from draft.adapters.files.stamp import stamp_adapter
from draft.evaluation.results import Results, settings_values
from draft.evaluation.settings import EvaluateSettings
from draft.files import safe_name
from draft.marks import Inert, Layout, hints, marks
from draft.report.data import finite
from draft.rewards.loading import recorded_name
from draft.rewards.reward import Term

STAMP = "draft.evaluation"
"""The header entry that holds the figures, as JSON."""


def write_stamped(
    results: Results, adapters: Mapping[str, tuple[Path, float]], terms: Sequence[Term], folder: Path
) -> list[Path]:
    """Write a copy of every adapter with its figures in the header; the folder is there even without adapters.

    The copy holds the adapter as it was given, not scaled: the weight it was evaluated at is one of the figures.

    Args:
        results: The evaluation.
        adapters: Adapter file and weight by label.
        terms: The rewards.
        folder: Receives `<label>.safetensors`.

    Returns:
        The files.

    Raises:
        StageError: An adapter cannot be read or a copy cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for label, (source, _) in adapters.items():
        files.append(folder / f"{safe_name(label)}.safetensors")
        text = json.dumps(finite(figures(results, label, terms)), sort_keys=True)
        stamp_adapter(source, files[-1], metadata={STAMP: text})
    return files


def figures(results: Results, label: str, terms: Sequence[Term]) -> dict[str, Any]:
    """What was found about one adapter and how: no time, no host, no folder.

    Args:
        results: The evaluation.
        label: The adapter's label.
        terms: The rewards.

    Returns:
        Plain values for JSON.
    """
    base = results.cells[results.variants[0]]
    rewards = {}
    for term in terms:
        cell = results.cells[label][term.label]
        gain = asdict(cell.gain) if cell.gain else None
        means = {"base": base[term.label].mean.mean, "tuned": cell.mean.mean}
        rewards[term.label] = {"use": recorded_name(type(term.reward)), **means, "gain": gain}
    model = Path(results.model)
    decisive = {
        key
        for key, hint in hints(EvaluateSettings).items()
        if not any(isinstance(mark, Inert | Layout) for mark in marks(hint))
    }
    settings = settings_values(results.settings)
    return {
        "draft": draft_version(),
        "model": model.resolve().name if model.exists() else results.model,
        "weight": results.weights[label],
        **({"schedule": asdict(results.schedules[label])} if label in results.schedules else {}),
        "prompts": len(set(results.groups)),
        "images": len(results.seeds),
        "first_seed": results.seeds[0],
        "settings": {key: value for key, value in settings.items() if key.partition(".")[0] in decisive},
        "rewards": rewards,
    }
