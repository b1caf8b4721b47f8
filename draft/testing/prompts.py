"""The check of a reward that says it uses prompts: other prompts give other scores."""

from __future__ import annotations

from draft.testing.subject import CheckFailed, CheckSkipped, Subject


def check_prompt_matters(subject: Subject) -> str:
    """A reward with `uses_prompt` gives the same images other scores with other prompts."""
    if not subject.reward.uses_prompt:
        raise CheckSkipped("it does not claim to use prompts (`uses_prompt`)")
    prompts, count = subject.prompts, len(subject.prompts)
    moved = prompts.take([(place + 1) % count for place in range(count)])
    constant = [name for name in prompts.columns if len(set(prompts.column(name))) == 1]
    if moved == prompts or (constant and len(constant) == len(prompts.columns)):
        raise CheckSkipped("the prompts that were given, or all their columns, are alike")
    images = subject.images()
    scores = subject.score(images, prompts).detach()
    others = subject.score(images, moved).detach()
    if subject.close(scores, others, 1e-6):
        # A metric that counts what it finds finds nothing in these images, whatever it is asked for.
        if not subject.reward.differentiable and bool((scores == scores[0]).all()):
            raise CheckSkipped(f"every image scores {scores[0].item():g}, so nothing can be seen")
        raise CheckFailed(f"the images score {scores.tolist()} whatever their prompts are; is its text encoded at all?")
    return ""
