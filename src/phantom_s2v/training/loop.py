"""The one training loop: batches by step, loss by function, resumable at any step, on one process or torchrun's many."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from phantom_s2v.errors import DataError
from phantom_s2v.files.io import check_folder, naming, text_lines
from phantom_s2v.models.distributed import average_gradients, is_main, join, leave, rank
from phantom_s2v.training.checkpoint import load_state, save_state, state_facts
from phantom_s2v.training.config import TrainConfig
from phantom_s2v.training.guard import StepWatch, check_same_run
from phantom_s2v.training.optim import Muon, rate_at, rate_left, update_ema
from phantom_s2v.training.stopping import leave_signals_to_the_first, shared, stop, stopping

SAVED_BYTES = 16  # a parameter in a state: itself, its average and up to two moments in float32
Loss = Callable[[Any, int], dict[str, torch.Tensor]]  # batch, step -> {"loss": scalar, ...}


@dataclass(frozen=True)
class Work:
    """Operations of a training: of one sample by side in pixels and frames, and what the device does in a second at best."""

    flop: dict[tuple[int, int], float]
    peak: float

    def stated(self) -> dict[str, float]:
        """For the log, in units of 1e12."""
        samples = {f"tflop_of_a_{side}px_{frames}f_sample": round(flop / 1e12, 4) for (side, frames), flop in self.flop.items()}
        return {**samples, "peak_tflop_per_second": round(self.peak / 1e12, 2)}

    def of(self, batch: dict[str, torch.Tensor]) -> float:
        """Operations of a batch of Triplets."""
        samples, _, frames = batch["sprite"].shape
        return samples * self.flop[int(batch["side"]), frames]


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
    prepare: Callable[[Any], Any] = lambda batch: batch,
    on_validate: Callable[[nn.Module, nn.Module], dict[str, float]] | None = None,
    on_save: Callable[[nn.Module, nn.Module, bool], None] = lambda model, average, decaying: None,
    exclude: tuple[str, ...] = (),
    slow: tuple[str, ...] = (),
    work: Work | None = None,
) -> nn.Module:
    """Train `model` on its device to `config.steps`, going on from `out`/state.safetensors where it exists; returns the average.

    `make_batch(number, rank)` is a batch of a process, one a step without gradient accumulation. It is composed ahead by worker
    processes and sent to the device, where `prepare` makes of it what the loss takes; gradients are averaged over torchrun's
    processes, of which the first writes. It writes
    state.safetensors, log.jsonl and TensorBoard events under `out`. `on_save(model, average, decaying)` is called with each state
    and just before the rates begin to fall, `on_validate(model, average)` every `validate_minutes`; its figures go into the log.
    `exclude` and `slow` name matrices as Muon has it; with `work` the log says what share of the peak is reached.
    Raises CheckpointError for the state of another run, NotFiniteError for a step that is not finite.
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
    check_free(out, state)
    facts = {**facts, "train": asdict(config)}
    if state.exists():
        check_same_run(state, state_facts(state), facts, config.may_change)
        start = load_state(state, model, ema, optimizer)["step"]
    numbers = sum(p.numel() for p in model.parameters())
    check_folder(out, room=SAVED_BYTES * numbers)
    if start >= config.steps and is_main():
        print(f"phantom: {state} is at step {start} of {config.steps} already; nothing was trained", file=sys.stderr)
    each = config.gradient_accumulation_steps
    loader = _loader(config, lambda number: make_batch(number, rank()), start * each, device)
    loss_fn, watch = loss_of(model), StepWatch()
    began = saved = validated = time.monotonic()
    decaying = start > config.warmup and rate_at(start - 1, config.steps, config.warmup, config.decay_share) < 1
    with stopping(device) as asked, closing(_Log(out, config, work)) if is_main() else nullcontext() as log:
        for step, batches in enumerate(_grouped(loader, each), start):
            optimizer.zero_grad(set_to_none=True)
            seen = []
            for place, batch in enumerate(batches):
                # a resumed run draws the noise of an unbroken one
                torch.manual_seed(config.seed * 1_000_003 + step * each + place + (rank() << 40))
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    parts = loss_fn(prepare(to_device(batch, device)), step)
                (parts["loss"] / each).backward()
                seen.append({name: value.detach() for name, value in parts.items()})
            parts = _means(seen)
            factor = rate_at(step, config.steps, config.warmup, config.decay_share)
            spent = shared(time.monotonic() - began, device) if config.minutes else 0.0
            factor = min(factor, rate_left(spent, config.minutes, config.decay_minutes))
            if factor < 1 and step >= config.warmup and not decaying:
                watch.check()
                on_save(model, ema, False)
                decaying = True
            norm = _update(optimizer, factor, config.clip_norm)
            update_ema(ema, model, config.ema_decay, step)
            watch.see(step, {**parts, "grad_norm": norm})
            now = time.monotonic()
            over = bool(config.minutes) and spent > config.minutes * 60
            last = over or step + 1 == config.steps
            ended = asked()
            if log is not None:
                log.add(step, {**parts, "grad_norm": norm}, batch)
                if now - saved > config.save_minutes * 60 or last or ended:
                    watch.check()
                    save_state(state, model, ema, optimizer, {**facts, "step": step + 1})
                    on_save(model, ema, decaying)
                    saved = time.monotonic()
            if ended and not last:
                stop(step + 1)
            if log is not None and on_validate and (now - validated > config.validate_minutes * 60 or last):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    log.write(step, on_validate(model, ema))
                validated = time.monotonic()
            if over:
                break
    watch.check()
    leave()
    return ema


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch's tensors on a device, without waiting for the copy; whatever else it holds stays as it is."""
    if not isinstance(batch, dict):
        return batch
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) and value.ndim else value
        for name, value in batch.items()
    }


