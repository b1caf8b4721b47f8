"""A prompt file of a million lines: how long `draft check` takes, and what a training holds in memory for it.

    python benchmarks/prompts.py [LINES]

The bytes a line are what stays allocated by Python and by torch's tensors once the prompts are read and their order is
drawn, less the text itself; embeddings are not in memory (`draft cache`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

from draft.prompts import load_prompts
from draft.training.state import Randomness

PIPELINE = """
name: million
stages:
  train:
    kind: train
    model: owner/model
    prompts: {file: prompts.txt}
    rewards: {jpeg: {}}
"""


def check_seconds(folder: Path) -> float:
    """How long `draft check` takes, from the start of its process."""
    (folder / "million.yaml").write_text(PIPELINE)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "draft", "check", str(folder / "million.yaml")], check=True)
    return time.perf_counter() - began


def bytes_a_line(file: Path) -> tuple[float, float, float]:
    """Bytes a line of the text, of the packed prompts besides it, and of their order."""
    text = sum(len(line.strip().encode()) for line in file.open(encoding="utf-8"))
    tracemalloc.start()
    prompts = load_prompts(file)
    packed, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    random = Randomness(0, len(prompts))
    random.indices(4)
    order = random.state()["queue"]
    return text / len(prompts), (packed - text) / len(prompts), order.numel() * order.itemsize / len(prompts)


def main() -> None:
    """Print the figures."""
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "prompts.txt"
        with file.open("w", encoding="utf-8") as stream:
            for number in range(lines):
                stream.write(f"a photograph of thing number {number} in a room with a window\n")
        seconds = check_seconds(folder)
        text, packed, order = bytes_a_line(file)
    print(f"{lines} prompts: draft check {seconds:.1f} s")
    print(f"bytes a line: text {text:.1f}, besides it {packed:.1f}, order {order:.1f}; at most 32 besides the text")


if __name__ == "__main__":
    main()
