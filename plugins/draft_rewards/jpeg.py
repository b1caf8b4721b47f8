"""The reward `jpeg`: how little an image loses when it is written as JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

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

    JPEG_q(x) is what a JPEG file of the image shows, with libjpeg's arithmetic and chroma subsampled 4:2:0. Scores of
    photographs are those of Pillow's files within 0.4 % at qualities up to 90, and within 2.1 % at 99. Rounding has the
    derivative 0 wherever it has one, so the gradient is that of the formula with JPEG_q(x) held fixed: it leads each
    image towards its own JPEG.

    With `rounding: smooth` the coefficients are rounded to round(c) + (c - round(c))^3 and nothing else is rounded, as
    in the differentiable JPEG of Shin and Song (2017). That moves each coefficient back towards what it was, so these
    scores are 3 to 24 % nearer to 0 than Pillow's, 14 to 17 % at quality 50. The gradient passes through the codec; it
    is weaker, and in free pixels it makes somewhat smaller files.

    Note:
        The paper (arXiv 2309.17400) rewards compressibility through a differentiable JPEG; the quality it used is not
        known to us, so it is a parameter. The change is a squared mean, which keeps the gradient finite where JPEG
        changes nothing and does not depend on the images' size.
    """

    name = "jpeg"
    cite = "Clark et al., Directly Fine-Tuning Diffusion Models on Differentiable Rewards, arXiv 2309.17400"
    typical = "-0.9 to -0.4 for photographs of about 500 pixels at quality 50"
    stand_in = {}

    quality: int = draft.Field(50, ge=1, le=99, description="JPEG quality, 1 (coarse) to 99 (fine)")
    rounding: Literal["exact", "smooth"] = draft.Field(
        "exact",
        description="'exact': as in a file, which is held fixed in the gradient; 'smooth': a polynomial, which has one",
    )

    def load(self, device: torch.device) -> Score:
        """Put the quantisation tables on the device; nothing has to be loaded.

        Args:
            device: Where the images will be.

        Returns:
            A function from images to scores of their dtype.
        """
        import torch

        from draft_rewards._jpeg_codec import make_codec

        codec = make_codec(self.quality, device, rounding=self.rounding)

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            # Pixels times 255 and sums over blocks: half precision would drown the small differences that count.
            pixels = images if images.dtype == torch.float64 else images.float()
            return (-1000.0 * (pixels - codec(pixels)).square().mean(dim=(1, 2, 3))).to(images.dtype)

        return score


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Jpeg]