def check_free(out: Path, state: Path) -> None:
    """Raise DataError where a folder holds what a training would replace or add to, and no training wrote it."""
    log, parts = out / "log.jsonl", [out / name for name in ("autoencoder", "image_encoder", "transformer")]
    if log.is_symlink():
        raise DataError(f"{log} is a symbolic link; choose another folder")
    if log.exists() and '"step"' not in next(text_lines(log), '"step"'):
        raise DataError(f"{log} exists and is not a training log; choose another folder")
    if not (state.exists() or log.exists()) and (foreign := next((part for part in parts if part.exists()), None)):
        raise DataError(f"{foreign} exists without {log.name}, so it is not from a training run; choose another folder")


def _loader(config: TrainConfig, make_batch: Callable[[int], Any], start: int, device: torch.device) -> DataLoader:
    """Batches from number `start` on, composed ahead by the config's workers."""
    steps = Steps(make_batch, start, config.steps * config.gradient_accumulation_steps)
    ahead = 4 if config.workers else None
    pinned = device.type == "cuda"
    return DataLoader(
        steps,
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=ahead,
        pin_memory=pinned,
        worker_init_fn=leave_signals_to_the_first,
    )


def _means(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Mean of each part of the losses of a step's batches."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: torch.stack([row[name] for row in rows if name in row]).mean() for name in names}


def _grouped(loader: Iterable[Any], count: int) -> Iterator[Iterator[Any]]:
    """Batches of an optimizer step, one at a time."""
    batches = iter(loader)
    for first in batches:
        yield chain([first], islice(batches, count - 1))


def _update(optimizer: Muon, factor: float, clip_norm: float) -> torch.Tensor:
    """One optimizer step at `factor` of the base rates; returns the gradient's norm before clipping."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    optimizer.step()
    return norm


class _Log:
    """Means of the loss's parts, to log.jsonl, TensorBoard and the terminal. Numbers leave the device when a row is written."""

    def __init__(self, out: Path, config: TrainConfig, work: Work | None) -> None:
        self.path = out / "log.jsonl"
        self.file, self.writer, self.every = self.path.open("a"), SummaryWriter(str(out)), config.log_steps
        self.steps, self.ends = config.steps, time.monotonic() + 60 * (config.minutes or math.inf)
        self.work, self.flop = work, 0.0
        self.parts: dict[str, list[torch.Tensor]] = {}
        self.count, self.since = 0, time.monotonic()

    def add(self, step: int, parts: dict[str, torch.Tensor], batch: Any) -> None:
        for name, value in parts.items():
            self.parts.setdefault(name, []).append(value.detach())
        self.count += 1
        self.flop += self.work.of(batch) if self.work else 0.0
        if (step + 1) % self.every:
            return
        row = {name: float(torch.stack(values).mean()) for name, values in self.parts.items()}
        seconds = time.monotonic() - self.since
        reached = {"share_of_peak": self.flop / seconds / self.work.peak} if self.work else {}
        left = min((self.steps - step - 1) * seconds / self.count, self.ends - time.monotonic())
        self.write(step, {**row, "seconds_per_step": seconds / self.count, **reached, "minutes_left": max(0.0, left / 60)})
        self.parts, self.count, self.flop, self.since = {}, 0, 0.0, time.monotonic()

    def write(self, step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, step + 1)
        line = json.dumps({**{k: round(v, 5) for k, v in row.items()}, "step": step + 1})
        with naming(self.path):
            print(line, file=self.file, flush=True)
        print(line, flush=True)

    def close(self) -> None:
        self.file.close()
        self.writer.close()
