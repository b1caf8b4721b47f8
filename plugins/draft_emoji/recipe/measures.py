"""The figures of the models behind the rewards, each on scenes that no training saw."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    CLIPModel,
    CLIPTokenizer,
    OwlViTForObjectDetection,
)

from draft_emoji.recipe import blip, clip, image_reward, preference, vqa
from draft_emoji.recipe.aesthetic import agreement, load_head
from draft_emoji.recipe.checkpoint import write_whole
from draft_emoji.recipe.classifiers import CLASSIFIERS
from draft_emoji.recipe.classifiers import accuracy as classified
from draft_emoji.recipe.detector import average_precisions


def _clip(weights: Path) -> dict[str, object]:
    share = clip.retrieval(_load(CLIPModel, weights / "clip"), CLIPTokenizer.from_pretrained(weights / "clip"), "cpu")
    return {"clip_caption_among_100": round(share, 4)}


def _owlvit(weights: Path) -> dict[str, object]:
    detector = _load(OwlViTForObjectDetection, weights / "owlvit")
    every, smaller = average_precisions(detector, CLIPTokenizer.from_pretrained(weights / "owlvit"))
    return {"detector_ap50": round(every, 4), "detector_ap50_smaller_of_two": round(smaller, 4)}


def _classifier(name: str, weights: Path) -> dict[str, object]:
    network = _load(type(CLASSIFIERS[name]()), weights / name)
    return {f"{name}_top1_unseen_backgrounds": round(classified(network)[0], 4)}


def _preference(weights: Path) -> dict[str, object]:
    prefers = _load(CLIPModel, weights / "preference")
    *shares, wrong = preference.wins(prefers, CLIPTokenizer.from_pretrained(weights / "preference"))
    levels = {str(level): round(share, 4) for level, share in zip(preference.LEVELS, shares, strict=True)}
    return {"preference_right_at_level": levels, "preference_right_against_wrong_object": round(wrong, 4)}


def _aesthetic(weights: Path) -> dict[str, object]:
    correlation, error = agreement(_load(CLIPModel, weights / "clip"), load_head(weights / "aesthetic"))
    return {"aesthetic_correlation": round(correlation, 4), "aesthetic_mean_error_of_8": round(error, 3)}


def _caption(weights: Path) -> dict[str, object]:
    captioner = _load(BlipForConditionalGeneration, weights / "caption")
    ten, hundred, hard = blip.retrieval(captioner, BertTokenizer.from_pretrained(weights / "caption"))
    return {
        "caption_likeliest_among_10": round(ten, 4),
        "caption_likeliest_among_100": round(hundred, 4),
        "caption_likelier_than_one_with_a_wrong_word": round(hard, 4),
    }


def _vqa(weights: Path) -> dict[str, object]:
    answering = _load(BlipForQuestionAnswering, weights / "vqa")
    shares = vqa.accuracy(answering, BertTokenizer.from_pretrained(weights / "vqa"))
    return {
        "vqa_accuracy": round(shares.pop("balanced"), 4),
        "vqa_accuracy_unseen_wordings": round(shares.pop("other_words"), 4),
        "vqa_accuracy_by_kind": {kind: round(share, 4) for kind, share in shares.items()},
    }


def _image_reward(weights: Path) -> dict[str, object]:
    folder = weights / "image_reward"
    shares = image_reward.wins(image_reward.load_image_reward(folder), BertTokenizer.from_pretrained(folder))
    levels = {str(level): round(shares[str(level)], 4) for level in preference.LEVELS}
    return {
        "image_reward_right_at_level": levels,
        "image_reward_right_against_wrong_object": round(shares["object"], 4),
        "image_reward_right_against_wrong_colour": round(shares["colour"], 4),
    }


def _load(family: type, folder: Path) -> torch.nn.Module:
    return family.from_pretrained(folder, dtype=torch.float32).eval()


MEASURES: dict[str, Callable[[Path], dict[str, object]]] = {
    "clip": _clip,
    "owlvit": _owlvit,
    **{name: partial(_classifier, name) for name in CLASSIFIERS},
    "preference": _preference,
    "aesthetic": _aesthetic,
    "caption": _caption,
    "vqa": _vqa,
    "image_reward": _image_reward,
}
"""Shipped folder to what measures it; each is given the folder of weights."""


def reward_figures(weights: Path, parts: Collection[str] = tuple(MEASURES)) -> dict[str, object]:
    """How well the models behind the rewards know unseen scenes; those that are not there are left out."""
    figures: dict[str, object] = {}
    for part, figures_of in MEASURES.items():
        if part in parts and (weights / part).exists():
            figures |= figures_of(weights)
    return figures


def measure(weights: Path, parts: Collection[str] | None) -> None:
    """Measure some models behind rewards, print the figures and put them into ``figures.json`` among the others.

    Args:
        weights: The package's folder of weights.
        parts: Names of folders; all if None.

    Raises:
        SystemExit: A part has no figures of its own.
    """
    if unknown := sorted(set(parts or ()) - set(MEASURES)):
        raise SystemExit(f"measure: --parts must be of {', '.join(MEASURES)} (got {', '.join(unknown)})")
    figures = reward_figures(weights, parts or tuple(MEASURES))
    print(json.dumps(figures, indent=2))
    write_figures(weights, json.loads((weights / "figures.json").read_text(encoding="utf-8")) | figures)


def write_figures(weights: Path, figures: dict[str, object]) -> None:
    """Write ``figures.json`` at once."""
    text = json.dumps(figures, indent=2) + "\n"
    write_whole(weights / "figures.json", lambda part: part.write_text(text, encoding="utf-8"))
