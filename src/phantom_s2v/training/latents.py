"""Batches of composed triplets: scenes and tokens are drawn by worker processes, images and latents by the training's device.

Legend: B batch, K subjects, F frames, H side in pixels, T h w latent grid, n references, L text tokens.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch.nn.functional import avg_pool2d, interpolate

from phantom_s2v.data.synthetic.compose import ClipSpec, caption, plain_spec, random_spec, scene_tensors
from phantom_s2v.data.synthetic.emoji import Sprites, Subject
from phantom_s2v.data.synthetic.render import Tensors, render
from phantom_s2v.geometry import SPACE_STRIDE, TIME_STRIDE
from phantom_s2v.models.autoencoder import latents_of
from phantom_s2v.models.phantom.conditioning import Conditions
from phantom_s2v.models.phantom.encoders import ImageEncoder, TextEncoder
from phantom_s2v.training.config import TransformerConfig

TEXT_PLACES = 48  # tokens of a caption on a GPU, where one length means one compiled shape; four named subjects fit
IMAGE_SIDE = 64  # pixels of what the image encoder sees
VALIDATION = 48  # animated families that the transformer never learns from, and its validation is measured on
ENCODED_FRAMES = {"cpu": 64, "cuda": 800}  # at 128 pixels, encoded at once


def validation_families(subjects: tuple[Subject, ...]) -> frozenset[str]:
    """Families of training subjects set aside to measure progress on: animated ones, in the order of their hashes."""

    def order(family: str) -> str:
        return hashlib.sha256(f"phantom-s2v validation {family}".encode()).hexdigest()

    return frozenset(sorted({s.family for s in subjects if s.animated}, key=order)[:VALIDATION])


@dataclass(frozen=True)
class Triplets:
    """Batches by number, which follow from the seed alone: what is cheap to send, for `TripletEncoder`."""

    sprites: Sprites
    config: TransformerConfig
    text: TextEncoder  # only its tokenizer is used
    pad_text: bool  # to TEXT_PLACES

    def __call__(self, number: int, together: int = 1) -> Tensors:
        """Scene tensors, tokens and mask [B, L], and the side, of a batch. Those of a step, `together`, have one bucket."""
        step, place = divmod(number, together)
        seed = [self.config.train.seed, 6, step]
        shared = np.random.default_rng(seed)
        shares = np.array([bucket.share_at(step / self.config.ramp_steps) for bucket in self.config.buckets])
        bucket = self.config.buckets[int(shared.choice(len(shares), p=shares / shares.sum()))]
        counts, odds = zip(*self.config.references, strict=True)
        count = int(shared.choice(counts, p=np.array(odds) / sum(odds)))
        rng = np.random.default_rng([*seed, place])
        specs = [self._spec(rng, bucket.frames, bucket.side, count) for _ in range(bucket.batch)]
        tokens, mask = self.text.tokens([caption(spec, self.sprites) for spec in specs], TEXT_PLACES if self.pad_text else None)
        scenes = scene_tensors(specs, self.sprites)
        return {**scenes, "tokens": tokens, "text_mask": mask, "side": torch.tensor(bucket.side)}

    def _spec(self, rng: np.random.Generator, frames: int, side: int, references: int) -> ClipSpec:
        plain = references in (1, 2) and rng.random() < self.config.plain
        draw: Any = partial(plain_spec if plain else random_spec, images=references)
        return draw(rng, self.sprites.subjects, frames, side)


@dataclass(frozen=True)
class TripletEncoder:
    """Frozen networks that make a training batch of what `Triplets` draws, on the device that they are on."""

    pixels: (
        np.ndarray | torch.Tensor
    )  # the store's sprites, uint8 [N, S, S, 4]; a tensor on the device, or a memory map on the CPU
    autoencoder: AutoencoderKLWan
    image_encoder: ImageEncoder
    text: TextEncoder

    @torch.no_grad()
    def __call__(self, batch: Tensors) -> Tensors:
        """Latents [B, C, T, h, w], references [B, n, C, h, w], image tokens, subjects [B, n], text and its mask, and how much of
        each latent position subjects cover, [B, T, h, w].
        """
        with torch.autocast(batch["path"].device.type, enabled=False):  # places are exact to fractions of a pixel
            drawn = render(batch, self.pixels, int(batch["side"]))
        n = drawn.references.shape[1]
        images = _to_pixels(drawn.references.flatten(0, 1))
        small = interpolate(images, (IMAGE_SIDE, IMAGE_SIDE), mode="bilinear", antialias=True)
        video = _to_pixels(drawn.video).transpose(1, 2)
        at_once = max(1, ENCODED_FRAMES[video.device.type] * 128**2 // video[0, 0].numel())
        latents = torch.cat([self._latents(part) for part in video.split(at_once)])
        flat, tokens = self._references(images, small) if n else _no_references(latents, self.image_encoder)
        return {
            "latents": latents,
            "references": flat.unflatten(0, (len(latents), n)),
            "image_tokens": tokens.float().unflatten(0, (len(latents), n)),
            "subjects": batch["subjects"],
            "text": self.text.features(batch["tokens"], batch["text_mask"]),
            "text_mask": batch["text_mask"],
            "subject_share": subject_share(drawn.masks),
        }

    def _references(self, images: torch.Tensor, small: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and image tokens of references [N, 3, H, W], some at a time."""
        at_once = ENCODED_FRAMES[images.device.type]
        latents = [self._latents(part[:, :, None])[:, :, 0] for part in images.split(at_once)]
        return torch.cat(latents), torch.cat([self.image_encoder(part) for part in small.split(at_once)])

    def _latents(self, video: torch.Tensor) -> torch.Tensor:
        """Latents float32 of videos [B, 3, F, H, W]. Autocast would convert weights in each call, and norms to float32."""
        with torch.autocast(video.device.type, enabled=False):
            return latents_of(self.autoencoder, video.to(self.autoencoder.dtype)).float()


def conditions_of(batch: Tensors) -> Conditions:
    """The conditions of an encoded batch, all seen."""
    return Conditions(
        image_seen=torch.ones_like(batch["subjects"], dtype=torch.bool),
        **{k: batch[k] for k in ("text", "text_mask", "references", "image_tokens", "subjects")},
    )


def _no_references(latents: torch.Tensor, image_encoder: ImageEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty latents and image tokens in the shapes of some."""
    width, side = image_encoder.config["width"], IMAGE_SIDE // 16
    return latents.new_zeros(0, *latents[0, :, 0].shape), latents.new_zeros(0, side * side, width)


def _to_pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in -1..1."""
    return images.movedim(-1, -3).float() / 127.5 - 1


def subject_share(masks: torch.Tensor) -> torch.Tensor:
    """How much of each latent position subjects cover, [B, T, h, w] in 0..1, from their masks uint8 [B, K, F, H, W]."""
    cover = avg_pool2d(masks.amax(1).float() / 255, SPACE_STRIDE)
    later = cover[:, 1:].unflatten(1, (-1, TIME_STRIDE)).mean(2) if cover.shape[1] > 1 else cover[:, 1:]
    return torch.cat([cover[:, :1], later], 1)
