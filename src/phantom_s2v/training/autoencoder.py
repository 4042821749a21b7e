"""Training of the autoencoder on composed emoji: stills, then clips."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from phantom_s2v.data.compose import compose, random_spec
from phantom_s2v.data.emoji import Sprites, subjects_hash
from phantom_s2v.model.autoencoder import build_autoencoder, skip_empty_history, to_pixels
from phantom_s2v.training.config import AutoencoderConfig
from phantom_s2v.training.loop import Loss, train


def batch(config: AutoencoderConfig, sprites: Sprites, step: int) -> dict[str, torch.Tensor]:
    """Pixels [B, 3, F, H, W] and the subjects' mask [B, 1, F, H, W] of a step: scenes and references, or clips."""
    rng = np.random.default_rng([config.train.seed, 1, step])
    clips = step >= config.still_steps and step % config.still_every != 0
    frames, count = (config.clip_frames, config.clips) if clips else (1, config.stills // 2)
    videos, masks = [], []
    for _ in range(count):
        clip = compose(random_spec(rng, sprites.subjects, frames, pictures=int(rng.integers(1, 3))), sprites)
        videos.append(clip.video)
        masks.append(clip.masks.max(0))
        if not clips:
            videos.append(clip.references[0][None])
            masks.append(np.full_like(clip.masks[0, :1], 128))
    return {"pixels": to_pixels(np.stack(videos)), "mask": torch.from_numpy(np.stack(masks)[:, None]).float() / 255}


def loss_of(config: AutoencoderConfig, model: nn.Module) -> Loss:
    """Absolute and squared error, heavier on subjects, and a light pull of the posterior towards a unit normal."""
    network: Any = model

    def loss(batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        pixels = batch["pixels"]
        posterior = network.encode(pixels).latent_dist
        latents = posterior.mode() if config.decoder_only else posterior.sample()
        error = (network.decode(latents).sample.float() - pixels).abs()
        weight = 1 + config.subject_weight * batch["mask"]
        mse = error.square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        total = (weight * (error + 4 * error.square())).mean() / weight.mean() + config.kl * kl * (not config.decoder_only)
        name = "psnr_still" if pixels.shape[2] == 1 else "psnr_clip"
        return {"loss": total, name: 10 * torch.log10(4 / mse.detach()), "kl": kl.detach()}

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
