"""How long and how wide each part is trained: numbers only."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Training:
    """One part's schedule.

    Attributes:
        steps: Updates in all; the learning rate's last, falling part ends here.
        batch: Pictures or captions in an update.
        rate: The highest learning rate of AdamW.
        warm: Updates over which the rate rises from 0.
        falling: Share of the updates, at the end, over which the rate falls to a hundredth along a cosine.
    """

    steps: int
    batch: int
    rate: float
    warm: int = 100
    falling: float = 1.0

    def learning_rate(self, step: int) -> float:
        """The rate of an update; constant between the warm-up and the falling part."""
        import math

        start = self.steps * (1 - self.falling)
        fallen = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        factor = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * fallen))
        return self.rate * min(1.0, (step + 1) / max(1, self.warm)) * factor

    def with_steps(self, steps: int | None) -> Training:
        """The same schedule with another length; itself if None."""
        return self if steps is None else replace(self, steps=steps)


@dataclass(frozen=True)
class Preset:
    """What one kind of machine can do in a sitting.

    Attributes:
        text: The text tower.
        vae: The autoencoder on crops and scenes.
        decoder: Further training of the decoder alone, with the encoder frozen.
        unet: The denoiser.
        clip: The image tower of the CLIP.
        judge: The independent classifier.
        detector: The OWL-ViT.
        classifier: The ResNet and the ConvNeXt, each.
        preference: The preference CLIP.
        aesthetic: The head.
        caption: The captioning BLIP.
        vqa: The BLIP that answers questions.
        image_reward: The BLIP that prefers whole pictures.
        latents: Encoded scenes that the denoiser learns from.
    """

    text: Training
    vae: Training
    decoder: Training
    unet: Training
    clip: Training
    judge: Training
    detector: Training
    classifier: Training
    preference: Training
    aesthetic: Training
    caption: Training
    vqa: Training
    image_reward: Training
    latents: int


PRESETS = {
    "cpu": Preset(
        text=Training(1000, 192, 2e-3),
        vae=Training(5000, 48, 1.5e-3),
        decoder=Training(3000, 24, 1e-3),
        # The rate stays constant for long, so that a run that is stopped early is as good as it can be; the running
        # average of the weights does the rest.
        unet=Training(30_000, 32, 1e-3, warm=200, falling=0.5),
        clip=Training(3000, 96, 1e-3),
        judge=Training(2500, 64, 2e-3),
        detector=Training(1600, 64, 1e-3, falling=0.7),
        classifier=Training(1500, 64, 2e-3),
        preference=Training(300, 64, 3e-4),
        aesthetic=Training(4000, 256, 1e-3),
        caption=Training(9000, 64, 2e-3, falling=0.8),
        vqa=Training(7000, 64, 1.5e-3, falling=0.8),
        image_reward=Training(1800, 64, 1e-3, falling=0.8),
        latents=60_000,
    ),
    "gpu": Preset(
        text=Training(4000, 512, 2e-3),
        vae=Training(20_000, 96, 1e-3),
        decoder=Training(10_000, 96, 1e-3),
        unet=Training(120_000, 256, 1e-3, warm=1000, falling=0.25),
        clip=Training(10_000, 512, 1e-3),
        judge=Training(8000, 256, 2e-3),
        detector=Training(20_000, 256, 1e-3, falling=0.7),
        classifier=Training(6000, 256, 2e-3),
        preference=Training(4000, 256, 3e-4),
        aesthetic=Training(4000, 256, 1e-3),
        caption=Training(20_000, 256, 2e-3),
        vqa=Training(20_000, 256, 1.5e-3),
        image_reward=Training(10_000, 256, 1e-3),
        latents=400_000,
    ),
}
