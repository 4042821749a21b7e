"""The one training loop: batches by number, loss by function, resumable at any step, on one process or torchrun's many."""

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from phantom_s2v.errors import CheckpointError, DataError, InputError
from phantom_s2v.files.io import check_folder, locked, ours
from phantom_s2v.models.distributed import is_main, join, leave, rank, world
from phantom_s2v.training.checkpoint import Checkpoints, facts_of, load_state, saved, tensors_of
from phantom_s2v.training.config import TrainConfig
from phantom_s2v.training.guard import NORM, Spikes, StepWatch, check_same_run
from phantom_s2v.training.learner import Learner, Loss, Numbered, sequence_parts
from phantom_s2v.training.log import LOG, Log, Work, check_log
from phantom_s2v.training.optim import rate_at, rate_left
from phantom_s2v.training.stopping import Desk, Orders, leave_signals_to_the_first, stop, stopping

SAVED_BYTES = 16  # a parameter in a checkpoint: itself, its average and up to two moments in float32
CHECKPOINTS, FORMER = "checkpoints", "state.safetensors"
MakeBatch = Callable[[int, int], Any]  # number of a batch, batches of a step -> batch
OnValidate = Callable[[nn.Module, nn.Module, int], dict[str, float]]  # model, average, steps that they learned -> figures
OnSave = Callable[[nn.Module, nn.Module, int, bool], None]  # the same, and whether the rates are falling


@dataclass(frozen=True)
class Progress:
    """How far a run is. Batches are counted over all processes, so that any number of them goes on at the same place."""

    step: int = 0  # steps that are done
    batches: int = 0  # that were learned from
    per_step: int = 1  # batches of an optimizer step, over all processes
    group: int = 1  # batches that the data puts together for a step: those of a step when the run began
    usual_norm: float = 0.0  # see Spikes
    seen_norms: int = 0
    skipped: int = 0


class Ahead(Dataset):
    """The batches that a process will learn from, by number: order and content follow from the seed alone.

    Of each `ranks` batches a process takes that of its `rank`.
    """

    def __init__(self, make: MakeBatch, progress: Progress, count: int, rank: int, ranks: int) -> None:
        self.make, self.progress, self.count, self.rank, self.ranks = make, progress, count, rank, ranks

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Numbered:
        number = self.progress.batches + index * self.ranks + self.rank
        return number, self.make(number, self.progress.group)


@dataclass(frozen=True)
class Hooks:
    """What a training calls; see `train`."""

    prepare: Callable[[Any], Any]
    on_validate: OnValidate | None
    on_save: OnSave


