"""The reward `vqa`: how sure a model that answers questions is of the wanted answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import draft
from draft.rewards.reading import ReadingScore
from draft.types import reads_prompt
from draft_rewards._loading import Revision

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class Vqa(draft.Reward):
    """How sure a model that answers questions about images is of "yes": log p(yes | image, question).

    r(x, c) = sum_i log p(a_i | x, question, a_1 ... a_{i-1}) over the tokens of the answer and the one that ends it,
    at most 0, so that exp(r) is the probability of this answer and no other. The default question is VQAScore's.

    The family is chosen by the `model_type` of the model's config.json. `blip` is BLIP's question answering (Li et al.,
    arXiv 2201.12086), such as Salesforce/blip-vqa-base with 361 M parameters, 1.4 GB in float32; it was trained on
    short questions with short answers in lower case.

    `paligemma` is PaliGemma or PaliGemma 2 (Beyer et al., arXiv 2407.07726), open models after the PaLI that the DRaFT
    paper names for future work, such as google/paligemma-3b-mix-224 with 3 G parameters, 12 GB in float32. The "mix"
    models were trained on questions that begin with "answer en ": write 'answer en is there {thing} in the image?'.

    Note:
        VQAScore's published numbers are probabilities, of "Yes" and from other models, so only their order compares.
        A question about one thing, from a column of the prompt file, is easier for a model than one about a sentence.
        A model can be pleased without the image pleasing: watch a second one, or `clip_score`.
    """

    name = "vqa"
    cite = "Lin et al., Evaluating Text-to-Visual Generation with Image-to-Text Generation (VQAScore), arXiv 2404.01291"
    licence = "BSD-3-Clause"
    typical = "at most 0, for a sure yes; -0.7 where the model holds the answer for as likely as all others together"
    memory = "1.4 GB of weights: 361 M parameters in float32"
    stand_in = {"model": "emoji/vqa", "revision": ""}

    model: str = draft.Field(
        "Salesforce/blip-vqa-base",
        description="a model of transformers that answers questions about images, of the families blip and paligemma: "
        "a name of `draft models`, a folder, or a hub id",
    )
    revision: Revision = ""
    question: str = draft.Field(
        'Does this figure show "{prompt}"? Please answer yes or no.',
        min_length=1,
        description="what is asked; '{prompt}' in it becomes the image's prompt, '{column}' its value in a column of "
        "the prompt file",
    )
    answer: str = draft.Field(
        "yes", min_length=1, description="the wanted answer, as the model writes it, or a column as '{column}'"
    )

    @property
    def uses_prompt(self) -> bool:
        """Whether the question or the answer comes from the prompts."""
        return re.search(r"\{\w+\}", self.question) is not None or reads_prompt(self.answer)

    def load(self, device: torch.device) -> Score:
        """Load the model.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to scores.
        """
        from draft_rewards._answers import ReadingAnswers
        from draft_rewards._vlm import filled, load_answers

        log_probability = load_answers(self.model, revision=self.revision, device=device, where=self.name)

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            questions, wanted = filled(self.question, prompts), draft.per_prompt(self.answer, prompts)
            return log_probability(images, questions, wanted).to(images.dtype)

        if not isinstance(log_probability, ReadingAnswers):
            return score
        questions = log_probability.questions.of(partial(filled, self.question))
        wanted = log_probability.wanted.of(partial(draft.per_prompt, self.answer))
        return ReadingScore(score, (questions, wanted))


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Vqa]
