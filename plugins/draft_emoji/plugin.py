"""The embedded world's models under the names pipelines use: `emoji`, `emoji/clip`, `emoji/judge`."""

from __future__ import annotations

import draft
from draft_emoji import WEIGHTS


@draft.hookimpl
def draft_models() -> list[draft.NamedModel]:
    """Name the small models that ship with Draft; they are stand-ins trained on emoji, nothing more."""
    return [
        draft.NamedModel(
            "emoji",
            WEIGHTS / "text_to_image",
            "text-to-image",
            "a small latent diffusion model of emoji scenes, 64 px",
            "Apache-2.0",
        ),
        draft.NamedModel(
            "emoji/clip",
            WEIGHTS / "clip",
            "clip",
            "a small CLIP trained on emoji scenes and their captions",
            "Apache-2.0",
        ),
        draft.NamedModel(
            "emoji/judge",
            WEIGHTS / "judge",
            "image-classifier",
            "a multi-label RegNet that says which objects a scene shows, trained on real renders only",
            "Apache-2.0",
        ),
    ]
