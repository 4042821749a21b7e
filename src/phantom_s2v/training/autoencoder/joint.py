"""Training of the autoencoder on composed emoji, stills and clips in turn: its linear path, then the whole."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from phantom_s2v.data.synthetic.appearance import TEXTURES
from phantom_s2v.data.synthetic.compose import ClipSpec, compose, random_spec
from phantom_s2v.data.synthetic.emoji import Sprites
from phantom_s2v.data.synthetic.render import STANDARD
from phantom_s2v.models.autoencoder import build_autoencoder, skip_empty_history, to_pixels
from phantom_s2v.models.distributed import is_main
from phantom_s2v.models.tensors import align, save_part
from phantom_s2v.training.autoencoder.linear import linear_path, principal_start, whole
from phantom_s2v.training.checkpoint import saved
from phantom_s2v.training.config import AutoencoderConfig, TrainConfig
from phantom_s2v.training.guard import facts_of
from phantom_s2v.training.learner import Loss
from phantom_s2v.training.loop import CHECKPOINTS, train

SMALLEST_ERROR = 1e-4  # 46 dB: what is better counts no more
NUDGE = 0.3  # of a latent channel's std
SPREAD = 0.5  # power of a channel's weight in its variance: 0 makes all variances 1
LINEAR = ("resample", "time_conv", "conv_shortcut", "decoder.conv_in")  # layers that carry the linear path: they move slowly
HEADS = ("encoder.conv_in", "encoder.conv_out", "decoder.conv_out", "quant_conv", "post_quant_conv")  # AdamW takes them


def batch(config: AutoencoderConfig, sprites: Sprites, step: int, rank: int = 0) -> dict[str, torch.Tensor]:
    """Pixels [B, 3, F, H, W] and the subjects' mask [B, 1, F, H, W] of a process at a step: clips, or scenes and
    references."""
    rng = np.random.default_rng([config.train.seed, 1, step, rank])
    frames, count = config.batches[step % len(config.batches)]
    videos, masks = [], []
    for _ in range(max(1, round(count * (STANDARD / config.side) ** 2))):
        clip = compose(_spec(rng, config, sprites, frames), sprites)
        reference = frames == 1 and rng.random() < config.references
        videos.append(clip.references[0][None] if reference else clip.video)
        masks.append(np.full_like(clip.masks[0], 128) if reference else clip.masks.max(0))
    return {"pixels": to_pixels(np.stack(videos)), "mask": torch.from_numpy(np.stack(masks)[:, None]).float() / 255}


def _spec(rng: np.random.Generator, config: AutoencoderConfig, sprites: Sprites, frames: int) -> ClipSpec:
    spec = random_spec(rng, sprites.subjects, frames, config.side, images=int(rng.integers(1, 3)))
    if rng.random() >= config.textured:
        return spec
    return replace(spec, background=replace(spec.background, kind=str(rng.choice(TEXTURES))))


def loss_of(config: AutoencoderConfig, model: nn.Module, sampled: bool) -> Loss:
    """Logarithm of the squared error, as PSNR has it, of frames and of their subjects; where `sampled`, of latents drawn from
    the posterior, with a light pull of it toward a unit normal.
    """
    network: Any = model

    def loss(batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        pixels, mask = batch["pixels"], batch["mask"]
        posterior = network.encode(pixels).latent_dist
        latents = posterior.sample() if sampled else posterior.mode()
        error = (network.decode(latents).sample.float() - pixels).square().mean(1, keepdim=True)
        whole = error.mean((1, 2, 3, 4))
        subject = (error * mask).sum((1, 2, 3, 4)) / mask.sum((1, 2, 3, 4)).clamp(min=1)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        total = torch.stack([whole, subject]).add(SMALLEST_ERROR).log().mean() + config.kl * kl * sampled
        name = "psnr_still" if pixels.shape[2] == 1 else "psnr_clip"
        return {"loss": total, name: 10 * torch.log10(4 / whole.detach()).mean(), "kl": kl.detach()}

    return loss


def train_autoencoder(config: AutoencoderConfig, sprites: Sprites, out: Path, init_from: Path | None) -> AutoencoderKLWan:
    """Train to the end of the config; the average, with its latent statistics measured, is saved in `out`/autoencoder.

    Without `init_from` it starts from the linear path, which is trained in `out`/linear.
    """
    torch.manual_seed(config.train.seed)
    facts = facts_of("training.autoencoder.joint", sprites, init_from)
    model = (
        align(AutoencoderKLWan.from_pretrained(init_from, local_files_only=True, use_safetensors=True))
        if init_from
        else _start(config, sprites, out / "linear", facts)
    )
    skip_empty_history(model)
    if config.decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    ema = _train(config, config.train, sprites, model, out, facts)
    if is_main():
        export_autoencoder(ema, config, sprites, out / "autoencoder")
    return ema


def _start(config: AutoencoderConfig, sprites: Sprites, out: Path, facts: dict[str, Any]) -> AutoencoderKLWan:
    """Random weights but for the linear path, which is fitted first; a run that goes on brings its own."""
    if config.linear is None or saved(out.parent / CHECKPOINTS):
        return build_autoencoder()
    torch.set_num_threads(config.linear.threads)
    linear, pixels = linear_path(), composed(sprites, config.train.seed, side=config.side)
    principal_start(linear, pixels)
    return whole(_train(config, config.linear, sprites, linear, out, facts), pixels)


def _train(
    config: AutoencoderConfig, run: TrainConfig, sprites: Sprites, model: nn.Module, out: Path, facts: dict[str, Any]
) -> AutoencoderKLWan:
    """Train the whole network or its linear path, as `run` is one or the other of the config; returns the average."""
    linear = run is config.linear
    ema = train(
        run,
        model,
        lambda number, together: batch(config, sprites, *divmod(number, together)),
        lambda m: loss_of(config, m, sampled=not linear and not config.decoder_only),
        out,
        {**facts, "config": asdict(config)},
        exclude=() if linear else HEADS,
        slow=() if linear else LINEAR,
    )
    assert isinstance(ema, AutoencoderKLWan)
    return ema


def composed(sprites: Sprites, seed: int, count: int = 40, side: int = STANDARD) -> torch.Tensor:
    """Pixels [N, 3, 17, H, W] on which latents are measured."""
    rngs = [np.random.default_rng([seed, 2, index]) for index in range(count)]
    return torch.stack([to_pixels(compose(random_spec(rng, sprites.subjects, 17, side), sprites).video) for rng in rngs])


@torch.no_grad()
def export_autoencoder(model: AutoencoderKLWan, config: AutoencoderConfig, sprites: Sprites, out: Path) -> None:
    """Measure means and standard deviations of the latent channels on fresh scenes and save with them.

    What the image hangs on is left larger than the rest (SPREAD of its weight): noise then hides it last, as in coarse to fine.
    """
    if not config.decoder_only:
        network: Any = model
        clips = composed(sprites, config.train.seed, side=config.side)
        latents = torch.cat([network.encode(p[None]).latent_dist.mode() for p in clips])
        mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
        size = channel_weight(model, latents[:3], std).pow(SPREAD / 2)
        size /= size.square().mean().sqrt()
        model.register_to_config(latents_mean=mean.tolist(), latents_std=(std / size).tolist())
    save_part(model, out)


@torch.no_grad()
def channel_weight(model: AutoencoderKLWan, latents: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """How much of the image hangs on each latent channel, [C] with sum 1: the pixels' mean squared change where noise of NUDGE
    of a channel's std is added to it in `latents` [N, C, T, h, w].
    """
    network: Any = model
    generator = torch.Generator().manual_seed(0)
    noise = NUDGE * torch.randn(latents[:, 0].shape, generator=generator)
    before, changes = network.decode(latents).sample, []
    for channel, size in enumerate(std):
        perturbed = latents.clone()
        perturbed[:, channel] += size * noise
        changes.append((network.decode(perturbed).sample - before).square().mean())
    return torch.stack(changes) / torch.stack(changes).sum()
