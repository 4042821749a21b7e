"""Training of the autoencoder on composed emoji: stills, then clips."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from phantom_s2v.data.compose import ClipSpec, compose, random_spec
from phantom_s2v.data.emoji import Sprites, subjects_hash
from phantom_s2v.data.looks import TEXTURES
from phantom_s2v.model.autoencoder import build_autoencoder, skip_empty_history, to_pixels
from phantom_s2v.training.config import AutoencoderConfig
from phantom_s2v.training.loop import Loss, train

SMALLEST_ERROR = 1e-4  # 46 dB: what is better counts no more


def batch(config: AutoencoderConfig, sprites: Sprites, step: int) -> dict[str, torch.Tensor]:
    """Pixels [B, 3, F, H, W] and the subjects' mask [B, 1, F, H, W] of a step: scenes and references, or clips."""
    rng = np.random.default_rng([config.train.seed, 1, step])
    clips = step >= config.still_steps and step % config.still_every != 0
    frames, count = (config.clip_frames, config.clips) if clips else (1, config.stills)
    videos, masks = [], []
    for _ in range(count):
        clip = compose(_spec(rng, config, sprites, frames), sprites)
        reference = not clips and rng.random() < config.references
        videos.append(clip.references[0][None] if reference else clip.video)
        masks.append(np.full_like(clip.masks[0], 128) if reference else clip.masks.max(0))
    return {"pixels": to_pixels(np.stack(videos)), "mask": torch.from_numpy(np.stack(masks)[:, None]).float() / 255}


def _spec(rng: np.random.Generator, config: AutoencoderConfig, sprites: Sprites, frames: int) -> ClipSpec:
    spec = random_spec(rng, sprites.subjects, frames, pictures=int(rng.integers(1, 3)))
    if rng.random() >= config.textured:
        return spec
    return replace(spec, ground=replace(spec.ground, kind=str(rng.choice(TEXTURES))))


def loss_of(config: AutoencoderConfig, model: nn.Module) -> Loss:
    """Logarithm of the squared error, as PSNR has it, of frames and of their subjects, and a light pull towards a unit normal."""
    network: Any = model

    def loss(batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        pixels, mask = batch["pixels"], batch["mask"]
        posterior = network.encode(pixels).latent_dist
        latents = posterior.mode() if config.decoder_only else posterior.sample()
        error = (network.decode(latents).sample.float() - pixels).square().mean(1, keepdim=True)
        whole = error.mean((1, 2, 3, 4))
        subject = (error * mask).sum((1, 2, 3, 4)) / mask.sum((1, 2, 3, 4)).clamp(min=1)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        total = torch.stack([whole, subject]).add(SMALLEST_ERROR).log().mean() + config.kl * kl * (not config.decoder_only)
        name = "psnr_still" if pixels.shape[2] == 1 else "psnr_clip"
        return {"loss": total, name: 10 * torch.log10(4 / whole.detach()).mean(), "kl": kl.detach()}

    return loss


def train_autoencoder(config: AutoencoderConfig, sprites: Sprites, out: Path, init_from: Path | None) -> AutoencoderKLWan:
    """Train to the end of the config; the average, with its latent statistics measured, is saved in `out`/autoencoder."""
    torch.manual_seed(config.train.seed)
    model = AutoencoderKLWan.from_pretrained(init_from) if init_from else build_autoencoder()
    skip_empty_history(model)
    if config.decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    facts = {"subjects": subjects_hash(sprites.subjects), "config": asdict(config)}
    ema = train(
        config.train,
        model,
        lambda step: batch(config, sprites, step),
        lambda m: loss_of(config, m),
        out,
        facts,
        exclude=("encoder.conv_in", "decoder.conv_out"),
    )
    assert isinstance(ema, AutoencoderKLWan)
    export_autoencoder(ema, config, sprites, out / "autoencoder")
    return ema


@torch.no_grad()
def export_autoencoder(model: AutoencoderKLWan, config: AutoencoderConfig, sprites: Sprites, out: Path) -> None:
    """Measure means and deviations of the latent channels on fresh scenes and save with them."""
    if not config.decoder_only:
        latents, network = [], cast(Any, model)
        for step in range(40):
            rng = np.random.default_rng([config.train.seed, 2, step])
            clip = compose(random_spec(rng, sprites.subjects, 17), sprites)
            latents.append(network.encode(to_pixels(clip.video)[None]).latent_dist.mode())
        values = torch.cat(latents)
        model.register_to_config(latents_mean=values.mean((0, 2, 3, 4)).tolist(), latents_std=values.std((0, 2, 3, 4)).tolist())
    model.save_pretrained(out)
