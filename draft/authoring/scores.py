"""Scores of picture files: each file with its prompt, in batches of one size, as numbers to read or to keep."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from draft.authoring.pictures import LARGEST, picture_size, read_picture
from draft.authoring.stand_in import offering_stand_in
from draft.errors import ConfigError, DraftError, DraftWarning
from draft.isolation.reward import IsolatedReward
from draft.progress import Progress
from draft.prompts import load_prompts
from draft.report.data import as_csv, as_json
from draft.rewards.calls import load_reward
from draft.rewards.loading import name_of
from draft.rewards.parts import called
from draft.rewards.reading import cut_prompts, readings_of
from draft.rewards.reward import Reward, Term
from draft.scoring.rewards import LoadedReward, numbers
from draft.types import Prompts


@dataclass(frozen=True)
class ScoredPicture:
    """One picture and its score.

    Args:
        file: The file, as it was named.
        prompt: Its prompt; None where none was given.
        score: The score; NaN where the reward has none.
    """

    file: Path
    prompt: str | None
    score: float


class Unprompted(Prompts):
    """The prompts of images that have none: a reward that reads one is an error, others work.

    Args:
        count: The number B of images.
    """

    def __init__(self, count: int) -> None:
        super().__init__([""] * count)

    def __getitem__(self, index: int | slice) -> Any:
        """Refuse a prompt; a slice has none either."""
        if isinstance(index, slice):
            return Unprompted(len(range(*index.indices(len(self)))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        raise ConfigError("the score depends on a prompt, and none is given", hint="give one with --prompt")

    def take(self, indices: Iterable[int]) -> Prompts:
        """As many missing prompts as there are indices."""
        return Unprompted(len(list(indices)))


def match_prompts(files: Sequence[Path], texts: Sequence[str], table: Path | None) -> Prompts:
    """Give every picture its prompt.

    Args:
        files: N pictures.
        texts: One prompt for all, or one each in the order of the files; none where they come from `table`.
        table: A prompt file. Where it has a column `file`, a picture's row is the one that names it, relative to the
            table's folder, as in the `images.jsonl` of a generate stage; else its prompts are used as `texts` are.

    Returns:
        N prompts with the table's other columns; `Unprompted` where neither texts nor a table are given.

    Raises:
        ConfigError: Both are given, the numbers do not match, or the table does not name a picture.
    """
    if texts and table is not None:
        raise ConfigError("prompts come from --prompt or from --prompts, not both", where="command line")
    if not texts and table is None:
        return Unprompted(len(files))
    prompts = Prompts(texts) if table is None else load_prompts(table, where="command line")
    if table is not None and "file" in prompts.columns:
        rows = {(table.parent / name).resolve(): row for row, name in enumerate(prompts.column("file"))}
        if missing := [file for file in files if file.resolve() not in rows]:
            raise ConfigError(
                f"no row names the picture {str(missing[0])!r}",
                where=str(table),
                hint="its column 'file' holds paths relative to its own folder; drop the column to match by order",
            )
        return prompts.take([rows[file.resolve()] for file in files])
    if len(prompts) not in (1, len(files)):
        raise ConfigError(
            f"there must be one prompt for all pictures or one for each, {len(files)} (got {len(prompts)})",
            where="command line",
            hint="pictures come in the order in which they are named, those of a folder sorted by name",
        )
    return prompts if len(prompts) == len(files) else prompts.take([0] * len(files))


def score_pictures(
    reward: Reward,
    files: Sequence[Path],
    prompts: Prompts,
    *,
    device: torch.device,
    batch_size: int,
    progress: Progress,
) -> list[ScoredPicture]:
    """Score picture files with one reward, without gradient.

    Args:
        reward: The reward with its parameters.
        files: N pictures of any sizes; all headers are read before the reward is loaded.
        prompts: N prompts.
        device: Where to score.
        batch_size: Most pictures scored at once; they are of one size. A reward with `per_image = False` sees all
            pictures at once, whatever this number is.
        progress: The reporter.

    Returns:
        One score per picture, in the order of `files`.

    Raises:
        DraftError: A file is no picture, the reward cannot be loaded or refuses what it gets, or pictures that are
            compared with each other differ in size.
    """
    if batch_size < 1:
        raise ConfigError(f"must be at least 1 (got {batch_size})", where="command line, --batch-size")
    sizes = [picture_size(file) for file in files]
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    if not reward.per_image:
        if len(by_size) > 1:
            shown = " and ".join(f"{width}x{height}" for height, width in list(by_size)[:2])
            raise ConfigError(
                f"reward {reward.name!r} compares pictures with each other, so all must be of one size (got {shown})"
            )
        batch_size = len(files)
    with offering_stand_in(reward):
        loaded = LoadedReward(
            Term(reward.name, reward), load_reward(reward, device, called(reward.name, reward)), device
        )
    if not isinstance(prompts, Unprompted) and (cut := cut_prompts(reward.name, readings_of(loaded.score), prompts)):
        warnings.warn(cut, DraftWarning, stacklevel=2)
    sent = prompts
    if isinstance(prompts, Unprompted) and isinstance(reward, IsolatedReward) and not reward.uses_prompt:
        sent = Prompts([""] * len(files))  # every call sends the prompts to the process, read there or not
    scores = [math.nan] * len(files)
    progress.start("score", len(files))
    for (height, width), group in by_size.items():
        # No more pixels at once than one of the largest pictures has.
        most = min(batch_size, max(1, LARGEST // (height * width))) if reward.per_image else batch_size
        for start in range(0, len(group), most):
            chosen = group[start : start + most]
            images = torch.stack([read_picture(files[index]) for index in chosen])
            try:
                values = numbers(loaded.scores(images, sent.take(chosen)))
            except DraftError as error:
                error.where = error.where or reward.name
                raise
            for index, score in zip(chosen, values, strict=True):
                scores[index] = score + 0.0  # -0 is 0
            progress.advance(len(chosen))
    progress.stop()
    texts = [None] * len(files) if isinstance(prompts, Unprompted) else list(prompts)
    return [ScoredPicture(*row) for row in zip(files, texts, scores, strict=True)]


def reward_values(reward: Reward) -> dict[str, Any]:
    """A reward as plain values: its name as `use`, and its parameters."""
    return {"use": name_of(type(reward)), **reward.model_dump(mode="json")}


def json_text(reward: Reward, rows: Sequence[ScoredPicture]) -> str:
    """The scores with the reward's name and parameters; a score that is no number becomes null.

    Args:
        reward: The reward with its parameters.
        rows: What was scored.

    Returns:
        One JSON object with the keys `reward` and `scores`.
    """
    scores = [{"file": str(row.file), "prompt": row.prompt, "score": row.score} for row in rows]
    return as_json({"reward": reward_values(reward), "scores": scores})


def csv_text(reward: Reward, rows: Sequence[ScoredPicture]) -> str:
    """The same as a table: `file`, `prompt`, `score`, `reward`, and `reward.OPTION` for each parameter.

    Args:
        reward: The reward with its parameters.
        rows: What was scored.

    Returns:
        CSV text.
    """
    options = reward.model_dump(mode="json")
    shown = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in options.values()]
    header = ["file", "prompt", "score", "reward", *(f"reward.{option}" for option in options)]
    return as_csv(header, ([str(row.file), row.prompt or "", repr(row.score), reward.name, *shown] for row in rows))
