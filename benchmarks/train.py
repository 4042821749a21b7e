"""How fast a training is: samples a second, and its operations against the peak of matrix products measured in the same run.

- mini: phantom-mini, all weights, on encoded clips of 25 frames, by the loop of `phantom train`; beside a plain loop that encodes
  each clip anew, takes one clip at a time and writes attention out.
- wan_width: two blocks as wide as Wan 1.3B's, by the same loop; beside a textbook loop around diffusers' WanTransformer3DModel.
- On a GPU also Wan 1.3B at its full depth, with random weights made there, at 832x480 and 81 frames, against the peak of an
  8,192-wide product; the attention kernel is named.

Operations are three times those of a forward pass (a backward pass is two), recomputation uncounted. Types are the faster of
float32 and bfloat16, measured on a step. The last line is one JSON object.
"""

import json
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import WanTransformer3DModel
from safetensors.torch import save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from phantom_s2v.data.synthetic.compose import compose, plain_spec
from phantom_s2v.data.synthetic.emoji import Sprites
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.media.images import letterbox
from phantom_s2v.models.autoencoder import encode, to_pixels
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.phantom import attention
from phantom_s2v.models.registry import model_folder
from phantom_s2v.models.wan.transformer import PhantomWanTransformer
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.pipeline.wan_pipeline import PhantomWanPipeline
from phantom_s2v.training import batches, own, recipes
from phantom_s2v.training.config import Bucket, OwnConfig
from phantom_s2v.training.encoded import EncodedStore
from phantom_s2v.training.learner import Learner
from phantom_s2v.training.loop import Ahead, Progress
from phantom_s2v.training.run import sample_flop

SIDE, FRAMES, CLIPS = 128, 25, 12
WIDTH: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16,
    "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "cross_attn_norm": True,
}  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16)


class Clock:
    """Seconds of some work: by the wall, or of this process' CPU, which on a busy machine is that of a quiet one."""

    def __init__(self, device: torch.device, cpu: bool) -> None:
        self.device, self.now = device, time.process_time if cpu else time.perf_counter

    def __call__(self, work: Callable[[], object], repeats: int) -> float:
        """The least of some runs, the first not counted."""
        work()
        return min(self.once(work) for _ in range(repeats))

    def once(self, work: Callable[[], object]) -> float:
        """One run."""
        began = self.now()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.now() - began


def peak(clock: Clock, dtype: torch.dtype) -> float:
    """Operations a second of a large square product, at best of some sizes; on a GPU of 8,192."""
    sizes = (8192,) if clock.device.type == "cuda" else (1024, 2048)
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size, dtype=dtype, device=clock.device)
        best = max(best, 2 * size**3 / clock(lambda a=a: a @ a, 5))
    return best


