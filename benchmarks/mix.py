"""Mixing two adapters of SDXL's size: what the algebra and the check cost, against reading and writing the files.

    python benchmarks/mix.py

Two rank-32 adapters for the 722 linear modules of SDXL's UNet are made up, written and mixed, exactly and at a smaller
rank. First `draft mix` and the plainest script that gives such a file run in turns, as a user would run them. Then come
the parts, in CPU-seconds of one core, so that the disk counts for nothing and the machine may be busy. At last the same
modules are merged as other tools do it, by their published formulas.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from draft.adapters.algebra.compress import compress, decompose
from draft.adapters.algebra.concatenation import concatenated
from draft.adapters.algebra.mix import ExactSum, mix
from draft.adapters.changes import Changes
from draft.adapters.files.formats import Adapter, Factors, read_adapter, write_adapter
from draft.adapters.identity import adapter_digest
from draft.adapters.mixture import mix_files
from draft.adapters.readback import compare

WEIGHTS = (0.7, 0.3)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# The environment of whoever runs it, so that only what is imported differs.
_IMPORTS = ("torch", "draft.adapters.mixture", "draft_cli.mix")


def sdxl_shapes() -> dict[str, tuple[int, int]]:
    """(in, out) of every linear module that kohya's tools train in SDXL's UNet, from diffusers' own model."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),  # pyright: ignore[reportArgumentType]
            attention_head_dim=(5, 10, 20),  # pyright: ignore[reportArgumentType]
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    return {
        f"unet.{name}": (module.in_features, module.out_features)
        for name, module in unet.named_modules()
        if ".attentions." in name and isinstance(module, torch.nn.Linear)
    }


def make_adapter(shapes: dict[str, tuple[int, int]], *, rank: int, seed: int, dtype: torch.dtype) -> Adapter:
    """Random factors whose spectrum falls, as that of a trained adapter does."""
    generator = torch.Generator().manual_seed(seed)
    fall = torch.logspace(0, -2, rank)
    modules = {}
    for name, (inner, out) in shapes.items():
        down = torch.randn(rank, inner, generator=generator) / inner**0.5 * fall[:, None]
        up = torch.randn(out, rank, generator=generator) * 0.1
        modules[name] = Factors(down.to(dtype), up.to(dtype))
    return Adapter(modules, "sdxl")


def fastest(work: Callable[[], object], repeats: int) -> float:
    """CPU-seconds of the fastest of several runs; waiting for a busy machine is not counted."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def import_seconds(module: str) -> float:
    """CPU-seconds that a fresh Python takes to start and import a module."""
    code = f"import {module}, time; print(time.process_time())"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


PLAIN = """
import sys
import torch
from safetensors.torch import load_file, save_file

one, two = map(load_file, sys.argv[1:3])
mixed = {}
for down in (name for name in one if name.endswith(".lora_down.weight")):
    module = down.removesuffix(".lora_down.weight")
    up = f"{module}.lora_up.weight"
    mixed[down] = torch.cat([one[down] * 0.7, two[down] * 0.3])
    mixed[up] = torch.cat([one[up], two[up]], 1)
    mixed[f"{module}.alpha"] = torch.tensor(float(len(mixed[down])))
save_file(mixed, sys.argv[3], metadata={"format": "pt"})
"""
"""What is asked for without any of the care: the factors below each other, in their dtype, unchecked."""

SAMPLED = """
import sys, threading, time
from pathlib import Path
from draft.adapters.mixture import mix_files

def anonymous():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

samples, done = [anonymous()], threading.Event()
def sample():
    while not done.wait(0.002):
        samples.append(anonymous())
thread = threading.Thread(target=sample)
thread.start()
mix_files([(Path(sys.argv[1]), 0.7), (Path(sys.argv[2]), 0.3)], Path(sys.argv[3]))
done.set()
thread.join()
print(samples[0], max(samples))
"""
"""A mix in a process that watches its memory; what it maps of files, the system can take back."""


def run(command: list[str]) -> tuple[float, float]:
    """Seconds by the clock, and CPU-seconds, of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def commands(paths: list[Path], folder: Path, repeats: int) -> None:
    """`draft mix` with all its checks, and the plain concatenation of the same files, in turns, as commands."""
    output = folder / "mix.safetensors"
    inputs = [f"{path}:{weight}" for path, weight in zip(paths, WEIGHTS, strict=True)]
    ways = {
        "plain concatenation": [sys.executable, "-c", PLAIN, *map(str, paths), str(folder / "plain.safetensors")],
        "draft mix": [sys.executable, "-m", "draft", "mix", *inputs, "-o", str(output), "--force"],
    }
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, command in ways.items():
            times[way].append(run(command))
    plain, whole = (tuple(map(min, zip(*times[way], strict=True))) for way in ways)
    print(f"\nas commands, fastest of {repeats}      by the clock       CPU")
    print(f"plain concatenation              {plain[0]:6.2f} s      {plain[1]:6.2f} s")
    print(f"draft mix, read back and checked {whole[0]:6.2f} s      {whole[1]:6.2f} s")
    print(
        f"ratio                            {whole[0] / plain[0]:6.2f} x      {whole[1] / plain[1]:6.2f} x   (bar 1.6)"
    )


