"""The reward `jpeg`: how little an image loses when it is written as JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import draft

if TYPE_CHECKING:
    import torch

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class Jpeg(draft.Reward):
    """How well an image survives JPEG: minus 1000 times the mean squared change, 0 for one that is not changed at all.

    r(x) = -1000 * mean((x - JPEG_q(x))^2) over channels and pixels in [0, 1], so that -1 is a PSNR of 30 dB and
    -10 one of 20 dB. Higher is more compressible; a negative weight asks for images that JPEG finds hard. A lower
    quality presses harder on detail. What it rewards is loss, not bytes: judge the result with `jpeg_size`.

    Note:
        The paper (arXiv 2309.17400) rewards compressibility through a differentiable JPEG; the quality it used is not
        known to us, so it is a parameter. The change is a squared mean, which keeps the gradient finite where JPEG
        changes nothing and does not depend on the images' size. Chroma is subsampled 4:2:0.
    """

    name = "jpeg"
    cite = "Clark et al., Directly Fine-Tuning Diffusion Models on Differentiable Rewards, arXiv 2309.17400"
    typical = "-0.8 to -0.3 for photographs of about 500 pixels at quality 50"
    stand_in = {}

    quality: int = draft.Field(50, ge=1, le=99, description="JPEG quality, 1 (coarse) to 99 (fine)")

    def load(self, device: torch.device) -> Score:
        """Return the score; nothing has to be loaded.

        Args:
            device: Where the images will be.

        Returns:
            A function from images to scores of their dtype.
        """
        import torch
        from kornia.enhance import jpeg_codec_differentiable

        quality = self.quality

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            # Pixels times 255 and sums over blocks: half precision would drown the small differences that count.
            pixels = images if images.dtype == torch.float64 else images.float()
            rebuilt = jpeg_codec_differentiable(pixels, pixels.new_full((1,), float(quality)))
            return (-1000.0 * (pixels - rebuilt).square().mean(dim=(1, 2, 3))).to(images.dtype)

        return score


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Jpeg]
