"""The metric `jpeg_size`: the true size of an image as a JPEG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import draft

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from draft.rewards.reward import Score
    from draft.types import Images, Scores


class JpegSize(draft.Reward):
    """The size in kB (1 kB = 1000 bytes) of an image that Pillow writes as JPEG; a metric without a gradient.

    Chroma is subsampled 4:2:0 and the Huffman tables are the standard ones, without metadata. Headers and tables take
    about 0.6 kB of every file, which is most of a small picture; `above_flat` takes them out.
    """

    name = "jpeg_size"
    cite = "Clark et al., Directly Fine-Tuning Diffusion Models on Differentiable Rewards, arXiv 2309.17400"
    typical = "14 to 28 kB for photographs of about 500 pixels at quality 50"
    differentiable = False
    stand_in = {}

    quality: int = draft.Field(50, ge=1, le=95, description="JPEG quality, 1 (coarse) to 95 (fine)")
    above_flat: bool = draft.Field(
        False, description="subtract the size of a flat picture of the image's mean colour, same size and quality"
    )

    def load(self, device: torch.device) -> Score:
        """Return the score; nothing has to be loaded.

        Args:
            device: Where the images will be.

        Returns:
            A function from images to sizes in kB, float32 on the images' device.
        """
        import torch
        from PIL import Image

        quality, above_flat = self.quality, self.above_flat

        def size(image: Image.Image) -> float:
            total = _bytes(image, quality)
            if above_flat:
                mean = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(-1, 3).double().mean(0)
                red, green, blue = (int(value) for value in mean.round())
                total -= _bytes(Image.new("RGB", image.size, (red, green, blue)), quality)
            return total / 1000

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            levels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
            arrays = levels.permute(0, 2, 3, 1).cpu().contiguous().numpy()
            return torch.tensor([size(Image.fromarray(array)) for array in arrays], device=images.device)

        return score


def _bytes(image: Image.Image, quality: int) -> int:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality, subsampling="4:2:0", optimize=False)
    return file.tell()


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [JpegSize]
