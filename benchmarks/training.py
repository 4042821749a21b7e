"""Seconds a still of 128 pixels of drawing, rendering, encoding and training; attention written out against the fused kernel; the
autoencoder's stills without history.

The last line is one JSON object. Ratios are of one run on one thread.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from phantom_s2v.data.synthetic.emoji import Sprites
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.data.synthetic.render import render
from phantom_s2v.models.autoencoder import build_autoencoder, skip_empty_history
from phantom_s2v.models.phantom import attention
from phantom_s2v.models.phantom.encoders import TextEncoder
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.registry import model_folder
from phantom_s2v.training.config import Bucket, TrainConfig, TransformerConfig
from phantom_s2v.training.latents import Triplets
from phantom_s2v.training.learner import pick_dtype
from phantom_s2v.training.run import load_encoder
from phantom_s2v.training.transformer import loss_of

STILLS = 8
SIDE = 128


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Least time of some runs, the first not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def still_seconds(dtype: torch.dtype, skip: bool) -> float:
    """Forward and backward of the autoencoder on one still of a batch, with or without the empty history."""
    model: Any = build_autoencoder()
    if skip:
        skip_empty_history(model)
    pixels = torch.rand(STILLS, 3, 1, 64, 64) * 2 - 1

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = (model.decode(model.encode(pixels).latent_dist.mode()).sample.float() - pixels).square().mean()
        loss.backward()

    return seconds(step) / STILLS


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    dtype = pick_dtype("auto")
    store = Sprites(evaluated(held_out()), held_out().pixels)
    encoder = load_encoder(model_folder("phantom-mini"), store, torch.device("cpu"), TextEncoder(), dtype)
    config = TransformerConfig(TrainConfig(1), buckets=(Bucket(SIDE, 1, STILLS, 1.0),), references=((1, 1.0),))
    triplets = Triplets(store, config, encoder.text, pad_text=False)
    scenes = triplets(0)
    result = {"dtype": str(dtype), "draw": seconds(lambda: triplets(0)) / STILLS}
    result["render"] = seconds(lambda: render(scenes, store.pixels, SIDE)) / STILLS
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        batch = encoder(scenes)
        result["encode"] = seconds(lambda: encoder(scenes)) / STILLS - result["render"]
    network = PhantomTransformer(latent_channels=batch["latents"].shape[1])
    loss = loss_of(config, encoder.text([""]), network)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss(batch, 0)["loss"]
        value.backward()

    result["train"] = seconds(step) / STILLS
    written = attention._attention
    attention._attention = lambda q, k, v, mask: scaled_dot_product_attention(q, k, v, attn_mask=mask)
    result["train_fused"] = seconds(step) / STILLS
    attention._attention = written
    result["fused_over_written"] = result["train_fused"] / result["train"]
    result["batches_over_train"] = (result["draw"] + result["render"] + result["encode"]) / result["train"]
    result["still"], result["still_with_history"] = still_seconds(dtype, True), still_seconds(dtype, False)
    result["history_over_none"] = result["still_with_history"] / result["still"]
    for name, value in result.items():
        print(f"{name:32} {value if isinstance(value, str) else round(value, 4)}")
    print(json.dumps({k: v if isinstance(v, str) else round(v, 4) for k, v in result.items()}))


if __name__ == "__main__":
    main()
