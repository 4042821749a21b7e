"""The log of a training: means of the loss's parts over all processes, to log.jsonl, TensorBoard and the terminal."""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch.utils.tensorboard import SummaryWriter

from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.io import naming, text_lines, write_text
from phantom_s2v.models.distributed import everyone, is_main
from phantom_s2v.pipeline.cost.estimate import spell
from phantom_s2v.training.config import TrainConfig

LOG = "log.jsonl"
NOTICE = 60.0  # seconds without a row, after which a line for people says what is left
WANDB = "wandb-id.txt"  # of the run there, by which a resumed training goes on with it


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


def check_log(out: Path) -> None:
    """Raise DataError where a folder's log.jsonl is none of a training."""
    log = out / LOG
    if log.is_symlink():
        raise DataError(f"{log} is a symbolic link; choose another folder")
    if log.exists() and '"step"' not in next(text_lines(log), '"step"'):
        raise DataError(f"{log} exists and is not a training log; choose another folder")


class Log:
    """Rows of every so many steps. Numbers leave the device when a row is written; the first process writes."""

    def __init__(self, out: Path, config: TrainConfig, work: Work | None, start: int) -> None:
        """Go on after `start` steps; rows of later steps, which a killed run had written, are cut off."""
        self.path, self.every = out / LOG, config.log_steps
        if is_main():
            self._cut(start)
            self.file, self.writer = self.path.open("a"), SummaryWriter(str(out), purge_step=start + 1)
        self.wandb = _weights_and_biases(config, out) if is_main() and config.wandb else None
        self.steps, self.ends = config.steps, time.monotonic() + 60 * (config.minutes or math.inf)
        self.work, self.start, self.noticed = work, start, time.monotonic()
        self.parts: dict[str, list[torch.Tensor]] = {}
        self._begin()

    def _cut(self, start: int) -> None:
        if not self.path.exists():
            return
        lines = list(text_lines(self.path))
        kept = [line for line in lines if _step(line) <= start]
        if len(kept) < len(lines):
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def add(self, step: int, parts: dict[str, torch.Tensor], batches: list[Any], waited: float, facts: dict[str, float]) -> None:
        """Count a step: parts of its loss, its batches, and the seconds that it waited for them. All processes have to."""
        for name, value in parts.items():
            self.parts.setdefault(name, []).append(value.detach())
        self.count += 1
        self.waited += waited
        self.flop += sum(self.work.of(batch) for batch in batches) if self.work else 0.0
        if (step + 1) % self.every == 0:
            row = _means({name: (float(torch.stack(values).sum()), len(values)) for name, values in self.parts.items()})
            self.write(step, {**row, **self._pace(step), **facts})
            self.parts, self.noticed = {}, time.monotonic()
            self._begin()
        elif step == self.start:  # the first step of a process takes longer than others
            self._begin()
        elif is_main() and (step == self.start + 1 or time.monotonic() - self.noticed > NOTICE) and self.every > 2:
            self.noticed, pace = time.monotonic(), self._pace(step)
            left = f"{spell(pace['seconds_per_step'])} a step, {spell(60 * pace['minutes_left'])} left"
            print(f"phantom: step {step + 1:,} of {self.steps:,}, {left}", file=sys.stderr, flush=True)

    def excuse(self, seconds: float) -> None:
        """Leave the seconds in which a step was followed by saving and validating out of how long steps take."""
        self.since += seconds

    def _begin(self) -> None:
        """Begin to measure how long steps take."""
        self.count, self.flop, self.since, self.waited = 0, 0.0, time.monotonic(), 0.0

    def _pace(self, step: int) -> dict[str, float]:
        """How long the steps took that were counted last, and how long those that are left will take."""
        seconds = time.monotonic() - self.since
        left = min((self.steps - step - 1) * seconds / self.count, self.ends - time.monotonic())
        reached = {"share_of_peak": self.flop / seconds / self.work.peak} if self.work else {}
        waits = {"seconds_per_step": seconds / self.count, "data_wait": self.waited / seconds}
        return {**waits, **reached, "minutes_left": max(0.0, left / 60)}

    def write(self, step: int, row: dict[str, float]) -> None:
        """Write a row of a step (from 0)."""
        if not (is_main() and row):
            return
        for name, value in row.items():
            self.writer.add_scalar(name, value, step + 1)
        if self.wandb:
            self.wandb.log(row, step=step + 1)
        line = json.dumps({**{k: round(v, 5) for k, v in row.items()}, "step": step + 1})
        with naming(self.path):
            print(line, file=self.file, flush=True)
        print(line, flush=True)

    def close(self) -> None:
        """Close what is open."""
        if is_main():
            self.file.close()
            self.writer.close()
        if self.wandb:
            self.wandb.finish()


def _weights_and_biases(config: TrainConfig, out: Path) -> Any:
    """The run there, which goes on with its folder. Raises InputError where the package is not installed."""
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("wandb is not installed; it is needed for the field wandb: pip install wandb") from error
    known = out / WANDB
    if not known.exists():
        write_text(known, f"{uuid4().hex}\n")
    run = next(text_lines(known)).strip()
    return wandb.init(project=config.wandb, id=run, name=out.absolute().name, resume="allow", dir=str(out), config=asdict(config))


def _step(line: str) -> int:
    """The step of a row; that of a torn one is beyond any."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return sys.maxsize


def _means(sums: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Means over all processes, each of which may have other names."""
    rows = everyone(sums)
    names = dict.fromkeys(name for row in rows for name in row)
    totals = {name: [sum(values) for values in zip(*(row[name] for row in rows if name in row), strict=True)] for name in names}
    return {name: total / count for name, (total, count) in totals.items()}
