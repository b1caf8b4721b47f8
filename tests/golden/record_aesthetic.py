"""Record in `aesthetic.json` what LAION's published head says of LAION's mean embeddings of rated pictures.

The head is `sac+logos+ava1-l14-linearMSE.pth` of github.com/christophschuhmann/improved-aesthetic-predictor
(Apache-2.0), the embeddings are `vit_l_14_embeddings/rating{0,5,9}.npy` of github.com/LAION-AI/aesthetic-predictor (MIT):
means over the pictures that people rated 0, 5 and 9. Neither is kept here, the numbers are. Put them into one folder:

    cd FOLDER
    curl -LO https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/6934dd81792f086e613a121dbce43082cb8be85e/sac+logos+ava1-l14-linearMSE.pth
    for r in 0 5 9; do
        curl -Lo vit_l_14_embeddings_rating$r.npy https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/6d122adad522ab246644d9dc1c6d7a3810ee255f/vit_l_14_embeddings/rating$r.npy
    done

and run `python tests/golden/record_aesthetic.py FOLDER`. `DRAFT_AESTHETIC_DATA=FOLDER pytest -m weights` compares.
"""  # noqa: E501 the addresses

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
RATINGS = (0, 5, 9)


class MLP(nn.Module):
    """The layers of `simple_inference.py`, under its names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)),
            *(nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)),
        )


def main() -> None:
    """Record scores and digests."""
    folder = Path(sys.argv[1])
    files = {HEAD: folder / HEAD}
    files |= {name: folder / name for name in (f"vit_l_14_embeddings_rating{r}.npy" for r in RATINGS)}
    model = MLP().eval()
    model.load_state_dict(torch.load(files[HEAD], map_location="cpu", weights_only=True))
    scores = {}
    for rating in RATINGS:
        embedding = np.load(folder / f"vit_l_14_embeddings_rating{rating}.npy")
        length = np.atleast_1d(np.linalg.norm(embedding, 2, -1))
        length[length == 0] = 1
        with torch.no_grad():
            vector = torch.from_numpy(embedding / np.expand_dims(length, -1)).float()
            scores[str(rating)] = round(model.layers(vector).item(), 5)
    recorded = {
        "provenance": {
            "recorder": "tests/golden/record_aesthetic.py",
            "head": "github.com/christophschuhmann/improved-aesthetic-predictor at "
            "6934dd81792f086e613a121dbce43082cb8be85e, Apache-2.0",
            "embeddings": "github.com/LAION-AI/aesthetic-predictor at 6d122adad522ab246644d9dc1c6d7a3810ee255f, MIT",
            "torch": torch.__version__,
        },
        "sha256": {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
        "scores": scores,
    }
    (HERE / "aesthetic.json").write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