def memory_of_mixing(paths: list[Path], output: Path) -> int:
    """Bytes of memory of its own, beyond the imports, that a process needs at most while it mixes files (Linux)."""
    done = subprocess.run(
        [sys.executable, "-c", SAMPLED, *map(str, paths), str(output)], check=True, capture_output=True
    )
    before, peak = map(int, done.stdout.split())
    return peak - before


def kohya_resize(factors: Factors, rank: int) -> Factors:
    """What kohya's resize_lora.py computes, restated: the SVD of the dense dW, in float32."""
    change = factors.up.float() @ factors.down.float() * factors.scale
    u, s, v = torch.linalg.svd(change)
    return Factors(v[:rank], u[:, :rank] @ torch.diag(s[:rank]))


def peft_cat(terms: list[tuple[Factors, float]]) -> Factors:
    """What peft's add_weighted_adapter(combination_type="cat") computes, restated: all of the weight on A."""
    down = torch.cat([f.down * (weight * f.scale) for f, weight in terms], 0)
    return Factors(down, torch.cat([f.up for f, _ in terms], 1))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp16")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for module in _IMPORTS:
        print(f"import {module:24s} {import_seconds(module):6.2f} s")
    shapes = sdxl_shapes()
    with tempfile.TemporaryDirectory() as folder:
        measure(shapes, Path(folder), options.rank, DTYPES[options.dtype], options.repeats)


def measure(shapes: dict[str, tuple[int, int]], folder: Path, rank: int, dtype: torch.dtype, repeats: int) -> None:
    """Everything but the imports."""
    paths = [folder / "a.safetensors", folder / "b.safetensors"]
    for seed, path in enumerate(paths):
        write_adapter(make_adapter(shapes, rank=rank, seed=seed, dtype=dtype), path)
    size = sum(path.stat().st_size for path in paths)
    print(f"\n{len(shapes)} modules, rank {rank}, {dtype}: two files of {size / 2e6:.0f} MB")
    commands(paths, folder, repeats)
    output = folder / "mix.safetensors"
    largest = max((inner + out) * 2 * rank for inner, out in shapes.values())
    print(f"\nmemory of its own, beyond imports {memory_of_mixing(paths, output) / 1e6:6.0f} MB")
    print(f"largest module in float64        {largest * 8 / 1e6:6.0f} MB\n")

    adapters = [read_adapter(path) for path in paths]
    terms = list(zip(adapters, WEIGHTS, strict=True))
    mixed = mix(terms)
    reading = fastest(lambda: [read_adapter(path) for path in paths], repeats)
    writing = fastest(lambda: [write_adapter(adapter, output) for adapter in adapters], repeats)
    files = reading + writing
    digests = fastest(lambda: [adapter_digest(path) for path in paths], repeats)
    algebra = fastest(lambda: mix(terms), repeats)
    placing = fastest(lambda: write_adapter(mixed, output), repeats)
    exact = ExactSum(terms)
    back = read_adapter(output)

    def check() -> None:
        none = dict.fromkeys(shapes, 0.0)
        compare(back.modules, exact.terms, none, dtype=dtype, where="", reader="Draft")

    checking = fastest(lambda: read_adapter(output), repeats) + fastest(check, repeats)
    whole = fastest(lambda: mix_files(list(zip(paths, WEIGHTS, strict=True)), output), repeats)
    print(f"reading both files               {reading:6.2f} s")
    print(f"writing both files               {writing:6.2f} s   together {files:.2f} s, the measure")
    print(f"sha256 of both files             {digests:6.2f} s")
    both = algebra + placing
    print(f"algebra ({algebra:.2f} s) and writing   {both:6.2f} s   {both / files:.2f} x (bar 3)")
    print(f"reading back and comparing       {checking:6.2f} s   {checking / files:.2f} x (bar 6)")
    print(f"mix_files, all of it             {whole:6.2f} s   {whole / files:.2f} x")

    start = time.perf_counter()
    cut = compress(Changes(exact, "sdxl"), rank=rank)
    print(
        f"\nto rank {rank}: QR and small SVD    {time.perf_counter() - start:6.2f} s   relative error {cut.error:.6f}"
    )
    peers(terms, rank)


def peers(terms: list[tuple[Adapter, float]], rank: int) -> None:
    """The dense SVD of kohya's resize and peft's cat beside ours, on one module of a common shape."""
    name = "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q"
    parts = [(adapter.modules[name], weight) for adapter, weight in terms]
    wanted = concatenated(parts)
    change = wanted.up @ wanted.down

    def off(factors: Factors) -> float:
        return float((factors.up.double() @ factors.down.double() - change).norm() / change.norm())

    print(f"\none module of {tuple(change.shape)}, seconds and relative error against the exact sum")
    rows = {
        f"kohya resize, dense SVD, rank {rank}": lambda: kohya_resize(wanted, rank),
        f"ours, QR and small SVD, rank {rank}": lambda: decompose(wanted, keep=lambda _: rank)[0],
        "peft cat": lambda: peft_cat(parts),
        "ours, exact": lambda: concatenated(parts),
    }
    for label, work in rows.items():
        print(f"{label:40s} {fastest(work, 3):8.5f} s   {off(work()):.6f}")


if __name__ == "__main__":
    main()
