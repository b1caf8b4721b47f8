import draft


class Brightness(draft.Reward):
    """How close an image's brightness is to `target`, from -1 (as far as can be) to 0 (exactly)."""

    name = "brightness"
    target: float = draft.Field(1.0, ge=0, le=1, description="the brightness to aim for, 0 (black) to 1 (white)")

    def load(self, device):
        return lambda images, prompts: -(images.mean(dim=(1, 2, 3)) - self.target).abs()


@draft.hookimpl
def draft_rewards():
    return [Brightness]
