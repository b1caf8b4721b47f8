"""Write the tables of figures in the pages from what runs recorded.

    python docs/make_figures.py                        write the tables between their markers
    python docs/make_figures.py keep FOLDER NAME       first keep the results of a finished stage as figures/NAME.json

A table stands between `<!-- figures: NAME VIEW -->` and `<!-- end of figures -->`. Its settings come from the same file
as its figures, so that a page cannot claim others than were run.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from statistics import fmean
from typing import Any, TypeAlias

import yaml

from draft.report.numbers import NONE, mean_and_deviation, number, signed
from draft.report.table import Table, as_markdown

DOCS = Path(__file__).parent
FIGURES = DOCS / "figures"
RESULTS = {"probe": "probe.json", "compare": "compare.json"}
BLOCK = re.compile(r"<!-- figures: (\S+) (\S+) -->\n(.*?)<!-- end of figures -->", flags=re.DOTALL)

Record: TypeAlias = Mapping[str, Any]


def page(text: str) -> str:
    """A page with its tables written anew."""

    def block(match: re.Match[str]) -> str:
        name, view, _ = match.groups()
        record = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
        return f"<!-- figures: {name} {view} -->\n{VIEWS[view](record)}\n<!-- end of figures -->"

    return BLOCK.sub(block, text)


def pages() -> list[Path]:
    """The pages that have such tables."""
    return [path for path in sorted(DOCS.glob("*.md")) if BLOCK.search(path.read_text(encoding="utf-8"))]


def keep(folder: Path) -> dict[str, Any]:
    """What is kept of a finished stage: its figures, its settings as they were run, and what a rehearsal replaced.

    Args:
        folder: The stage's folder, with `stage.json`.

    Returns:
        Plain data without paths of the machine it ran on.
    """
    stage = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    results = json.loads((folder / RESULTS[stage["identity"]["kind"]]).read_text(encoding="utf-8"))
    config = _portable(yaml.safe_load(results.pop("config")))
    figures = _search_in_brief(results) if "methods" in results else results
    if figures["title"].endswith("-rehearsal") and not config.get("rehearsal"):
        sys.exit(f"{folder} was rehearsed before results held what a rehearsal replaces; run it again")
    return {
        "kind": stage["identity"]["kind"],
        "pipeline": figures.pop("title"),
        "date": stage["finished"][:10],
        "seconds": stage["seconds"],
        "rehearsal": config.pop("rehearsal", {}),
        "seed": config.pop("seed"),
        "settings": config[stage["stage"]],
        "versions": figures.pop("versions"),
        "figures": figures,
    }


def settings(record: Record) -> str:
    """The settings of a run, and what a rehearsal replaced in its pipeline, as two paragraphs."""
    name = record["pipeline"].removesuffix("-rehearsal")
    run = f"`draft run {name}{' --rehearse' if record['rehearsal'] else ''}`"
    source = f", {record['transcribed']}" if record.get("transcribed") else ""
    listed = [f"`{key}: {_plain(value)}`" for key, value in _leaves(record["settings"])]
    listed.append(f"`seed: {record['seed']}`")
    paragraphs = [f"From {run}, {record['date']}{source}. As run: {', '.join(listed)}."]
    changes = [
        f"`{re.sub(r'^stages[.][^.]+[.]', '', key)}` {_plain(change['before'])} → {_plain(change['after'])}"
        for key, change in record["rehearsal"].items()
        if key != "name"
    ]
    return "\n\n".join([*paragraphs, *([f"The rehearsal replaced: {', '.join(changes)}."] if changes else [])])


def norms(record: Record) -> str:
    """A probe's gradient against K."""
    figures, rows = record["figures"], []
    steps = figures["steps"]
    for row in figures["k"]:
        step = steps[len(steps) - row["k"]]
        cells = (row[key] for key in ("norm", "growth", "beyond", "cosine", "outlier"))
        verdict = "recommended" if row["k"] <= figures["recommended_k"] else "not recommended"
        measured = [number(value) for value in (*cells, step["sensitivity"], step["term"])]
        rows.append([str(row["k"]), *measured, verdict])
    head = ["K", "norm", "growth", "over what the sensitivities account for", "cosine to the full gradient"]
    head += ["largest batch over the median", "sensitivity of the step", "its own term", ""]
    return f"{as_markdown(Table(head, rows))}\n\nThe probe's verdict: {figures['verdict']}."


def rewards(record: Record) -> str:
    """A comparison's rewards where each budget is spent."""
    budget = record["figures"]["budget"]
    words = {"updates": "updates", "evaluations": "images scored", "seconds": "s of training"}
    rows = [
        [_label(record, label), *(_cell(method["at"][axis]["reward"]) for axis in words), _remarks(method)]
        for label, method in _ranked(record)
    ]
    base = number(record["figures"]["base"]["reward"])
    head = ["method", *(f"at {budget[axis]:g} {what}" for axis, what in words.items()), ""]
    return as_markdown(Table(head, [*rows, ["base", base, base, base, ""]]), align="---:")


