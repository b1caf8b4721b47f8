"""A loaded Pocket Flow, as Draft asks of a family: the protocol `draft.diffusion.families.TextToImage`."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from draft.diffusion.conditioning import Conditioning
from draft.diffusion.saturation import clip
from draft.diffusion.schedule import FlowSchedule
from draft.errors import DraftError, DraftWarning
from draft.family import Family
from draft.types import Images, Latents, Size
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from draft_pocket_flow import FAMILY
from draft_pocket_flow.networks import PocketDecoder, PocketTextEncoder, PocketTransformer, word_numbers

_KINDS: Mapping[str, type[nn.Module]] = {
    "transformer": PocketTransformer,
    "vae": PocketDecoder,
    "text_encoder": PocketTextEncoder,
}


@dataclass
class PocketFlow:
    """A model in a folder; its networks are read when they are first needed.

    Args:
        folder: The model's.
        configs: Component to its configuration, and that of the pipeline as `model_index`.
        device: Where it is.
        dtype: Precision of the weights.
        family: The row.
    """

    folder: Path
    configs: Mapping[str, dict[str, Any]]
    device: torch.device
    dtype: torch.dtype
    family: Family = FAMILY
    _networks: dict[str, Any] = field(default_factory=dict)
    _recompute: bool = False
    _dropped: bool = False

    @property
    def network(self) -> nn.Module:
        """The transformer."""
        return self._read("transformer")

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """The text encoder; nothing once it is dropped."""
        return {} if self._dropped else {"text_encoder": self._read("text_encoder")}

    @property
    def text_files(self) -> Sequence[Path]:
        """What decides a prompt's embedding."""
        return [self.folder / "text_encoder", self.folder / "tokenizer"]

    @property
    def default_size(self) -> Size:
        """The size of the images it was made for."""
        return Size(*self.configs["model_index"]["default_size"])

    def encode(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """Embed prompts one by one, so that none's bits depend on the others: text (B, L, D) and pooled (B, P)."""
        if self._dropped:
            raise RuntimeError("the text_encoder was dropped")
        words, length = (self.configs["text_encoder"][key] for key in ("words", "length"))
        parts = []
        for prompt in map(str, prompts):
            numbers = word_numbers(prompt, words)
            if len(numbers) > length:
                what = f"prompt cut to {length} words (got {len(numbers)}): {prompt[:60]!r}..."
                warnings.warn(what, DraftWarning, stacklevel=2)
            padded = [*numbers, *[0] * length][:length]
            with torch.no_grad():
                text, pooled = self._read("text_encoder")(torch.tensor([padded], device=self.device))
            parts.append(Conditioning({"text": text, "pooled": pooled}))
        return Conditioning.cat(parts)

    def unconditional(self, negative_prompt: str, size: Size) -> Conditioning:
        """The other branch of guidance, which embedded guidance does not call."""
        return self.encode([negative_prompt], size)

    def drop_encoders(self) -> None:
        """Free the text encoder."""
        self._dropped = True
        self._networks.pop("text_encoder", None)

    def denoise(self, latents: Latents, time: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity at latents (B, C, h, w), which the transformer sees as (h / 2) (w / 2) tokens of 4 C numbers."""
        tensors, height, width = conditioning.tensors, latents.shape[-2] // 2, latents.shape[-1] // 2
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        out = self.network(
            _packed(latents).to(self.dtype),
            torch.stack([rows.flatten(), columns.flatten()], dim=1).to(latents.device),
            time.to(latents.dtype) / 1000,
            tensors["text"].to(self.dtype),
            tensors["pooled"].to(self.dtype),
            tensors["guidance"].to(latents.dtype),
        )
        return _unpacked(out, height, width).to(latents.dtype)

    def decode(self, latents: Latents, *, straight_through: bool = False) -> Images:
        """Images in [0, 1], (B, 3, H, W)."""
        images = self._read("vae")(latents.to(self.dtype)).to(latents.dtype)
        return clip(images / 2 + 0.5, straight_through=straight_through)

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """(C, h, w); a token is 2 x 2 latents, so that a side must be a multiple of two latents."""
        latent = 2 ** int(self.configs["vae"]["stages"])
        if size.height % (2 * latent) or size.width % (2 * latent) or size.frames != 1:
            raise DraftError(f"resolution must be a multiple of {2 * latent} for this model (got {size})")
        return int(self.configs["vae"]["channels"]), size.height // latent, size.width // latent

    def schedule(self, size: Size, steps: int) -> FlowSchedule:
        """Noise levels shifted by e^mu, mu depending on tokens and steps."""
        _, height, width = self.latent_shape(size)
        return FlowSchedule(shift=math.exp(empirical_mu(height * width // 4, steps)))

    def checkpoint_blocks(self, on: bool) -> bool:
        """Recompute the transformer's blocks in backward."""
        self._recompute = on
        if "transformer" in self._networks:
            self._networks["transformer"].recompute = on
        return True

    def _read(self, component: str) -> Any:
        """A network: read in its precision when it is first asked for, frozen, in evaluation mode."""
        if component not in self._networks:
            file = self.folder / component / "model.safetensors"
            with _opened(file) as stored:
                weights = {name: stored.get_tensor(name).to(self.device, self.dtype) for name in stored.keys()}
            try:
                with torch.device("meta"):  # no memory, no random numbers
                    network = _KINDS[component](**self.configs[component])
                network.load_state_dict(weights, assign=True)
            except (TypeError, RuntimeError) as error:
                raise DraftError(f"{file} and its configuration do not go together ({error})") from error
            self._networks[component] = network.requires_grad_(False).eval()
            if component == "transformer":
                self._networks[component].recompute = self._recompute
        return self._networks[component]


def load(model: str, *, device: torch.device, dtype: torch.dtype) -> PocketFlow:
    """Open a folder of the family; weights are read when they are needed.

    Args:
        model: The folder.
        device: Where to.
        dtype: Precision of the weights.

    Returns:
        The model.

    Raises:
        DraftError: A file is missing or damaged.
    """
    folder = Path(model)
    configs = {component: _json(folder / component / "config.json") for component in _KINDS}
    for component in _KINDS:
        with _opened(folder / component / "model.safetensors"):
            pass
    return PocketFlow(folder, configs | {"model_index": _json(folder / "model_index.json")}, device, dtype)


def empirical_mu(tokens: int, steps: int) -> float:
    """The logarithm of the shift, linear in tokens and, up to 4300 of them, in steps: FLUX.2's `compute_empirical_mu`.

    Args:
        tokens: Of the packed latents.
        steps: Number of sampling steps.

    Returns:
        mu.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope


def _packed(latents: Tensor) -> Tensor:
    """(B, C, 2 h, 2 w) as (B, h w, 4 C)."""
    squares = latents.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # (B, C, h, 2, w, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    squares = tokens.unflatten(1, (height, width)).unflatten(-1, (-1, 2, 2))  # (B, h, w, C, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DraftError(f"{file} cannot be read ({error})") from error


def _opened(file: Path) -> Any:
    try:
        return safe_open(str(file), "pt")
    except (SafetensorError, OSError) as error:
        raise DraftError(f"{file} cannot be read or is damaged ({error})") from error
