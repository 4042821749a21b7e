"""The one training loop: batches by step, loss by function, resumable at any step, on one process or torchrun's many."""

import json
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from phantom_s2v.model.parallel import average_gradients, is_main, join, leave, rank
from phantom_s2v.training.checkpoint import load_state, save_state, state_facts
from phantom_s2v.training.config import TrainConfig
from phantom_s2v.training.guard import StepWatch, check_same_run
from phantom_s2v.training.optim import Muon, rate_at, update_ema

Loss = Callable[[Any, int], dict[str, torch.Tensor]]  # batch, step -> {"loss": scalar, ...}


class Steps(Dataset):
    """Batches by number: item i is `make(i)`, so order and content follow from the seed alone."""

    def __init__(self, make: Callable[[int], Any], start: int, stop: int) -> None:
        self.make, self.start, self.stop = make, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Any:
        return self.make(self.start + index)


def pick_dtype(precision: str) -> torch.dtype:
    """Type of matrix products: "auto" measures, since some CPUs emulate bfloat16 hundreds of times slower."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if torch.cuda.is_available():
        return torch.bfloat16

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return min(times)

    return torch.bfloat16 if seconds(torch.bfloat16) < seconds(torch.float32) else torch.float32


def train(
    config: TrainConfig,
    model: nn.Module,
    make_batch: Callable[[int, int], Any],
    loss_of: Callable[[nn.Module], Loss],
    out: Path,
    facts: dict,
    on_sample: Callable[[nn.Module, int], None] | None = None,
    exclude: tuple[str, ...] = (),
    slow: tuple[str, ...] = (),
) -> nn.Module:
    """Train `model` to `config.steps`, going on from `out`/state.safetensors where it exists; returns the average.

    `make_batch(step, rank)` is the batch of a process; gradients are averaged over torchrun's, of which the first writes. It
    writes state.safetensors, log.jsonl and TensorBoard events under `out`. `on_sample(average, step)` is called every
    `sample_minutes` and draws sheets. Raises CheckpointError for the state of another run, NotFiniteError for a step that is not
    finite. `exclude` and `slow` name matrices as Muon has it.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    dtype = pick_dtype(config.precision)
    device = next(model.parameters()).device
    join(device)
    ema = deepcopy(model).requires_grad_(False)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = Muon(named, config.lr, config.adam_lr, dtype=dtype, exclude=exclude, slow=slow)
    state, start = out / "state.safetensors", 0
    facts = {**facts, "train": asdict(config)}
    if state.exists():
        check_same_run(state, state_facts(state), facts, config.may_change)
        start = load_state(state, model, ema, optimizer)["step"]
    loader = _loader(config, lambda step: make_batch(step, rank()), start)
    loss_fn, watch = loss_of(model), StepWatch()
    saved = sampled = time.monotonic()
    with closing(_Log(out, config.log_steps)) if is_main() else nullcontext() as log:
        for step, batch in enumerate(loader, start):
            torch.manual_seed(config.seed * 1_000_003 + step + (rank() << 40))  # a resumed run draws the noise of an unbroken one
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                parts = loss_fn(batch, step)
            norm = _update(
                optimizer, parts["loss"], rate_at(step, config.steps, config.warmup, config.decay_share), config.clip_norm
            )
            update_ema(ema, model, config.ema_decay, step)
            watch.see(step, {**parts, "grad_norm": norm})
            if log is None:
                continue
            log.add(step, {**parts, "grad_norm": norm})
            now, last = time.monotonic(), step + 1 == config.steps
            if now - saved > config.save_minutes * 60 or last:
                watch.check()
                save_state(state, model, ema, optimizer, {**facts, "step": step + 1})
                saved = now
            if on_sample and (now - sampled > config.sample_minutes * 60 or last):
                on_sample(ema, step + 1)
                sampled = time.monotonic()
    watch.check()
    leave()
    return ema


def _loader(config: TrainConfig, make_batch: Callable[[int], Any], start: int) -> DataLoader:
    """Batches from step `start` on, composed ahead by the config's workers."""
    steps, ahead = Steps(make_batch, start, config.steps), 4 if config.workers else None
    return DataLoader(steps, batch_size=None, num_workers=config.workers, prefetch_factor=ahead)


def _update(optimizer: Muon, loss: torch.Tensor, factor: float, clip_norm: float) -> torch.Tensor:
    """One optimizer step at `factor` of the base rates; returns the gradient's norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    optimizer.step()
    return norm


class _Log:
    """Means of the loss's parts, to log.jsonl, to TensorBoard and to the terminal."""

    def __init__(self, out: Path, every: int) -> None:
        self.file, self.writer, self.every = (out / "log.jsonl").open("a"), SummaryWriter(str(out)), every
        self.sums: dict[str, tuple[float, int]] = {}
        self.count, self.since = 0, time.monotonic()

    def add(self, step: int, parts: dict[str, torch.Tensor]) -> None:
        for name, value in parts.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + float(value.detach()), count + 1)
        self.count += 1
        if (step + 1) % self.every:
            return
        now = time.monotonic()
        row = {name: total / count for name, (total, count) in self.sums.items()}
        row |= {"step": step + 1, "seconds_per_step": (now - self.since) / self.count}
        for name, value in row.items():
            self.writer.add_scalar(name, value, step + 1)
        line = json.dumps({k: round(v, 5) for k, v in row.items()})
        print(line, file=self.file, flush=True)
        print(line, flush=True)
        self.sums, self.count, self.since = {}, 0, now

    def close(self) -> None:
        self.file.close()
        self.writer.close()