def costs(record: Record) -> str:
    """What an update costs each method of a comparison."""
    rows, full = [], record["figures"]["methods"].get("draft")
    for label, method in _ranked(record):
        seconds, memory = method["seconds_per_update"]["mean"], method["memory"]
        share = [f"{seconds / full['seconds_per_update']['mean']:.2f}"] if full else []
        images = f"{method['evaluations_per_update']['mean']:.4g}"
        peak = NONE if memory is None else f"{memory / 2**20:.0f} MiB"
        rows.append([_label(record, label), _rate(method), f"{seconds:.2f}", *share, images, peak])
    head = ["method", "learning rate", "s per update", *(["of `draft`"] if full else []), "images per update", "memory"]
    return as_markdown(Table(head, rows), align="---:")


def everything(axis: str) -> Callable[[Record], str]:
    """All scores of a comparison where one budget is spent."""

    def view(record: Record) -> str:
        labels = _measured(record)
        rows = [
            [_label(record, label), *(_cell(method["at"][axis][name]) for name in labels)]
            for label, method in _ranked(record)
        ]
        base = ["base", *(number(record["figures"]["base"][name]) for name in labels)]
        return as_markdown(Table(["method", *labels], [*rows, base]), align="---:")

    return view


def search(record: Record) -> str:
    """What each learning rate came to in a comparison's search."""
    methods = _ranked(record)
    rates = sorted({float(rate) for _, method in methods for rate in method["search"]})
    rows = []
    for label, method in methods:
        found = {float(rate): reward for rate, reward in method["search"].items()}
        cells = ["failed" if found[rate] is None else number(found[rate]) for rate in rates]
        chosen = [" *" if rate == method["learning_rate"] else "" for rate in rates]
        rows.append([_label(record, label), *map("".join, zip(cells, chosen, strict=True))])
    return as_markdown(Table(["method", *(f"{rate:g}" for rate in rates)], rows), align="---:")


def curves(record: Record) -> str:
    """The gain on training prompts over the base model along a comparison's trainings, means over the seeds."""
    methods, start = _ranked(record), record["figures"]["start"]["reward"]
    counts = sorted(set.intersection(*(set(map(int, method["curve"])) for _, method in methods)))
    rows = [
        [_label(record, label), _rate(method), *(signed(method["curve"][str(count)] - start) for count in counts)]
        for label, method in methods
    ]
    head = ["method", "learning rate", *(f"after {count} updates" for count in counts)]
    return as_markdown(Table(head, rows), align="---:")


VIEWS: Mapping[str, Callable[[Record], str]] = {
    "settings": settings,
    "norms": norms,
    "rewards": rewards,
    "costs": costs,
    "curves": curves,
    "updates": everything("updates"),
    "evaluations": everything("evaluations"),
    "seconds": everything("seconds"),
    "search": search,
}


def _search_in_brief(results: Record) -> dict[str, Any]:
    """A comparison's results with its curves as updates to mean reward, and its search as learning rate to reward."""
    methods = {}
    for label, method in results["methods"].items():
        kept = {key: value for key, value in method.items() if key not in ("trainings", "search")}
        points = {f"{run['rate']:g}": run["spent"].get("seconds") for run in method["search"]}
        lines = [
            {point["spending"]["updates"]: point["figures"]["reward"] for point in run["curve"]}
            for run in method["trainings"]
        ]
        shared = sorted(set.intersection(*map(set, lines)))  # of the updates that every training came to
        methods[label] = kept | {
            "curve": {f"{count:g}": fmean(line[count] for line in lines) for count in shared},
            "search": {rate: point["figures"]["reward"] if point else None for rate, point in points.items()},
        }
    return {**results, "methods": methods}


def _ranked(record: Record) -> list[tuple[str, Any]]:
    def place(entry: tuple[str, Any]) -> float:
        mean = entry[1]["at"]["seconds"]["reward"]["mean"]
        return math.inf if mean is None else -mean

    return sorted(record["figures"]["methods"].items(), key=place)


def _label(record: Record, label: str) -> str:
    """A method's label; where its window shows how late its steps are, with it."""
    method = record["figures"]["methods"][label]["method"]
    steps = record["settings"]["sampler"]["num_inference_steps"]
    return f"{label} (window {method['window']} of {steps})" if "window" in method else label


def _measured(record: Record) -> list[str]:
    """The scores of a comparison; its only reward is the sum that is trained for, and stands there once."""
    trained = list(record["settings"]["rewards"])
    return [label for label in record["figures"]["base"] if len(trained) > 1 or label not in trained]


def _remarks(method: Mapping[str, Any]) -> str:
    return "; ".join(method["remarks"])


def _rate(method: Mapping[str, Any]) -> str:
    return NONE if method["learning_rate"] is None else f"{method['learning_rate']:g}"


def _cell(spread: Mapping[str, Any]) -> str:
    mean, deviation = (math.nan if spread[key] is None else spread[key] for key in ("mean", "deviation"))
    return mean_and_deviation(mean, deviation)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _portable(value: Any) -> Any:
    """Plain data in which a path of this machine is its last name alone."""
    if isinstance(value, Mapping):
        return {key: _portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    absolute = isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute())
    return re.split(r"[/\\]", value)[-1] if absolute else value


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keep", folder, name]:
            text = json.dumps(keep(Path(folder)), indent=1, ensure_ascii=False)
            (FIGURES / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
        case []:
            pass
        case _:
            sys.exit(__doc__)
    for path in pages():
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
