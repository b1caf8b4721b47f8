"""What a model family is, as a row that every layer may read; importing it costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Guidance = Literal["classifier_free", "one_plus", "norm_rescaled", "embedded", "none"]
"""How `guidance_scale` g acts. With c and u the network's outputs with the prompt and with the negative prompt:

`classifier_free` is u + g (c - u); `one_plus` is c + g (c - u); `norm_rescaled` is u + g (c - u) with each token's norm
set back to that of c; `embedded` gives g to the network as an input, and there is no u; `none` has no guidance.
"""


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Ends of the names of the attention's layers in most of diffusers' denoisers."""


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """How a family's adapter files are written and marked.

    Args:
        format: The format that its tools share: kohya's names, or diffusers'.
        architecture: The `modelspec.architecture` in their headers; empty: the family's name.
        base_version: kohya's `ss_base_model_version`; empty: none.
        resolution: The `modelspec.resolution`, `1024x1024`; empty: none.
        reader: The class in diffusers' `loaders.lora_pipeline` that reads them, to check what Draft wrote.
    """

    format: Literal["kohya", "diffusers"] = "diffusers"
    architecture: str = ""
    base_version: str = ""
    resolution: str = ""
    reader: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family, known without importing torch or diffusers.

    Args:
        name: Its short name, `sd`; adapter files name their family by it.
        title: What people call it, `Stable Diffusion 1.x and 2.x`.
        pipeline: The class name in a model folder's `model_index.json`.
        part: The denoiser's component, and the first part of its modules' paths in adapter files.
        load: `module:function` that loads a model of the family, with the signature of
            `draft.diffusion.families.Load`; imported only then. Empty: the family's adapter files are read and written,
            its models are not trained.
        markers: Beginnings of tensor names that a single-file checkpoint of the family has, all of them; empty: single
            files of the family are not read. Where two families' markers are all there, the one with more is meant.
        encoders: The text encoders' components, and the first parts of their modules' paths in adapter files.
        components: What a folder in diffusers' format must hold: component to the class that `model_index.json` must
            name for it, empty where any will do. Nothing is checked of a family without.
        schedule: What its networks learn: to remove noise along a diffusion schedule, or the flow from noise to images.
        guidance: How `guidance_scale` acts.
        patch: Side, in latents, of the square that the network reads as one token; `norm_rescaled` guidance needs it.
        multiple: Pixels that both sides of an image must be multiples of. 0: as many as one latent covers, if the
            autoencoder's configuration is in diffusers' format; if not, loading knows.
        targets: Ends of the names of the modules that get a LoRA where `lora.targets` is not given.
        files: How its adapter files are written and marked.
        stand_in: The embedded model that replaces one of the family in a rehearsal.
        needs: The libraries' versions that the family needs beyond Draft's own, as a requirement, `diffusers>=0.37`.
    """

    name: str
    title: str = ""
    pipeline: str
    part: Literal["unet", "transformer"]
    load: str = ""
    markers: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ("text_encoder",)
    components: Mapping[str, str] = field(default_factory=dict, hash=False)
    schedule: Literal["diffusion", "flow"] = "diffusion"
    guidance: Guidance = "classifier_free"
    patch: int = 1
    multiple: int = 0
    targets: tuple[str, ...] = ATTENTION
    files: AdapterFiles = AdapterFiles()
    stand_in: str = "emoji"
    needs: str = ""

    @property
    def architecture(self) -> str:
        """What `modelspec.architecture` calls it in adapter files."""
        return self.files.architecture or self.name

    @property
    def described(self) -> str:
        """The family in a message: its title and its pipeline's class."""
        return f"{self.title or self.name} ({self.pipeline})"