def flop_of(forward: Callable[[], object]) -> float:
    """Operations of a training step, by those of its forward pass, on the meta device: kernels of a CPU are not counted."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return 3.0 * counter.get_total_flops()


def learner_of(config: OwnConfig, pipe: Any, empty: torch.Tensor, dtype: torch.dtype) -> Learner:
    """What `phantom train` makes steps with."""
    train = replace(config.train, precision=str(dtype).removeprefix("torch."))
    net = pipe.transformer.requires_grad_(True)
    own.prepare(net, config)
    return Learner(train, net, net, own.loss_of(pipe, config, empty), exclude=("",))


def step_of(learner: Learner, batches: Any) -> Callable[[], float]:
    """One optimizer step on the next batch; returns the seconds that it waited for it."""

    def step() -> float:
        seen = learner.accumulate(islice(batches, 1), 1, 0, lambda batch: batch)
        learner.clip()
        learner.update(1.0, 0)
        return seen.waited

    return step


def faster(make: Callable[[torch.dtype], tuple[Callable[[], Any], float]], clock: Clock, repeats: int) -> dict[str, Any]:
    """Seconds and operations a second of a step by type, and the faster type."""
    rows = {}
    for dtype in DTYPES:
        step, flop = make(dtype)
        seconds = clock(step, repeats)
        rows[dtype] = {"seconds": seconds, "flop": flop, "step": step}
    best = min(rows, key=lambda dtype: rows[dtype]["seconds"])
    return {"dtype": best, **rows[best], "all": {str(dtype): row["seconds"] for dtype, row in rows.items()}}


def clips(count: int) -> list[Any]:
    """Composed clips of 25 frames with one reference each."""
    sprites = Sprites(evaluated(held_out()), held_out().pixels)
    rngs = (np.random.default_rng([5, number]) for number in range(count))
    return [compose(plain_spec(rng, sprites.subjects, FRAMES, SIDE), sprites) for rng in rngs]


@torch.no_grad()
def encoded(pipe: Any, clip: Any) -> dict[str, torch.Tensor]:
    """What `phantom encode` stores of a clip."""
    image = np.ascontiguousarray(letterbox(clip.references[0], SIDE, SIDE))
    tensors = {"latents": encode(pipe.vae, to_pixels(clip.video)[None].to(pipe.vae.dtype))[0]}
    tensors["text"] = pipe.encode_texts([clip.caption], 512)[0]
    return {
        **tensors,
        **pipe.reference_tensors([image], SIDE, SIDE),
        "subjects": torch.zeros(1, dtype=torch.int64),
        "cross": torch.ones(1, dtype=torch.bool),
    }


def mini(clock: Clock, batch_size: int, repeats: int, compiled: bool) -> dict[str, Any]:
    """phantom-mini by our loop, from a dataset on disk, and by the plain one."""
    pipe = load_models(model_folder("phantom-mini"), Placement(device="cpu", dtype="float32"))
    made, base = clips(CLIPS), deepcopy(pipe.transformer)
    with tempfile.TemporaryDirectory() as scratch:
        store = EncodedStore.create(Path(scratch) / "l.lance", {})
        facts = {"height": SIDE, "width": SIDE, "frames": FRAMES, "subjects": 1, "in_pair": True, "cross_pair": True}
        facts |= {"repeats": 1, "regularization": False, "caption": "", "license": ""}
        whole = {"subjects": torch.zeros(1, dtype=torch.int64), "cross": torch.ones(1, dtype=torch.bool)}
        rows = (
            {name: value.half().contiguous() for name, value in encoded(pipe, clip).items() if name not in whole} | whole
            for clip in made
        )
        store.write({"id": f"{n:02d}", **facts, "tensors": save(row)} for n, row in enumerate(rows))
        config = replace(recipes.own_mini(), batch_size=batch_size, validation=0.0, compile=compiled)
        batches, _ = own.split(store, config)
        empty = pipe.encode_texts([""], 512)

        def make(dtype: torch.dtype) -> tuple[Callable[[], float], float]:
            pipe.transformer = deepcopy(base)
            learner = learner_of(config, pipe, empty, dtype)
            ahead = Ahead(batches, Progress(), 10**6, 0, 1)
            flop = batch_size * sample_flop(pipe.transformer, Bucket(SIDE, FRAMES, batch_size, 1.0))
            return step_of(learner, (ahead[i] for i in range(10**6))), flop

        best = faster(make, clock, repeats)
        waited = sum(best["step"]() for _ in range(repeats))
        whole = clock(best["step"], 1)
    plain = plain_loop(pipe, base, made, config, empty, best["dtype"])
    seconds = clock(plain, max(1, repeats // 2)) / len(made[:2])
    samples = batch_size / best["seconds"]
    return {**best, "samples": samples, "over_plain_loop": samples * seconds, "idle": waited / repeats / whole}


def plain_loop(
    pipe: Any, base: nn.Module, made: list[Any], config: OwnConfig, empty: torch.Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    """Two steps of a loop as one writes it first: encode the clip, one clip a step, attention written out, torch's AdamW."""
    pipe.transformer = deepcopy(base).requires_grad_(True).train()
    loss, optimizer = own.loss_of(pipe, config, empty), torch.optim.AdamW(pipe.transformer.parameters(), 1e-4)

    def written(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1) @ v

    def steps() -> None:
        ours, attention._attention = attention._attention, written
        for clip in made[:2]:
            batch = batches.collate([encoded(pipe, clip)], np.random.default_rng(0))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                value = loss(batch, 0)["loss"]
            value.backward()
            nn.utils.clip_grad_norm_(pipe.transformer.parameters(), 1.0)
            optimizer.step()
        attention._attention = ours

    return steps


