"""The autoencoder: 64 px scenes to 16 x 16 x 4 latents and back."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.scenes import Composer, Scene

CROP = 32
CROPS_UNTIL = 0.7
"""Share of the updates made on crops, which cost a quarter of a whole scene."""


def make_vae() -> AutoencoderKL:
    """An untrained autoencoder of three levels; the middle has no attention, as scenes are small."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def pictures(scenes: Sequence[Scene]) -> torch.Tensor:
    """Scenes as the networks take them: float32 in [-1, 1], shape (B, 3, 64, 64)."""
    stacked = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def unseen(count: int, seed: int = 1_000_003) -> list[Scene]:
    """Scenes from a seed that no training uses."""
    composer, rng = Composer(), np.random.default_rng((seed, 0))
    return [composer.scene(rng) for _ in range(count)]


def _picture_losses(decoded: torch.Tensor, true: torch.Tensor) -> dict[str, torch.Tensor]:
    """Distances of pixels, and of neighbours' differences, which keep edges sharp."""
    error = decoded.float() - true
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return {"l1": error.abs().mean(), "l2": error.square().mean(), "edges": 0.5 * edges}


def train_vae(sitting: Sitting, training: Training, init: Path | None = None) -> None:
    """Train encoder and decoder, then whiten the latents, and write ``vae/`` in the sitting's folder.

    Args:
        sitting: Where and how long.
        training: The schedule; `batch` counts crops, and a third as many whole scenes at the end.
        init: A diffusers folder to start from in place of random weights.
    """
    torch.manual_seed(sitting.seed)
    vae = make_vae() if init is None else AutoencoderKL.from_pretrained(init)
    vae.to(sitting.device)
    composer = Composer()
    # Weights to start from have seen crops already.
    crops_until = CROPS_UNTIL * (sitting.steps or training.steps) if init is None else 0

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((sitting.seed, 3, step))
        whole = step >= crops_until
        true = pictures([composer.scene(rng) for _ in range(training.batch // 3 if whole else training.batch)])
        if not whole:
            corners = rng.integers(0, 64 - CROP + 1, (len(true), 2))
            true = torch.stack([p[:, y : y + CROP, x : x + CROP] for p, (y, x) in zip(true, corners, strict=True)])
        true = true.to(sitting.device)
        with sitting.autocast():
            latents = vae.encode(true).latent_dist
            decoded = vae.decode(latents.sample()).sample
        mean, logvar = latents.mean.float(), latents.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return {**_picture_losses(decoded, true), "kl": 2e-4 * divergence}

    fit("vae_training", sitting, training, {"vae": vae}, loss_of, weight_decay=1e-3)
    finish_vae(vae, sitting)


def finish_vae(vae: AutoencoderKL, sitting: Sitting) -> None:
    """Whiten, write the folder and print the figures."""
    vae.eval()
    whiten(vae, pictures(unseen(512, seed=77)).to(sitting.device))
    vae.save_pretrained(sitting.out / "vae")
    print(f"vae: {psnr(vae, sitting.device):.2f} dB on unseen scenes")


@torch.no_grad()
def whiten(vae: AutoencoderKL, scenes: torch.Tensor) -> None:
    """Fold the latents' mean and deviation of each channel into the 1 x 1 convolutions around them.

    The Stable Diffusion pipeline divides by one number and adds no shift, so the weights must do it: afterwards
    each channel has mean 0 and deviation 1, `scaling_factor` is 1, and pictures decode exactly as before.

    Args:
        vae: Changed in place.
        scenes: Pictures to measure on, in [-1, 1], shape (B, 3, 64, 64).
    """
    means = torch.cat([vae.encode(part).latent_dist.mean for part in scenes.split(64)])
    shift, scale = means.mean((0, 2, 3)), means.std((0, 2, 3))
    channels = len(shift)
    before, after = vae.quant_conv, vae.post_quant_conv
    # Decode's input is now (z - shift) / scale, so the convolution has to undo it first.
    after.bias += after.weight[:, :, 0, 0] @ shift
    after.weight *= scale[None, :, None, None]
    before.weight[:channels] /= scale[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - shift) / scale
    before.bias[channels:] -= 2 * scale.log()
    vae.register_to_config(scaling_factor=1.0)


def train_decoder(sitting: Sitting, training: Training) -> None:
    """Train the decoder further while the encoder stays, so that latents and the denoiser remain valid.

    Args:
        sitting: Reads and rewrites ``vae/`` in its `out`.
        training: The schedule; `batch` counts whole scenes.
    """
    vae = AutoencoderKL.from_pretrained(sitting.out / "vae").to(sitting.device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    composer = Composer()

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((sitting.seed, 4, step))
        true = pictures([composer.scene(rng) for _ in range(training.batch)]).to(sitting.device)
        with sitting.autocast():
            with torch.no_grad():
                # The denoiser's latents are a little off, so the decoder learns to bear some noise.
                latents = vae.encode(true).latent_dist.mean
                latents = latents + 0.05 * torch.rand(len(latents), 1, 1, 1, device=latents.device) * torch.randn_like(
                    latents
                )
            decoded = vae.decode(latents).sample
        return _picture_losses(decoded, true)

    fit("decoder", sitting, training, {"vae": vae}, loss_of, weight_decay=1e-3)
    vae.eval()
    vae.save_pretrained(sitting.out / "vae")
    print(f"vae: {psnr(vae, sitting.device):.2f} dB on unseen scenes")


@torch.no_grad()
def psnr(vae: AutoencoderKL, device: str, count: int = 256) -> float:
    """Peak signal-to-noise ratio of decoded means on unseen scenes, in dB, over all pixels together."""
    errors = []
    for part in pictures(unseen(count)).to(device).split(64):
        decoded = vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(((decoded - part) / 2).square().mean())
    return -10 * math.log10(float(torch.stack(errors).mean()))
