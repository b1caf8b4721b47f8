"""The check of whether a reward reads its prompts, as it says: other prompts give other scores."""

from __future__ import annotations

from draft.testing.subject import CheckFailed, CheckSkipped, Subject


def check_prompt_matters(subject: Subject) -> str:
    """A reward with `uses_prompt` gives the same images other scores with other prompts."""
    prompts, count, claims = subject.prompts, len(subject.prompts), subject.reward.uses_prompt
    moved = prompts.take([(place + 1) % count for place in range(count)])
    constant = [name for name in prompts.columns if len(set(prompts.column(name))) == 1]
    if moved == prompts or (constant and len(constant) == len(prompts.columns)):
        if claims:
            raise CheckSkipped("the prompts that were given, or their columns, are all alike")
        return ""
    images = subject.images()
    scores = subject.score(images, prompts).detach()
    others = subject.score(images, moved).detach()
    alike = subject.close(scores, others, 1e-6)
    if not claims:
        return "" if alike else "its scores depend on the prompt: say so with `uses_prompt = True`"
    if not alike:
        return ""
    # A metric that counts what it finds finds nothing in these images, whatever it is asked for.
    if not subject.reward.differentiable and bool((scores == scores[0]).all()):
        raise CheckSkipped(f"every image scores {scores[0].item():g}, whatever its prompt is")
    raise CheckFailed(f"the images score {scores.tolist()} with other prompts, too; is their text read at all?")
