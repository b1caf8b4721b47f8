"""The independent judge as a metric: is what the prompt names really in the picture?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import draft
from draft.types import Images, Scores, reads_prompt
from draft_emoji.vocabulary import concepts, find_concepts

if TYPE_CHECKING:
    import torch


class EmojiJudge(draft.Reward):
    """Share of the concepts named by the prompt that an independent classifier finds in the image, 0 to 1.

    The classifier is another family of network than any reward and saw composed renders only, never a generated
    image, so a model that games its reward does not game the judge. It knows the emoji vocabulary alone.
    """

    name: ClassVar[str] = "emoji_judge"
    differentiable: ClassVar[bool] = False
    stand_in: ClassVar[dict[str, str]] = {}

    model: str = draft.Field("emoji/judge", description="the classifier: a registered model or a folder")
    concept: str = draft.Field(
        "",
        description="the concept to look for, or a column as '{concept}'; empty: the concepts the prompt mentions",
    )
    top: int = draft.Field(
        1,
        ge=1,
        description="how many of the classifier's first answers count, for a prompt with one concept; "
        "a prompt with n concepts may use n times as many",
    )
    threshold: float = draft.Field(
        0.0,
        ge=0,
        lt=1,
        description="above 0: a concept is found where the classifier's probability for it exceeds this, "
        "however many others are, and `top` does not count",
    )

    @property
    def uses_prompt(self) -> bool:
        """Whether the concept comes from the prompts."""
        return not self.concept or reads_prompt(self.concept)

    def load(self, device: torch.device) -> draft.Score:
        """Load the classifier.

        Args:
            device: Where the images will be.

        Returns:
            A function of images in [0, 1], shape (B, 3, H, W), and B prompts to scores in [0, 1], shape (B,).

        Raises:
            DraftError: A prompt mentions no concept of the vocabulary, or `concept` is not one.
        """
        import torch
        from torch.nn.functional import interpolate
        from transformers import RegNetForImageClassification

        from draft.quiet import loading_silently

        folder = Path(draft.model_path(self.model))
        if not (folder / "config.json").exists():
            raise draft.DraftError(
                f"the judge's weights are missing (looked in {folder})",
                where="emoji_judge",
                hint="reinstall draft-diffusion, or train them with `python -m draft_emoji.recipe judge`",
            )
        with loading_silently():
            judge = RegNetForImageClassification.from_pretrained(folder, dtype=torch.float32)
        torch.nn.Module.to(judge.eval().requires_grad_(False), device)
        index = {name: number for number, name in (judge.config.id2label or {}).items()}

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str]) -> Scores:
            concept_names = [
                self._concepts(text, named) for text, named in zip(prompts, self._named(prompts), strict=True)
            ]
            pixels = interpolate(images.float(), size=64, mode="bicubic", antialias=True).clamp(0, 1)
            logits = judge(pixel_values=pixels * 2 - 1).logits
            # Place of each concept in the classifier's ranking, 0 for its first answer.
            places = logits.argsort(dim=-1, descending=True).argsort(dim=-1)
            shares = []
            for row, names in enumerate(concept_names):
                columns = [index[name] for name in names]
                sure = logits[row, columns].sigmoid() > self.threshold
                hits = sure if self.threshold else places[row, columns] < self.top * len(names)
                shares.append(hits.float().mean())
            return torch.stack(shares)

        return score

    def _named(self, prompts: Sequence[str]) -> list[str]:
        return draft.per_prompt(self.concept, prompts)

    def _concepts(self, prompt: str, named: str) -> list[str]:
        names = find_concepts(named or prompt)
        if not names:
            raise draft.DraftError(
                f"no concept of the emoji vocabulary in {named or prompt!r}",
                where="emoji_judge",
                hint=f"the judge knows {len(concepts())} concepts, such as {', '.join(concepts()[:5])}",
            )
        return names


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """Offer the judge as a metric."""
    return [EmojiJudge]
