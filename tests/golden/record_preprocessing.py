"""Write preprocessing.json: what the published image processors made of photographs, at sampled pixels.

Run with the oldest transformers that Draft supports and a Pillow of its time, so that the numbers do not come from the
libraries under test:

    python -m venv /tmp/record
    /tmp/record/bin/pip install transformers==4.50.3 pillow==10.4.0 numpy==2.2.6 scipy scikit-image==0.26.0
    /tmp/record/bin/python tests/golden/record_preprocessing.py
"""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import numpy as np
import PIL
import scipy
import transformers
from photographs import CUTS, digest, photograph
from PIL import Image

HERE = Path(__file__).parent
SAMPLES = 24


def main() -> None:
    """Record every processor on every cut."""
    recorded = {
        "provenance": {
            "recorder": "tests/golden/record_preprocessing.py",
            "processors": "the slow image processors of transformers, from tests/golden/processors.json",
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
            "unit": "levels of 8 bits, before normalisation; a row is y, x, red, green, blue",
        },
        "photographs": {name: digest(photograph(name)) for name in CUTS},
        "cases": [],
    }
    for model, entry in json.loads((HERE / "processors.json").read_text()).items():
        if model == "provenance":
            continue
        config = dict(entry["config"])
        kind = config.pop("feature_extractor_type", config.get("image_processor_type", "ViTFeatureExtractor"))
        processor = getattr(transformers, kind.replace("FeatureExtractor", "ImageProcessor"))(**config)
        for name in CUTS:
            if "Owlv2" in kind and name != "astronaut":
                # This transformers pads with grey what its OWLv2 wants padded with black; a square is not padded.
                continue
            pixels = processor(Image.fromarray(photograph(name)), return_tensors="np")["pixel_values"][0]
            mean, std = (np.array(config[key])[:, None, None] for key in ("image_mean", "image_std"))
            levels = (pixels.astype(np.float64) * std + mean) * 255
            _, height, width = levels.shape
            generator = np.random.default_rng(0)
            rows, columns = generator.integers(height, size=SAMPLES), generator.integers(width, size=SAMPLES)
            recorded["cases"].append(
                {
                    "model": model,
                    "photograph": name,
                    "shape": list(levels.shape),
                    "mean": [round(float(one), 3) for one in levels.mean(axis=(1, 2))],
                    "samples": [
                        [int(y), int(x), *(round(float(one), 2) + 0.0 for one in levels[:, y, x])]
                        for y, x in zip(rows, columns, strict=True)
                    ],
                }
            )
    # One row of numbers per line.
    rows = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", json.dumps(recorded, indent=1))
    (HERE / "preprocessing.json").write_text(rows + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