def wan_batch(height: int, width: int, frames: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Random latents of a video with one reference."""
    shape = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    draw = partial(torch.randn, device=device)
    references = draw(1, 1, 16, *shape[3:])
    subjects = torch.zeros(1, 1, dtype=torch.int64, device=device)
    return {"latents": draw(shape), "text": draw(1, 512, 4096), "references": references, "subjects": subjects}


def wan_pipe(transformer: Any) -> Any:
    """What of the pipeline a training uses, without autoencoder and text encoder."""
    pipe: Any = SimpleNamespace(transformer=transformer, whole_timesteps=True)
    pipe.training_velocity = partial(PhantomWanPipeline.training_velocity, pipe)
    return pipe


def wan(
    clock: Clock, layers: int, batch: dict[str, torch.Tensor], repeats: int, compiled: bool, again: bool = False
) -> dict[str, Any]:
    """Blocks of Wan 1.3B's width by our loop; `again` computes their insides again in the backward pass."""
    config = replace(recipes.own_wan(), gradient_checkpointing=again, compile=compiled)
    empty = torch.zeros(1, 1, 4096, device=clock.device)

    def make(dtype: torch.dtype) -> tuple[Callable[[], float], float]:
        torch.manual_seed(0)
        with clock.device:
            pipe = wan_pipe(PhantomWanTransformer(num_layers=layers, **WIDTH))
        learner = learner_of(config, pipe, empty, dtype)
        with torch.device("meta"):
            ghost = wan_pipe(PhantomWanTransformer(num_layers=layers, **WIDTH))
        loss = own.loss_of(ghost, config, empty.to("meta"))
        flop = flop_of(lambda: loss({name: value.to("meta") for name, value in batch.items()}, 0))
        return step_of(learner, iter(lambda: (0, batch), None)), flop

    if clock.device.type == "cuda":
        step, flop = make(torch.bfloat16)
        seconds = clock(step, repeats)
        return {"dtype": torch.bfloat16, "seconds": seconds, "flop": flop, "all": {"torch.bfloat16": seconds}, "step": step}
    return faster(make, clock, repeats)


def textbook(layers: int, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> Callable[[], None]:
    """A step of the usual loop around diffusers' model, in the same type by autocast."""
    torch.manual_seed(0)
    with batch["latents"].device:
        model: Any = WanTransformer3DModel(num_layers=layers, **WIDTH)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        x, references = batch["latents"], batch["references"].transpose(1, 2)
        noise, t = torch.randn_like(x), torch.rand(len(x), device=x.device)
        noisy = torch.cat([x + t[:, None, None, None, None] * (noise - x), references], 2)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            out = model(noisy, (1000 * t).long(), batch["text"], return_dict=False)[0][:, :, : x.shape[2]]
        nn.functional.mse_loss(out.float(), noise - x).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def in_turn(clock: Clock, first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Seconds of both, the least of some runs, one after the other, since a machine is not equally fast all the time."""
    first(), second()
    each = [(clock.once(first), clock.once(second)) for _ in range(repeats)]
    return min(one for one, _ in each), min(other for _, other in each)


def attention_kernel(work: Callable[[], object]) -> str:
    """The attention kernel that takes most of the time of a step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
    rows = [row for row in seen.key_averages() if any(part in row.key.lower() for part in ("flash", "attention", "fmha", "sdpa"))]
    return max(rows, key=lambda row: row.self_device_time_total or row.self_cpu_time_total).key if rows else "none"


def main(
    threads: Annotated[int, typer.Option(help="Threads of the CPU.")] = 1,
    clock: Annotated[str, typer.Option(help="wall, or cpu: CPU time, with one thread on a machine that is not idle.")] = "wall",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(help="Steps that are timed; the fastest counts.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Clips of a batch of phantom-mini.")] = 8,
    compiled: Annotated[bool, typer.Option("--compile", help="Train with compile = true.")] = False,
    small: Annotated[bool, typer.Option("--small", help="Small sizes, to try it.")] = False,
) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    timer = Clock(torch.device(device), clock == "cpu")
    peaks = {dtype: peak(timer, dtype) for dtype in DTYPES}
    print(json.dumps({f"peak_gflop_{str(dtype)[6:]}": round(value / 1e9, 1) for dtype, value in peaks.items()}), flush=True)

    def share(name: str, row: dict[str, Any]) -> float:
        speeds = {f"{d[6:]}_gflop": round(row["flop"] / s / 1e9, 1) for d, s in row["all"].items()}
        reached = {f"{d}_of_peak": round(row["flop"] / s / peaks[getattr(torch, d[6:])], 3) for d, s in row["all"].items()}
        figures = {key: round(row[key], 4) for key in ("samples", "over_plain_loop", "idle") if key in row}
        print(name, json.dumps({"seconds": round(row["seconds"], 3), **speeds, **reached, **figures}), flush=True)
        return row["flop"] / row["seconds"] / peaks[row["dtype"]]

    result: dict[str, float | str] = {}
    if device == "cpu":
        row = mini(timer, 2 if small else batch_size, repeats, compiled)
        result |= {"mini_of_peak": share("mini", row), "over_plain_loop": row["over_plain_loop"]}
    height, width = (64, 64) if small else (480, 832)
    batch = wan_batch(height, width, 5, timer.device)
    row = wan(timer, 2, batch, repeats, compiled)
    ours, other = in_turn(timer, row["step"], textbook(2, batch, row["dtype"]), repeats)
    print("textbook", json.dumps({"seconds": round(other, 3), "ours": round(ours, 3)}), flush=True)
    row["seconds"] = row["all"][str(row["dtype"])] = min(ours, row["seconds"])
    result |= {"wan_width_of_peak": share("wan_width", row), "over_diffusers": other / ours}
    if device == "cuda":
        row = wan(timer, 30, wan_batch(480, 832, 81, timer.device), repeats, compiled, again=True)
        result |= {"wan_1.3b_of_peak": share("wan_1.3b", row), "attention_kernel": attention_kernel(row["step"])}
    print(json.dumps({name: value if isinstance(value, str) else round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    typer.run(main)