def train(
    config: TrainConfig,
    model: nn.Module,
    make_batch: MakeBatch,
    loss_of: Callable[[nn.Module], Loss],
    out: Path,
    facts: dict,
    prepare: Callable[[Any], Any] = lambda batch: batch,
    on_validate: OnValidate | None = None,
    on_save: OnSave = lambda model, average, steps, decaying: None,
    exclude: tuple[str, ...] = (),
    slow: tuple[str, ...] = (),
    work: Work | None = None,
    within: nn.Module | None = None,
) -> nn.Module:
    """Train `model` on its device to `config.steps`, going on from the newest checkpoint under `out`; returns the average.

    `make_batch(number, together)` is a batch by its number over all processes and steps; `together` of them, from a multiple of
    it on, are learned from in one step, and should take equally long. It is composed ahead by worker processes and sent to the
    device, where `prepare` makes of it what the loss takes. Gradients are averaged over torchrun's processes, of which the first
    writes checkpoints, log.jsonl and TensorBoard events under `out`. All of them call `on_save(model, average, steps, decaying)`
    with each checkpoint and just before the rates begin to fall, and `on_validate(model, average, steps)` every
    `validate_minutes`; its figures go into the log. `exclude` and `slow` name matrices as Muon has it; with `work` the log says
    what share of the peak is reached. A model that is to be split (`learner.spread`) is split already; `within` is the split
    module where `model` holds some of its parameters. Raises CheckpointError for the checkpoints of another run, InputError where
    another training runs in `out`, NotFiniteError for a step that is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    join(next(model.parameters()).device)
    check_free(out)
    with _alone(out):
        learner = Learner(config, model, within or model, loss_of(model), exclude, slow)
        run = _Run(config, learner, out, {**facts, "train": asdict(config)}, Hooks(prepare, on_validate, on_save))
        check_folder(out, room=SAVED_BYTES * sum(p.numel() for p in model.parameters()))
        start = run.progress.step
        if start >= config.steps and is_main():
            print(f"phantom: {out} has all {config.steps:,} steps already; nothing was trained", file=sys.stderr)
        flow = _flow(_loader(config, make_batch, run.progress, learner.device))
        with stopping(run.desk), closing(Log(out, config, work, start)) as log, closing(flow) as batches:
            while run.progress.step < config.steps and not run.step(batches, log).over:
                pass
        run.end()
        leave()
        return learner.ema


class _Run:
    """A training between its steps."""

    def __init__(self, config: TrainConfig, learner: Learner, out: Path, facts: dict[str, Any], hooks: Hooks) -> None:
        self.config, self.learner, self.facts, self.hooks = config, learner, facts, hooks
        self.checkpoints = Checkpoints(out / CHECKPOINTS, config.keep_checkpoints)
        self.watch, self.desk = StepWatch(self.checkpoints.whole), Desk(config, out)
        self.progress = self._resume(out)
        before = self.progress
        self.spikes = Spikes(config.spike_factor, before.usual_norm, before.seen_norms, before.skipped)
        self.decaying = before.step > config.warmup and self._scheduled(before.step - 1) < 1

    def _resume(self, out: Path) -> Progress:
        """Load the newest checkpoint, if there is one."""
        ranks = world() // sequence_parts(self.config)
        mine = self.config.gradient_accumulation_steps * ranks
        newest = self.checkpoints.newest()
        if newest is None:
            return Progress(per_step=mine, group=mine)
        facts = facts_of(newest)
        check_same_run(newest, facts, self.facts, self.config.may_change)
        load_state(newest, self.learner.model, self.learner.ema, self.learner.optimizer)
        done = facts["progress"]["step"]
        if is_main() and done < self.config.steps:
            print(f"phantom: resuming after step {done:,} of {self.config.steps:,}, from {newest}", file=sys.stderr)
        return _regrouped(Progress(**facts["progress"]), mine, ranks, facts, self.config)

    def step(self, batches: Iterator[Numbered], log: Log) -> Orders:
        """One optimizer step, and what is to be done after it."""
        config, learner, step = self.config, self.learner, self.progress.step
        count = self.progress.per_step // (world() // sequence_parts(config))
        seen = learner.accumulate(islice(batches, count), count, step, self.hooks.prepare)
        orders = self.desk.orders(step)
        factor = min(self._scheduled(step), rate_left(orders.spent, config.minutes, config.decay_minutes))
        if factor < 1 and step >= config.warmup and not self.decaying:
            self.watch.check()
            self.hooks.on_save(learner.model, learner.ema, step, False)
            self.decaying = True
        norm = learner.clip()
        if not self.spikes.skips(norm):
            learner.update(factor, step)
        values = {**seen.parts, NORM: norm}
        self.watch.see(step, values, seen.ids)
        self._count(step)
        counted = {"skipped": float(self.spikes.skipped)} if config.spike_factor else {}
        log.add(step, values, seen.batches, seen.waited, counted)
        self._carry_out(orders, log)
        return orders

    def _scheduled(self, step: int) -> float:
        return rate_at(step, self.config.steps, self.config.warmup, self.config.decay_share)

    def _count(self, step: int) -> None:
        spikes, batches = self.spikes, self.progress.batches + self.progress.per_step
        norms = {"usual_norm": spikes.usual, "seen_norms": spikes.seen, "skipped": spikes.skipped}
        self.progress = replace(self.progress, step=step + 1, batches=batches, **norms)

    def _carry_out(self, orders: Orders, log: Log) -> None:
        """Save, stop and validate, as ordered."""
        learner, step, began = self.learner, self.progress.step, time.monotonic()
        if orders.save:
            self.watch.check()
            facts = {**self.facts, "step": step, "progress": asdict(self.progress)}
            self.checkpoints.save(tensors_of(learner.model, learner.ema, learner.optimizer), facts)
            self.hooks.on_save(learner.model, learner.ema, step, self.decaying)
        if orders.quit:
            self.checkpoints.wait()
            stop(step)
        if orders.validate and self.hooks.on_validate:
            self.watch.check()  # the best state is kept by its figures, and NaN is none
            with learner.autocast(), torch.compiler.set_stance("force_eager"):  # blocks are not compiled for its shapes
                log.write(step - 1, self.hooks.on_validate(learner.model, learner.ema, step))
        self.desk.done(orders)
        log.excuse(time.monotonic() - began)

    def end(self) -> None:
        """Whether the last step was finite, and the last checkpoint could be written."""
        self.watch.check()
        self.checkpoints.wait()


def _regrouped(before: Progress, mine: int, ranks: int, facts: dict[str, Any], config: TrainConfig) -> Progress:
    """A run's progress with another number of processes: a step has as many batches as before, if they can be shared out."""
    if mine == before.per_step:
        return before
    accumulation = facts["train"].get("gradient_accumulation_steps")
    if accumulation == config.gradient_accumulation_steps and before.per_step % ranks == 0:
        if is_main():
            print(f"phantom: a step still has {before.per_step} batches, {before.per_step // ranks} a process", file=sys.stderr)
        return before
    if is_main():
        print(f"phantom: a step had {before.per_step} batches and has {mine} from here on", file=sys.stderr)
    return replace(before, per_step=mine)


def check_free(out: Path, names: tuple[str, ...] = ("autoencoder", "image_encoder", "transformer")) -> None:
    """Raise DataError where a folder holds what a training would replace or add to, and no training wrote it."""
    check_log(out)
    parts = [out / name for name in names]
    started = (out / LOG).exists() or bool(saved(out / CHECKPOINTS))
    if (out / FORMER).exists() and not saved(out / CHECKPOINTS):
        raise CheckpointError(
            f"{out / FORMER} is of an earlier version, which this one cannot resume; start a new run in another folder from the "
            "weights beside it"
        )
    if not started and (foreign := next((part for part in parts if part.exists() and not _noted(part)), None)):
        raise DataError(f"{foreign} exists without {LOG}, so it is not from a training run; choose another folder")


def _noted(path: Path) -> bool:
    """Whether it is a file that was sealed here, as the note of a training that ended before its first step."""
    return path.is_file() and ours(path)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Be the only training in a folder; its first process holds the lock. Raises InputError where another one is."""

    def refuse() -> None:
        raise InputError(f"another training is running in {out}; wait for its end, or choose another folder")

    if not is_main():
        yield
        return
    with locked(out, refuse):
        yield


def _flow(loader: DataLoader) -> Generator[Numbered]:
    """The batches of a loader; closed, its processes end, which no signal ends."""
    yield from loader


def _loader(config: TrainConfig, make_batch: MakeBatch, progress: Progress, device: torch.device) -> DataLoader:
    """The batches that are left for this process, composed ahead by the config's workers."""
    parts = sequence_parts(config)
    ranks = world() // parts
    count = max(0, config.steps - progress.step) * (progress.per_step // ranks)
    return DataLoader(
        Ahead(make_batch, progress, count, rank() // parts, ranks),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_first,
    )
