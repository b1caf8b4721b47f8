"""The denoiser: v-prediction on latents, conditioned on the frozen text tower."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from draft_emoji.recipe.latents import read_shards
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.text import WIDTH
from draft_emoji.recipe.tokenizer import encode

NOISY = 650
"""Half of the times that the denoiser learns from lie above this one."""

EMPTY = 0.12
"""Share of captions replaced by the empty one, for classifier-free guidance."""


def make_unet() -> UNet2DConditionModel:
    """An untrained denoiser of 5.8 M parameters.

    Text enters at 8 x 8 only: attention at 16 x 16 halves the speed. In diffusers `attention_head_dim` of this class
    is the number of heads.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """The noise schedule that ships with the model; with v-prediction its first step starts from pure noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.020,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,
    )


def train_unet(sitting: Sitting, training: Training, shards: int = 10_000, average: float = 0.999) -> None:
    """Train the denoiser; the running average of its weights is what ships.

    Args:
        sitting: Reads ``latents/``, ``text_encoder/`` and ``tokenizer/`` in its `out`; writes ``unet/`` as checkpoint.
        training: The schedule.
        shards: The most files of latents to hold in memory.
        average: Decay of the running average in one update.
    """
    device = sitting.device
    latents, captions = read_shards(sitting.out / "latents", shards)
    ids = _tokens(CLIPTokenizer.from_pretrained(sitting.out / "tokenizer"), captions)
    tower = CLIPTextModel.from_pretrained(sitting.out / "text_encoder").to(device).eval().requires_grad_(False)
    torch.manual_seed(sitting.seed)
    unet = make_unet().to(device, memory_format=torch.channels_last)
    # At 64 positions the plain products are a fifth faster in a training step on a CPU than the fused attention.
    unet.set_attn_processor(AttnProcessor())
    smooth = copy.deepcopy(unet).requires_grad_(False)
    alphas = make_scheduler().alphas_cumprod.to(device)

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((sitting.seed, 5, step))
        rows = rng.integers(len(latents), size=training.batch)
        clean = latents[rows].to(device).float()
        tokens = ids[np.where(rng.random(training.batch) < EMPTY, len(ids) - 1, rows)].to(device).long()
        times = torch.from_numpy(draw_times(rng, training.batch)).to(device)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(device)
        with torch.no_grad():
            states = tower(tokens).last_hidden_state
        keep, spoil = (part.sqrt().view(-1, 1, 1, 1) for part in (alphas[times], 1 - alphas[times]))
        noisy = (keep * clean + spoil * noise).contiguous(memory_format=torch.channels_last)
        with sitting.autocast():
            velocity = unet(noisy, times, encoder_hidden_states=states, return_dict=False)[0]
        return {"v": (velocity.float() - (keep * noise - spoil * clean)).square().mean()}

    def after(step: int) -> None:
        follow(smooth, unet, min(average, (step + 1) / (step + 10)))

    fit("unet", sitting, training, {"unet": unet, "smooth": smooth}, loss_of, after=after, every=200)


def draw_times(rng: np.random.Generator, count: int) -> np.ndarray:
    """Times of the noise schedule, one from each of `count` equal spans, so that batches are alike.

    Half of them are uniform, and half lie in the noisy part: what a picture shows is decided there, and only there
    does the denoiser need the caption.

    Returns:
        Int64 in [0, 1000), shape (count,).
    """
    spans = (np.arange(count) + rng.random(count)) / count
    return np.where(spans < 0.5, 2000 * spans, NOISY + (1000 - NOISY) * (2 * spans - 1)).astype(np.int64)


def _tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids of all captions and of the empty one, last: int16, shape (n + 1, 24)."""
    parts = [encode(tokenizer, captions[start : start + 4000]).short() for start in range(0, len(captions), 4000)]
    return torch.cat([*parts, encode(tokenizer, [""]).short()])


@torch.no_grad()
def follow(smooth: nn.Module, live: nn.Module, decay: float) -> None:
    """Move a running average towards the live weights."""
    torch._foreach_lerp_(list(smooth.parameters()), list(live.parameters()), 1 - decay)


def load_smooth(folder: Path) -> UNet2DConditionModel:
    """The running average of a checkpoint folder; untrained weights where there is none yet."""
    from safetensors.torch import load_file

    unet = make_unet()
    if (folder / "smooth.safetensors").exists():
        unet.load_state_dict(load_file(folder / "smooth.safetensors"))
    return unet.eval()
