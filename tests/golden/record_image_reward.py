"""Record in `image_reward.json` what the published package `image-reward` says of the model in `image_reward_small.py`.

The numbers come from `ImageReward.score` itself, with its tokenizer, its transform, its BLIP and its head. It needs an
environment of its own, which Draft's tests never need:

    pip install torch==2.13.0 "numpy<2" pillow transformers==4.27.4 setuptools
    pip install --no-deps torchvision==0.28.0 timm==0.6.13 image-reward==1.5
    pip install --no-deps --no-build-isolation fairscale==0.4.13
    python tests/golden/record_image_reward.py

Three things have to be helped, all in `main`: a torchvision that does not fit to the torch that is installed has no
compiled operators, which are declared so that its transforms, all in Python, can be imported; the package's own
`__init__` imports trainers and CLIP, so its modules are imported past it; the sizes are the published ones by default,
so the two functions that set them are replaced for the small model.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import image_reward_small as small
import torch

FILE = Path(__file__).with_name("image_reward.json")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MED = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "model_type": "bert",
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "encoder_width": 768,
    "add_cross_attention": True,
}
SMALL = {"hidden_size": small.WIDTH, "intermediate_size": 192, "max_position_embeddings": 40, "num_attention_heads": 2}
FULL = {"hidden_size": 768, "intermediate_size": 3072, "max_position_embeddings": 512, "num_attention_heads": 12}


def patterns(shapes: dict[str, list[int]]) -> dict[str, Any]:
    """Names with their layer's number as "#", to how many layers there are (0: it is no layer's) and the shape."""
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        pattern, layered = re.subn(r"\.(blocks|layer)\.\d+\.", r".\1.#.", name)
        found[pattern] = [found.get(pattern, [0])[0] + layered, shape]
    return found


def main() -> None:
    """Run the published code and write the file."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import importlib.metadata
    import importlib.util
    import types

    from PIL import Image

    spec = importlib.util.find_spec("ImageReward")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    for name, path in (("ImageReward", root), ("ImageReward.models", root / "models")):
        module = types.ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module
    import ImageReward.ImageReward as published
    from ImageReward.models.BLIP import blip_pretrain

    def med(sizes: dict[str, int], layers: int, words: int) -> str:
        Path("med_config.json").write_text(
            json.dumps({**MED, **sizes, "num_hidden_layers": layers, "vocab_size": words})
        )
        return "med_config.json"

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("bert-base-uncased").mkdir()
        Path("bert-base-uncased/vocab.txt").write_text("\n".join(small.VOCABULARY), encoding="utf-8")
        full = published.ImageReward(med(FULL, 12, 30524))
        full_size = patterns({name: list(tensor.shape) for name, tensor in full.state_dict().items()})
        del full
        from ImageReward.models.BLIP.vit import VisionTransformer

        tower = VisionTransformer(
            img_size=small.SIDE, patch_size=small.PATCH, embed_dim=small.WIDTH, depth=small.LAYERS, num_heads=2
        )
        blip_pretrain.create_vit = lambda *sizes: (tower, small.WIDTH)
        head, transform = published.MLP, published._transform
        published.MLP, published._transform = lambda width: head(small.WIDTH), lambda side: transform(small.SIDE)
        model = published.ImageReward(med(SMALL, small.LAYERS, len(small.VOCABULARY) + 2))
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        model.load_state_dict(small.weights(shapes))
        model.eval()
        scores, rows = {}, {}
        colours = [torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD)]
        for height, width in small.SIZES:
            image = Image.fromarray(small.picture(height, width).permute(1, 2, 0).numpy())
            scores[f"{height}x{width}"] = [model.score(prompt, image) for prompt in small.PROMPTS]
            levels = (model.preprocess(image) * colours[1] + colours[0]) * 255
            rows[f"{height}x{width}"] = levels[:, small.ROW].round().int().tolist()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "pillow"))
    result = {
        "provenance": "image-reward 1.5 of PyPI (Apache-2.0, https://github.com/zai-org/ImageReward) on a CPU, its "
        f"method ImageReward.score; {versions}, Python {sys.version.split()[0]}",
        "shapes": shapes,
        "full_size": full_size,
        "rows": rows,
        "scores": scores,
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
    FILE.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print("wrote", FILE)


if __name__ == "__main__":
    main()
