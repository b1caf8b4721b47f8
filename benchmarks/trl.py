"""TRL's AlignPropTrainer 0.23.1 beside our draft_k: the same gradient, then seconds and memory per update.

    pip install --no-deps --target /tmp/trl -r benchmarks/trl-requirements.txt
    python benchmarks/trl.py --trl /tmp/trl

Both run on the same random model, prompts, noise and reward. The run first asserts that the LoRA gradients agree to
1e-5; only then it times both, each in a process of its own, so that peak memory is its own too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

PROMPTS = ["a cat", "a dog", "two birds", "a red house"]
GUIDANCE = 5.0
TOLERANCE = 1e-5
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"unet": {}, "vae": {}},
    "small": {
        "unet": {
            "sample_size": 16,
            "block_out_channels": (64, 160),
            "attention_head_dim": 4,
            "cross_attention_dim": 128,
            "norm_num_groups": 32,
        },
        "vae": {
            "block_out_channels": (32, 64, 96),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "norm_num_groups": 32,
            "sample_size": 64,
        },
    },
}


def score(images: Tensor) -> Tensor:
    """A smooth reward that sees every pixel, (B, 3, H, W) -> (B,)."""
    generator = torch.Generator("cpu").manual_seed(7)
    pattern = torch.randn(images.shape[1:], generator=generator).to(images)
    return (images * pattern).mean(dim=(1, 2, 3)) + images.square().mean(dim=(1, 2, 3))


def trainer(arguments: argparse.Namespace) -> Any:
    """TRL's trainer on the CPU."""
    sys.path.append(arguments.trl)
    from accelerate import PartialState

    PartialState(cpu=True)
    from trl.models.modeling_sd_base import DefaultDDPOStableDiffusionPipeline
    from trl.trainer.alignprop_config import AlignPropConfig
    from trl.trainer.alignprop_trainer import AlignPropTrainer

    torch.manual_seed(0)
    pipeline = DefaultDDPOStableDiffusionPipeline(arguments.model, use_lora=True)
    config = AlignPropConfig(
        mixed_precision="no",
        accelerator_kwargs={"cpu": True},
        sample_num_steps=arguments.steps,
        sample_eta=0.0,
        sample_guidance_scale=GUIDANCE,
        train_batch_size=arguments.batch,
        train_learning_rate=1e-3,
        train_gradient_accumulation_steps=1,
        truncated_backprop_rand=False,
        truncated_backprop_timestep=arguments.steps - arguments.k,
        save_freq=10**9,
    )
    count = iter(range(10**9))
    result = AlignPropTrainer(
        config,
        lambda images, prompts, _: (score(images), {}),
        lambda: (PROMPTS[next(count) % len(PROMPTS)], {}),
        pipeline,
    )
    pipeline.sd_pipeline.set_progress_bar_config(disable=True)
    return result


