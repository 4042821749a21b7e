"""Training of the image encoder: contrast with captions of appearances, and between two renderings of one appearance."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from phantom_s2v.data.synthetic.appearance import random_appearance, random_background
from phantom_s2v.data.synthetic.compose import Cast, Shot, appearance_caption, photograph
from phantom_s2v.data.synthetic.emoji import Sprites
from phantom_s2v.models.autoencoder import to_pixels
from phantom_s2v.models.distributed import is_main
from phantom_s2v.models.phantom.encoders import ImageEncoder, TextEncoder
from phantom_s2v.models.tensors import align, save_part
from phantom_s2v.training.config import ImageEncoderConfig
from phantom_s2v.training.guard import facts_of
from phantom_s2v.training.learner import Loss
from phantom_s2v.training.loop import train


def batch(config: ImageEncoderConfig, sprites: Sprites, step: int, rank: int = 0) -> dict:
    """Two renderings [B, 3, 64, 64] of each appearance and its caption. Every subject comes in two appearances: hard
    negatives.
    """
    rng = np.random.default_rng([config.train.seed, 3, step, rank])
    chosen = rng.choice(len(sprites.subjects), config.batch // 2, replace=False).repeat(2)
    views: tuple[list, list] = ([], [])
    captions = []
    for index in chosen:
        subject = sprites.subjects[index]
        cast = Cast(subject, random_appearance(rng))
        for view in views:
            view.append(photograph(cast, _shot(rng), sprites, 64))
        named = cast if rng.random() < 0.5 else replace(cast, subject=replace(subject, name="subject"))
        captions.append(appearance_caption(named, sprites))
    first, second = (to_pixels(np.stack(view)[:, None])[:, :, 0] for view in views)
    return {"first": first, "second": second, "captions": captions}


def _shot(rng: np.random.Generator) -> Shot:
    return Shot(
        animated=bool(rng.random() < 0.5),
        phase=int(rng.integers(36)),
        scale=float(rng.uniform(0.5, 1.0)),
        turn=float(rng.uniform(-15, 15)),
        gain=float(rng.uniform(0.75, 1.15)),
        shift=(float(rng.uniform(-0.15, 0.15)), float(rng.uniform(-0.15, 0.15))),
        background=random_background(rng),
    )


def loss_of(config: ImageEncoderConfig, text: TextEncoder, model: nn.Module) -> Loss:
    """InfoNCE with the captions, and between the renderings; same captions in a batch are not held against each other."""
    assert isinstance(model, ImageEncoder)

    def loss(batch: dict, step: int) -> dict[str, torch.Tensor]:
        first, second = (model.embed(model(batch[name])) for name in ("first", "second"))
        words = text.sentences(batch["captions"])
        same = torch.tensor([[a == b for b in batch["captions"]] for a in batch["captions"]])
        scale = model.temperature.exp().clamp(max=100)
        with_text = _contrast(first @ words.T * scale[0], same) / 2 + _contrast(second @ words.T * scale[0], same) / 2
        scores = first @ second.T * scale[1]
        instance = _contrast(scores, torch.eye(len(scores), dtype=torch.bool))
        accuracy = (scores.argmax(1) == torch.arange(len(scores))).float().mean()
        return {
            "loss": with_text + config.instance_weight * instance,
            "text": with_text,
            "instance": instance,
            "accuracy": accuracy,
        }

    return loss


def _contrast(scores: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy of [B, B] where each row's right answers are `same`."""
    target = same.float() / same.sum(1, keepdim=True)
    rows = nn.functional.cross_entropy(scores, target)
    return (rows + nn.functional.cross_entropy(scores.T, target)) / 2


def train_image_encoder(config: ImageEncoderConfig, sprites: Sprites, out: Path, init_from: Path | None) -> ImageEncoder:
    """Train to the end of the config; the average is saved in `out`/image_encoder."""
    torch.manual_seed(config.train.seed)
    model = (
        align(ImageEncoder.from_pretrained(init_from, local_files_only=True, use_safetensors=True))
        if init_from
        else ImageEncoder()
    )
    facts = {**facts_of("training.image_encoder", sprites, init_from), "config": asdict(config)}
    text = TextEncoder()
    ema = train(
        config.train,
        model,
        lambda number, together: batch(config, sprites, *divmod(number, together)),
        lambda m: loss_of(config, text, m),
        out,
        facts,
        exclude=("body.0", "temperature"),
    )
    assert isinstance(ema, ImageEncoder)
    if is_main():
        save_part(ema, out / "image_encoder")
    return ema
