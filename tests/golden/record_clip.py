"""Record in `clip.json` what published code says of the small CLIP in `clip_small.py` and of three photographs.

- OpenAI's own CLIP (github.com/openai/CLIP, `clip/model.py`): image and text vectors. It knows no QuickGELU by name, no
  padding and no transformers.
- LAION's predictor (github.com/christophschuhmann/improved-aesthetic-predictor, `simple_inference.py`): how it
  normalises in numpy, and its layers, on those image vectors.
- PickScore's model card (huggingface.co/yuvalkirstain/PickScore_v1): its snippet, with the transformers of its time.

It needs an environment of its own, which Draft's tests never need, and a clone of OpenAI's repository:

    git clone https://github.com/openai/CLIP /tmp/CLIP
    git -C /tmp/CLIP checkout d05afc436d78f1c48dc0dbf8e5980a9d471f35f6
    python -m venv /tmp/record
    /tmp/record/bin/pip install torch transformers==4.50.3 pillow==10.4.0 numpy==2.2.6 scikit-image==0.26.0
    /tmp/record/bin/python tests/golden/record_clip.py /tmp/CLIP
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from clip_small import END, HEAD, LAYERS, PROMPTS, START, WIDTH, head, save, tokens, weights
from photographs import CUTS, SQUARES, digest, photograph
from PIL import Image
from torch import nn

HERE = Path(__file__).parent


def openai_names(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the names of OpenAI's code, which holds q, k and v in one matrix and projections transposed."""
    theirs = {
        "logit_scale": ours["logit_scale"],
        "positional_embedding": ours["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": ours["text_model.embeddings.token_embedding.weight"],
        "text_projection": ours["text_projection.weight"].T,
        "visual.class_embedding": ours["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": ours["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": ours["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": ours["visual_projection.weight"].T,
    }
    norms = {"ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm"}
    norms["visual.ln_post"] = "vision_model.post_layernorm"
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for layer in range(LAYERS):
            old, new = f"{tower}.encoder.layers.{layer}", f"{prefix}transformer.resblocks.{layer}"
            norms |= {f"{new}.ln_1": f"{old}.layer_norm1", f"{new}.ln_2": f"{old}.layer_norm2"}
            for kind in ("weight", "bias"):
                parts = [ours[f"{old}.self_attn.{part}_proj.{kind}"] for part in ("q", "k", "v")]
                theirs[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
                theirs[f"{new}.attn.out_proj.{kind}"] = ours[f"{old}.self_attn.out_proj.{kind}"]
                theirs[f"{new}.mlp.c_fc.{kind}"] = ours[f"{old}.mlp.fc1.{kind}"]
                theirs[f"{new}.mlp.c_proj.{kind}"] = ours[f"{old}.mlp.fc2.{kind}"]
    for new, old in norms.items():
        theirs |= {f"{new}.{kind}": ours[f"{old}.{kind}"] for kind in ("weight", "bias")}
    return theirs


def openai(checkout: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Image vectors (3, 768) and text vectors (3, 768) of OpenAI's code, not normalised."""
    spec = importlib.util.spec_from_file_location("openai_clip_model", checkout / "clip" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.CLIP(768, 224, LAYERS, WIDTH, 14, 77, 49408, WIDTH, WIDTH // 64, LAYERS).eval()
    model.load_state_dict(openai_names(weights()))
    pixels = torch.stack([torch.from_numpy(photograph(name)) for name in SQUARES]).permute(0, 3, 1, 2).float() / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    # Its tokenize() fills with zeros, and its encode_text() reads where the highest number stands.
    ids = torch.zeros(len(PROMPTS), 77, dtype=torch.long)
    for row, prompt in enumerate(PROMPTS):
        found = tokens(prompt)
        assert (found[0], found[-1], max(found)) == (START, END, END)
        ids[row, : len(found)] = torch.tensor(found)
    with torch.no_grad():
        return model.encode_image(pixels), model.encode_text(ids)


def laion(vectors: torch.Tensor) -> torch.Tensor:
    """Scores (B,) of LAION's predictor for CLIP vectors."""
    a, b, c, d, e, f = HEAD
    layers = nn.Sequential(
        *(nn.Linear(a, b), nn.Dropout(0.2), nn.Linear(b, c), nn.Dropout(0.2)),
        *(nn.Linear(c, d), nn.Dropout(0.1), nn.Linear(d, e), nn.Linear(e, f)),
    )
    layers.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in head().items()})
    array = vectors.numpy()
    lengths = np.atleast_1d(np.linalg.norm(array, 2, -1))
    lengths[lengths == 0] = 1
    with torch.no_grad():
        return layers.eval()(torch.from_numpy(array / np.expand_dims(lengths, -1)))[:, 0]


def pickscore(folder: Path) -> dict[str, list[list[float]]]:
    """The model card's scores, one prompt at a time, of all squares and of all cuts."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    scored: dict[str, list[list[float]]] = {}
    for group, names in (("squares", SQUARES), ("cuts", CUTS)):
        images = [Image.fromarray(photograph(name)) for name in names]
        scored[group] = []
        for prompt in PROMPTS:
            common: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
            image_inputs, text_inputs = processor(images=images, **common), processor(text=prompt, **common)
            with torch.no_grad():
                image_embs = model.get_image_features(**image_inputs)
                image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
                text_embs = model.get_text_features(**text_inputs)
                text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
                scores = model.logit_scale.exp() * (text_embs @ image_embs.T)[0]
            scored[group].append([round(score, 5) for score in scores.tolist()])
    return scored


def main() -> None:
    """Record everything."""
    images, texts = openai(Path(sys.argv[1]))
    cosines = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    with tempfile.TemporaryDirectory() as folder:
        card = pickscore(save(Path(folder), "gelu"))
    recorded = {
        "provenance": {
            "recorder": "tests/golden/record_clip.py",
            "openai": "github.com/openai/CLIP at d05afc436d78f1c48dc0dbf8e5980a9d471f35f6",
            "laion": "github.com/christophschuhmann/improved-aesthetic-predictor at "
            "6934dd81792f086e613a121dbce43082cb8be85e",
            "pickscore": "the snippet of huggingface.co/yuvalkirstain/PickScore_v1",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
        "photographs": {name: digest(photograph(name)) for name in (*SQUARES, *CUTS)},
        "tokens": [tokens(prompt) for prompt in PROMPTS],
        "openai": {
            "images": [[round(one, 5) for one in row[:8]] for row in images.tolist()],
            "texts": [[round(one, 5) for one in row[:8]] for row in texts.tolist()],
            "cosines": [[round(one, 6) for one in row] for row in cosines.tolist()],
        },
        "laion": [round(one, 5) for one in laion(images).tolist()],
        "pickscore": card,
    }
    # One row of numbers per line.
    rows = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", json.dumps(recorded, indent=1))
    (HERE / "clip.json").write_text(rows + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
