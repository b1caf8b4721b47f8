"""Record in `hpsv2.json` what the published package `hpsv2` says of the model in `hpsv2_small.py`.

The numbers come from `hpsv2.img_score.score` itself, from its tokenizer and its transform, with a checkpoint in the
published format. It needs an environment of its own, which Draft's tests never need:

    pip install -e . ftfy regex clint requests
    pip install --no-deps hpsv2==1.2.0 torchvision==0.28.0       # and again with torchvision==0.16.2
    python tests/golden/record_hpsv2.py

Two things have to be helped. The wheel of hpsv2 1.2.0 lacks `hpsv2/src/open_clip/bpe_simple_vocab_16e6.txt.gz`; take it
from its repository at 866735e. And a torchvision that does not fit to the torch that is installed has no compiled
operators: `main` declares them, so that its transforms, which are Python, can be imported. Each run replaces the
entries of its own torchvision, because antialiasing began with version 0.17.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import hpsv2_small as small
import torch

FILE = Path(__file__).with_name("hpsv2.json")


def main() -> None:
    """Record the entries of the torchvision that is installed."""
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import ftfy
    import torchvision
    from hpsv2 import img_score
    from hpsv2.src.open_clip import factory, tokenizer
    from PIL import Image

    golden: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ViT-H-14-small.json").write_text(json.dumps(small.MODEL), encoding="utf-8")
        factory.add_model_config(folder)
        model, _, transform = factory.create_model_and_transforms(
            "ViT-H-14-small", precision="amp", light_augmentation=True, aug_cfg={}, output_dict=True
        )
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        file = str(Path(folder) / "small.pt")
        torch.save({"state_dict": small.checkpoint(shapes)}, file)
        # What `score` would download and build on its first call.
        img_score.model_dict.update(model=model, preprocess_val=transform)

        pixels, scores = [], []
        for number, (height, width) in enumerate(small.SIZES):
            image = Image.fromarray(small.picture(height, width, number).permute(1, 2, 0).numpy())
            prompt = small.PROMPTS[number]
            probes = transform(image).flatten()[::53]
            pixels.append({"height": height, "width": width, "probes": [round(float(x), 6) for x in probes]})
            (score,) = img_score.score(image, prompt, cp=file)
            scores.append({"height": height, "width": width, "prompt": prompt, "score": round(float(score), 7)})
    with torch.device("meta"):
        whole = factory.CLIP(**factory.get_model_config("ViT-H-14"))
    golden["shapes"] = shapes
    golden["vit_h_14"] = small.outline({name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()})
    golden.setdefault("pixels", {})[torchvision.__version__.split("+")[0]] = pixels
    golden.setdefault("scores", {})[torchvision.__version__.split("+")[0]] = scores
    golden["vocabulary"], golden["merges"], golden["tokens"] = _tokens(tokenizer, small.PROMPTS)
    vocabulary = hashlib.sha256(Path(tokenizer.default_bpe()).read_bytes()).hexdigest()
    golden["provenance"] = (
        "hpsv2 1.2.0 of PyPI (Apache-2.0, https://github.com/tgxs002/HPSv2 at 866735e) on a CPU, its functions "
        f"img_score.score, create_model_and_transforms and tokenize; bpe_simple_vocab_16e6.txt.gz {vocabulary[:16]} "
        f"(OpenAI's CLIP, MIT), of which the tokens of the prompts are here; ftfy {ftfy.__version__}, torch "
        f"{torch.__version__}, Python {sys.version.split()[0]}"
    )
    FILE.write_text(_lines(golden), encoding="utf-8")


def _tokens(tokenizer: Any, prompts: list[str]) -> tuple[dict[str, int], list[str], list[dict[str, Any]]]:
    """What the published tokenizer makes of the prompts, and the part of its vocabulary that this takes."""
    whole = tokenizer._tokenizer
    used: set[tuple[str, str]] = set()
    ranks = whole.bpe_ranks

    class Watched(dict):
        def get(self, pair: Any, default: Any = None) -> Any:
            if pair in self:
                used.add(pair)
            return super().get(pair, default)

    whole.bpe_ranks = Watched(ranks)
    whole.cache.clear()
    tokens = []
    for prompt in prompts:
        ids = tokenizer.tokenize([prompt])[0]
        tokens.append({"prompt": prompt, "ids": ids[: int(ids.argmax()) + 1].tolist()})
    letters = list(tokenizer.bytes_to_unicode().values())
    merges = sorted(used, key=lambda pair: ranks[pair])
    known = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: whole.encoder[token] for token in known}
    vocabulary |= {"<|startoftext|>": whole.encoder["<start_of_text>"], "<|endoftext|>": whole.encoder["<end_of_text>"]}
    return vocabulary, [" ".join(pair) for pair in merges], tokens


def _lines(golden: dict[str, Any]) -> str:
    """One line per entry, so that a change shows what changed."""
    order = ("provenance", "vit_h_14", "shapes", "tokens", "scores", "pixels", "merges", "vocabulary")
    parts = [f"{json.dumps(key)}: {json.dumps(golden[key])}" for key in order]
    return "{\n" + ",\n".join(parts).replace("}, {", "},\n{") + "\n}\n"


if __name__ == "__main__":
    main()
