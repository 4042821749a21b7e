"""Milliseconds a training step of phantom-mini's transformer takes on a GPU, by bucket and number of references, the share of the
card's bfloat16 peak that it reaches, compiled and not, the time that compiling takes, and calls that wait for the device.

Every section goes on where another fails. The last line is one JSON object.
"""

import json
import time
import traceback
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from phantom_s2v.cli.train import parse_buckets, parse_network
from phantom_s2v.data.synthetic.emoji import load_store
from phantom_s2v.data.synthetic.render import render
from phantom_s2v.models.phantom.encoders import TextEncoder
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.training.config import Bucket, TrainConfig, TransformerConfig
from phantom_s2v.training.latents import Triplets
from phantom_s2v.training.learner import to_device
from phantom_s2v.training.optim import Muon, update_ema
from phantom_s2v.training.run import attention_seconds, for_cuda, load_encoder, peak, sample_flop
from phantom_s2v.training.transformer import ADAM, loss_of


def main(
    model: Annotated[Path, typer.Option(help="Model folder with vae, image_encoder and text_encoder.")],
    root: Annotated[Path, typer.Option(help="Path to the emoji dataset.")],
    network: Annotated[str, typer.Option(help="DEPTHxDIMxHEADS.")] = "10x256x4",
    buckets: Annotated[str, typer.Option(help="As of `phantom train transformer`.")] = "128x1x192:0.5,128x25x24:0.5",
    repeats: Annotated[int, typer.Option(help="Steps that are timed.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
) -> None:
    """Measure and print."""
    on = torch.device(device)
    store, text = load_store(root), TextEncoder(model / "text_encoder")
    result: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else device, "torch": torch.__version__}
    result["peak_tflop"] = round(peak(on) / 1e12, 1)
    encoder = load_encoder(model, store, on, text, torch.bfloat16)
    shape: dict[str, Any] = parse_network(network)
    raw: Any = PhantomTransformer(**shape)
    transformer = raw.to(on).train()
    average = deepcopy(transformer).requires_grad_(False)
    sizes = parse_buckets(buckets)
    flop = {bucket: sample_flop(transformer, bucket) for bucket in sizes}
    if device == "cuda":
        result["attention_ms"] = {name: round(1e3 * s, 2) for name, s in attention_seconds(transformer.config.heads, 64).items()}
        for_cuda(transformer)
    optimizer = Muon(list(transformer.named_parameters()), 0.0, 0.0, dtype=torch.bfloat16, exclude=ADAM)
    empty = tuple(part.to(on) for part in text.tokens([""], 48))
    empty = (encoder.text.features(*empty), empty[1])
    print(json.dumps(result), flush=True)

    def measure(bucket: Bucket, count: int, stance: str) -> dict[str, float]:
        config = TransformerConfig(TrainConfig(1), buckets=(bucket,), references=((count, 1.0),))
        scenes = to_device(Triplets(store, config, text, pad_text=True)(0), on)
        loss = loss_of(config, empty, transformer)

        def step() -> dict[str, float]:
            with torch.compiler.set_stance(stance), torch.autocast(on.type, torch.bfloat16):
                with torch.autocast(on.type, enabled=False):
                    _, draw = timed(lambda: render(scenes, encoder.pixels, bucket.side), on)
                batch, encode = timed(lambda: encoder(scenes), on)
                _, train = timed(lambda: loss(batch, 0)["loss"].backward(), on)
            _, update = timed(lambda: (optimizer.step(), optimizer.zero_grad(), update_ema(average, transformer, 0.999, 1)), on)
            return {"render": draw, "encode": encode - draw, "train": train, "update": update}

        began = time.perf_counter()
        step()
        first = time.perf_counter() - began
        rows = [step() for _ in range(repeats)]
        row = {name: round(1e3 * sorted(r[name] for r in rows)[repeats // 2], 2) for name in rows[0]}
        share = bucket.batch * flop[bucket] / (sum(row.values()) / 1e3) / 1e12 / result["peak_tflop"]
        memory = {"gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)} if device == "cuda" else {}
        return {**row, "first_s": round(first, 1), "share_of_peak": round(share, 4), **memory}

    rows = [(bucket, count, "default") for bucket in sizes for count in (1, 2)]
    for bucket, count, stance in [*rows, (sizes[0], 1, "force_eager")]:
        name = f"{bucket.side}px_{bucket.frames}f_x{bucket.batch}_{count}ref{'_eager' if stance != 'default' else ''}"
        attempt(lambda b=bucket, c=count, s=stance: measure(b, c, s), result, name)
    if device == "cuda":
        attempt(lambda: kernels(lambda: measure(sizes[-1], 1, "default")), result, "kernels")
        attempt(lambda: waits(lambda: measure(replace(sizes[0]), 1, "default")), result, "waits")
    print(json.dumps(result))


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What `work` gives, and its seconds."""
    began = time.perf_counter()
    value = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return value, time.perf_counter() - began


def attempt(work: Callable[[], Any], result: dict[str, Any], name: str) -> None:
    """Put what `work` gives, or its error, into `result`."""
    try:
        result[name] = work()
    except Exception as error:
        traceback.print_exc()
        result[name] = repr(error)[:300]
    print(name, result[name], flush=True)


def kernels(work: Callable[[], Any], rows: int = 25) -> str:
    """The kernels that take longest, and their sum, in a profile."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
    return seen.key_averages().table(sort_by="self_device_time_total", row_limit=rows, max_name_column_width=70)


def waits(work: Callable[[], Any]) -> list[str]:
    """Places of code that wait for the device, the calls of `timed` left out."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sorted({f"{Path(w.filename).name}:{w.lineno} {str(w.message)[:60]}" for w in seen})


if __name__ == "__main__":
    typer.run(main)
