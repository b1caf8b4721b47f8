"""The embedded world's models under the names pipelines use, `emoji` and `emoji/...`, with their figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import draft
from draft_emoji import WEIGHTS, xl
from draft_emoji.vocabulary import concepts, nearest, unknown_words

MODELS = (
    ("emoji", "text_to_image", "text-to-image", "a small latent diffusion model of emoji scenes, 64 px"),
    ("emoji/clip", "clip", "clip", "a small CLIP trained on emoji scenes and their captions"),
    (
        "emoji/judge",
        "judge",
        "image-classifier",
        "a multi-label RegNet that says which objects a scene shows, trained on real renders only",
    ),
    ("emoji/owlvit", "owlvit", "detector", "a small OWL-ViT that finds what a text names in emoji scenes"),
    ("emoji/resnet", "resnet", "image-classifier", "a small ResNet that says which emoji a scene with one shows"),
    ("emoji/convnext", "convnext", "image-classifier", "a small ConvNeXt for the same, to see what transfers"),
    ("emoji/preference", "preference", "clip", "a small CLIP that prefers whole scenes to degraded and wrong ones"),
    ("emoji/aesthetic", "aesthetic", "head", "a rating head on emoji/clip: 9 for a whole scene, 1 for a spoilt one"),
    ("emoji/caption", "caption", "captioner", "a small BLIP that writes captions of emoji scenes"),
    ("emoji/vqa", "vqa", "question-answering", "a small BLIP that says yes or no to what a scene is said to show"),
    (
        "emoji/image_reward",
        "image_reward",
        "image-reward",
        "a small BLIP with a head that prefers whole scenes with their own captions to degraded and wrong ones",
    ),
)
"""Name, folder, kind and description; all are stand-ins trained on emoji, nothing more."""

FIGURES = {
    "emoji": "the judge's first answer is right for {generated_top1:.1%} of its pictures, {generated_top5:.1%} in five",
    "emoji/clip": "finds the right caption among 100 for {clip_caption_among_100:.1%} of unseen scenes",
    "emoji/judge": "first answer right for {judge_real_top1:.1%} of unseen renders",
    "emoji/owlvit": "AP50 {detector_ap50:.3f}, {detector_ap50_smaller_of_two:.3f} for the smaller of two objects",
    "emoji/resnet": "top-1 {resnet_top1_unseen_backgrounds:.1%} on unseen backgrounds",
    "emoji/convnext": "top-1 {convnext_top1_unseen_backgrounds:.1%} on unseen backgrounds",
    "emoji/preference": "prefers the whole scene to one of degradation 0.4 in {preference_right_at_level[0.4]:.1%}",
    "emoji/aesthetic": "correlation {aesthetic_correlation:.3f} with the true ratings of unseen scenes",
    "emoji/caption": "the right caption is the likeliest of 100 for {caption_likeliest_among_100:.1%} of unseen scenes",
    "emoji/vqa": "right answers to {vqa_accuracy:.1%} of questions about unseen scenes, half of them to be denied",
    "emoji/image_reward": "prefers the whole scene to one of degradation 0.4 in {image_reward_right_at_level[0.4]:.1%}",
}
"""Name to a sentence about the figures that the recipe's `evaluate` wrote."""


def outside(prompts: Sequence[str]) -> str:
    """What to tell of prompts with words that the models never met; empty if there are none.

    Args:
        prompts: All prompts of a stage.

    Returns:
        One sentence that names the words and the nearest known ones.
    """
    words = unknown_words(prompts)
    if not words:
        return ""
    listed = []
    for word in words[:3]:
        close = nearest(word)
        listed.append(f"{word!r} (nearest: {', '.join(close)})" if close else f"{word!r}")
    more = f" and {len(words) - 3} more words" if len(words) > 3 else ""
    return (
        f"the emoji model does not know {', '.join(listed)}{more} in these prompts; "
        f"it draws {len(concepts())} things, such as {', '.join(concepts()[:3])}"
    )


@draft.hookimpl
def draft_models() -> list[draft.NamedModel]:
    """Name the small models that ship with Draft."""
    figures = _read("figures.json")
    files = _read("manifest.json")["files"]
    shipped = [
        draft.NamedModel(
            name=name,
            path=WEIGHTS / folder,
            kind=kind,
            description=f"{description}; a stand-in, trained on {len(concepts())} emoji",
            licence="Apache-2.0",
            figures=_sentence(name, figures),
            sha256={
                file.partition("/")[2]: row["sha256"] for file, row in files.items() if file.startswith(f"{folder}/")
            },
            remark=outside if name == "emoji" else None,
        )
        for name, folder, kind, description in MODELS
        if f"{folder}/config.json" in files or f"{folder}/model_index.json" in files
    ]
    return [*shipped, *(_larger(model) for model in shipped if model.name == "emoji")]


def _larger(small: draft.NamedModel) -> draft.NamedModel:
    """`emoji` in Stable Diffusion XL's format."""
    return replace(
        small,
        name="emoji_xl",
        path=xl.place(),
        description=f"emoji's weights as a Stable Diffusion XL; a stand-in, trained on {len(concepts())} emoji",
        figures="draws what emoji draws",
        sha256={},
        derive=xl.write,
        family="sdxl",
    )


def _sentence(name: str, figures: Mapping[str, Any]) -> str:
    try:
        return FIGURES[name].format(**figures)
    except KeyError:
        return "not measured yet: run `python -m draft_emoji.recipe evaluate`"


def _read(name: str) -> Mapping[str, Any]:
    return json.loads((WEIGHTS / name).read_text(encoding="utf-8"))