def gradients(arguments: argparse.Namespace) -> dict[str, float]:
    """Both LoRA gradients in one process, on the same weights and noise."""
    from draft.diffusion.families import load_text_to_image
    from draft.diffusion.guidance import guide
    from draft.diffusion.lora import add_lora, lora_parameters
    from draft.diffusion.schedule import make_grid
    from draft.diffusion.settings import LoraSettings, SamplerSettings
    from draft.diffusion.surrogate import Denoisers, sample_with_plan
    from draft.methods.modules import draw_plan
    from draft.methods.values import DraftK

    peer = trainer(arguments)
    generator = torch.Generator("cpu").manual_seed(1)
    weights = {name: p for name, p in peer.sd_pipeline.unet.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in weights.items():
            if "lora_B" in name:  # at B = 0 the gradient of A vanishes and the comparison with it
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model = load_text_to_image(arguments.model, device=torch.device("cpu"), dtype=torch.float32)
    size = model.default_size
    noise = torch.randn(arguments.batch, *model.latent_shape(size), generator=generator)
    peer.sd_pipeline.sd_pipeline.prepare_latents = lambda *_: noise
    pairs = peer._generate_samples(batch_size=arguments.batch)
    peer.accelerator.backward(peer.calculate_loss(peer.compute_rewards(pairs)))

    add_lora(model.network, LoraSettings(rank=4), seed=0)
    ours = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(weights[name])
    sampler = SamplerSettings(num_inference_steps=arguments.steps, final="first_alpha")
    grid = make_grid(model.schedule(size, arguments.steps), sampler)
    texts = model.encode([PROMPTS[k % len(PROMPTS)] for k in range(arguments.batch)], size)
    output = guide(model.denoise, grid, texts, model.unconditional("", size), GUIDANCE)
    plan = draw_plan(DraftK(k=arguments.k), arguments.steps, torch.Generator())
    images = model.decode(sample_with_plan(Denoisers(no_grad=output, with_grad=output), grid, plan, noise))
    (-score(images).mean()).backward()
    assert len(ours) == len(weights) == len(lora_parameters(model.network))
    difference = sum(float((ours[n].grad - weights[n].grad).square().sum()) for n in ours) ** 0.5
    norm = sum(float(weights[n].grad.square().sum()) for n in weights) ** 0.5
    return {
        "image difference": float((images - pairs["images"]).abs().max()),
        "gradient norm": norm,
        "relative gradient difference": difference / norm,
    }


def peer_seconds(arguments: argparse.Namespace) -> list[float]:
    """Seconds of each of TRL's updates."""
    peer = trainer(arguments)
    seconds = []
    for k in range(arguments.updates + 1):
        began = time.perf_counter()
        peer.step(k, k)
        seconds.append(time.perf_counter() - began)
    return seconds


def our_seconds(arguments: argparse.Namespace) -> list[float]:
    """Seconds of each of our updates, as `metrics.jsonl` has them."""
    from draft.diffusion.settings import LoraSettings, SamplerSettings
    from draft.methods.values import DraftK
    from draft.progress import Silent
    from draft.rewards.reward import Reward, Term
    from draft.training.settings import CheckpointSettings, TrainSettings
    from draft.training.train import train
    from draft.types import Prompts

    class Pattern(Reward):
        """The benchmark's reward."""

        name = "pattern"

        def load(self, device: torch.device) -> Any:
            return lambda images, prompts: score(images)

    settings = TrainSettings(
        method=DraftK(k=arguments.k),
        sampler=SamplerSettings(num_inference_steps=arguments.steps, guidance_scale=GUIDANCE, final="first_alpha"),
        lora=LoraSettings(rank=4),
        learning_rate=1e-3,
        max_steps=arguments.updates + 1,
        batch_size=arguments.batch,
        micro_batch_size=arguments.micro_batch,
        checkpoint=CheckpointSettings(every=0),
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        train(
            settings,
            model=arguments.model,
            prompts=Prompts(PROMPTS),
            terms=[Term("pattern", Pattern())],
            seed=0,
            folder=Path(folder),
            progress=Silent(),
        )
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds"] for row in rows]


def _tiny() -> ModuleType:
    path = Path(__file__).parent.parent / "tests" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _role(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.role == "gradients":
        return gradients(arguments)
    seconds = {"ours": our_seconds, "trl": peer_seconds}[arguments.role](arguments)
    # The first update warms caches up and is left out.
    return {"seconds": median(seconds[1:]), "GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _in_own_process(role: str, options: list[str]) -> dict[str, Any]:
    # -P: this file is called trl.py too, and must not be found in place of TRL.
    command = [sys.executable, "-P", __file__, "--role", role, *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{role} failed:\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Compare gradients, then time, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", default="/tmp/trl", help="where TRL 0.23.1 was installed to")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps; must divide 1000")
    parser.add_argument("--k", type=int, default=1, help="recorded steps")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=1, help="ours only; TRL decodes the batch at once")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    parser.add_argument("--role", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        print(json.dumps(_role(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = _tiny().save_tiny_model(Path(folder), **SHAPES[arguments.shape])
        config = model / "scheduler" / "scheduler_config.json"
        # TRL takes spacing from the model; it always lands on the first alpha, which is our `final: first_alpha`.
        config.write_text(json.dumps(json.loads(config.read_text()) | {"timestep_spacing": "trailing"}))
        options = [f"--model={model}", f"--trl={arguments.trl}", f"--steps={arguments.steps}", f"--k={arguments.k}"]
        options += [f"--batch={arguments.batch}", f"--updates={arguments.updates}"]
        options += [f"--micro-batch={arguments.micro_batch}"]
        compared = _in_own_process("gradients", options)
        for name, value in compared.items():
            print(f"{name}: {value:.3g}")
        if compared["relative gradient difference"] > TOLERANCE:
            sys.exit(f"the gradients differ by more than {TOLERANCE:g}: nothing to time")
        results = {role: _in_own_process(role, options) for role in ("trl", "ours")}
    print(f"\nK = {arguments.k} of {arguments.steps} steps, batch {arguments.batch}, {arguments.shape} model, CPU")
    print(f"{'':12}{'TRL 0.23.1':>12}{'draft_k':>12}{'ratio':>9}")
    for name in ("seconds", "GiB"):
        theirs, ours = results["trl"][name], results["ours"][name]
        print(f"{name:12}{theirs:12.3f}{ours:12.3f}{theirs / ours:9.2f}")


if __name__ == "__main__":
    main()
