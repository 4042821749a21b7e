"""Composed triplets -> shards of latents, so that training reads and never waits for composing or encoding.

A shard is a safetensors file of 64 triplets with one length and one number of pictures, named
`FRAMESf-PICTURESp-NUMBER.safetensors`. Shard i follows from the seed and i alone, so a killed run goes on where it was.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange
from torch import nn

from phantom_s2v.conditioning import encode_references
from phantom_s2v.data.compose import Clip, compose, plain_spec, random_spec
from phantom_s2v.data.emoji import Sprites, sprites_hash
from phantom_s2v.geometry import SPACE_STRIDE, TIME_STRIDE
from phantom_s2v.model.autoencoder import encode, to_pixels
from phantom_s2v.model.encoders import ImageEncoder, TextEncoder
from phantom_s2v.model.tensors import save_tensors
from phantom_s2v.model.weights import module_hash
from phantom_s2v.reuse import Origin, claim, code_version

ROWS = 64
TEXT_PLACES = 48  # stored tokens a caption; composed captions of four subjects fit
PICTURES = (0, 1, 2, 3, 4, 6)
PICTURES_SHARE = (0.04, 0.62, 0.22, 0.06, 0.04, 0.02)


def shard_kind(seed: int, number: int, plain_share: float = 0.0) -> tuple[int, int, bool]:
    """(frames, pictures, whether plain) of a shard: half are stills, half clips of 25 frames; plain ones have 1 or 2 pictures."""
    rng = np.random.default_rng([seed, 4, number])
    pictures, plain = int(rng.choice(PICTURES, p=PICTURES_SHARE)), bool(rng.random() < plain_share)
    return (1, 25)[number % 2], min(2, max(1, pictures)) if plain else pictures, plain


@torch.no_grad()
def encode_shards(
    out: Path,
    sprites: Sprites,
    autoencoder: AutoencoderKLWan,
    image_encoder: ImageEncoder,
    seed: int,
    numbers: range,
    dtype: torch.dtype,
    progress: Callable[[str], None],
    plain_share: float = 0.0,
) -> None:
    """Write the shards of `numbers` that `out` lacks, a share of them plain: one or two large subjects on a plain ground.

    Raises DataError where `out` holds shards of other weights, subjects, seed, share or code.
    """
    text = TextEncoder()
    claim(out, shards_origin(sprites, (autoencoder, image_encoder, text.model), seed, plain_share), "*.safetensors", "shards")
    for number in numbers:
        frames, pictures, plain = shard_kind(seed, number, plain_share)
        path = out / f"{frames}f-{pictures}p-{number:06d}.safetensors"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, 5, number])
        draw = partial(plain_spec if plain else random_spec, pictures=pictures)
        clips = [compose(draw(rng, sprites.subjects, frames), sprites) for _ in range(ROWS)]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            shard = encode_clips(clips, autoencoder, image_encoder, text)
        save_tensors(shard, path)
        progress(path.name)


def shards_origin(sprites: Sprites, networks: Iterable[nn.Module], seed: int, plain_share: float) -> Origin:
    """All that makes shards; numbers that are shared among processes and the type of products do not count."""
    weights = [module_hash(network) for network in networks]
    return {
        "seed": seed,
        "plain_share": plain_share,
        "rows": ROWS,
        "subjects": sprites_hash(sprites),
        "weights": dict(zip(("autoencoder", "image_encoder", "text_encoder"), weights, strict=True)),
        "code": code_version("training.encode"),
    }


def encode_clips(
    clips: list[Clip], autoencoder: AutoencoderKLWan, image_encoder: ImageEncoder, text: TextEncoder
) -> dict[str, torch.Tensor]:
    """Tensors of a shard, in the order of `clips`: latents, references, image tokens, subjects, text and its mask.

    Also how much of each latent position subjects cover, [N, T, h, w].
    """
    pixels = to_pixels(np.stack([clip.video for clip in clips]))
    latents = torch.cat([encode(autoencoder, part) for part in pixels.split(8)])
    n, (channels, _, h, w) = len(clips[0].references), latents.shape[1:]
    references, tokens = latents.new_zeros(len(clips), 0, channels, h, w), latents.new_zeros(len(clips), 0, 16, 192)
    if n:
        pictures = to_pixels(np.stack([r for clip in clips for r in clip.references])[:, None])[:, :, 0]
        flat, flat_tokens = encode_references(autoencoder, image_encoder, pictures, pictures)
        references, tokens = flat.unflatten(0, (-1, n)), flat_tokens.unflatten(0, (-1, n))
    features, mask = text([clip.caption for clip in clips])
    room = torch.zeros(len(clips), TEXT_PLACES, features.shape[-1])
    length = min(TEXT_PLACES, features.shape[1])
    room[:, :length] = features[:, :length]
    places = torch.zeros(len(clips), TEXT_PLACES, dtype=torch.bool)
    places[:, :length] = mask[:, :length]
    share = torch.stack([subject_share(clip.masks) for clip in clips])
    half = {"latents": latents, "references": references, "image_tokens": tokens, "text": room, "subject_share": share}
    return {
        **{name: value.half().contiguous() for name, value in half.items()},
        "text_mask": places,
        "subjects": torch.tensor([clip.subject_of for clip in clips], dtype=torch.int64).view(len(clips), n),
    }


def subject_share(masks: np.ndarray) -> torch.Tensor:
    """How much of each latent position subjects cover, [T, h, w] in 0..1, from their masks uint8 [subjects, F, H, W]."""
    cover = rearrange(masks.max(0) / 255, "f (h p) (w q) -> f h w (p q)", p=SPACE_STRIDE, q=SPACE_STRIDE).mean(-1)
    later = rearrange(cover[1:], "(t k) h w -> t k h w", k=TIME_STRIDE).mean(1)
    return torch.from_numpy(np.concatenate([cover[:1], later])).float()
