"""Seconds a sample of composing, encoding and training; attention written out against the fused kernel; stills without history.

The last line is one JSON object. Ratios are of one run on one thread.
"""

import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from phantom_s2v.data.compose import compose, random_spec
from phantom_s2v.data.heldout import evaluated, held_out
from phantom_s2v.generate import load_models
from phantom_s2v.model import attention
from phantom_s2v.model.autoencoder import build_autoencoder, skip_empty_history
from phantom_s2v.model.encoders import TextEncoder
from phantom_s2v.model.transformer import PhantomTransformer
from phantom_s2v.presets import model_folder
from phantom_s2v.training.config import TrainConfig, TransformerConfig
from phantom_s2v.training.encode import encode_clips
from phantom_s2v.training.loop import pick_dtype
from phantom_s2v.training.transformer import loss_of

CLIPS = 8


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
    model = build_autoencoder()
    if skip:
        skip_empty_history(model)
    pixels = torch.rand(CLIPS, 3, 1, 64, 64) * 2 - 1

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = (model.decode(model.encode(pixels).latent_dist.mode()).sample.float() - pixels).square().mean()
        loss.backward()

    return seconds(step) / CLIPS


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    dtype = pick_dtype("auto")
    models, sprites = load_models(model_folder("phantom-mini")), held_out()
    specs = [random_spec(np.random.default_rng(i), evaluated(sprites), 25, pictures=1) for i in range(CLIPS)]
    clips = [compose(spec, sprites) for spec in specs]
    result = {"dtype": str(dtype), "compose": seconds(lambda: [compose(s, sprites) for s in specs]) / CLIPS}
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        shard = encode_clips(clips, models.autoencoder, models.image_encoder, models.text_encoder)
        result["encode"] = (
            seconds(lambda: encode_clips(clips, models.autoencoder, models.image_encoder, models.text_encoder)) / CLIPS
        )
    batch = {k: v.float() if v.dtype == torch.float16 else v for k, v in shard.items()}
    network = PhantomTransformer(latent_channels=models.transformer.config.latent_channels)
    loss = loss_of(TransformerConfig(TrainConfig(1)), TextEncoder()([""]), network)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss(batch, 0)["loss"]
        value.backward()

    result["train"] = seconds(step) / CLIPS
    written = attention._attention
    attention._attention = lambda q, k, v, mask: scaled_dot_product_attention(q, k, v, attn_mask=mask)
    result["train_fused"] = seconds(step) / CLIPS
    attention._attention = written
    result["fused_over_written"] = result["train_fused"] / result["train"]
    result["compose_and_encode_over_train"] = (result["compose"] + result["encode"]) / result["train"]
    result["still"], result["still_with_history"] = still_seconds(dtype, True), still_seconds(dtype, False)
    result["history_over_none"] = result["still_with_history"] / result["still"]
    for name, value in result.items():
        print(f"{name:32} {value if isinstance(value, str) else round(value, 4)}")
    print(json.dumps({k: v if isinstance(v, str) else round(v, 4) for k, v in result.items()}))


if __name__ == "__main__":
    main()
