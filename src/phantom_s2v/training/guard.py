"""What a run refuses: to go on from the state of another run, and to go on from numbers that are not finite."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from phantom_s2v.data.synthetic.emoji import Sprites, sprites_hash, subjects_hash
from phantom_s2v.errors import CheckpointError, NotFiniteError
from phantom_s2v.files.hashes import MADE_OF, folder_hash
from phantom_s2v.files.reuse import MISSING, as_json, code_version, differences, spelled
from phantom_s2v.models.distributed import everyone
from phantom_s2v.models.phantom.encoders import text_encoder_folder

FREE = (
    "steps", "minutes", "save_minutes", "save_steps", "keep_checkpoints", "decay_minutes", "validate_minutes", "validate_steps",
    "log_steps", "wandb", "samples", "evaluate", "max_step_saves_to_keep", "bad_data", "workers", "threads", "may_change",
    "parallel", "shard_size", "ring_degree", "ulysses_degree",
)  # fmt: skip
NORM = "grad_norm"
FIRST_STEPS, USUAL_STEPS = 20, 100  # before a step can be a spike; of the mean
TWICE = "config.train."  # of a configuration, whose "train" is stated by itself as well
LEFT_OUT = ("step", "progress")  # of the facts of a checkpoint: how far it is


def facts_of(stage: str, sprites: Sprites, init_from: Path | None) -> dict[str, Any]:
    """What a run's state says of its making, beside its configuration: subjects and their images, the weights that it started
    from, and the code, whose first module is `stage`.
    """
    start = {"init_from": folder_hash(init_from, MADE_OF)} if init_from else {}
    subjects, image_hash = subjects_hash(sprites.subjects), sprites_hash(sprites)
    return {"subjects": subjects, "pictures": image_hash, **start, "code": code_version(stage)}


def encoder_hashes(folder: Path) -> dict[str, str]:
    """Hashes of the networks of the model in `folder` that encode; without a text encoder of its own, of the packaged one."""
    parts = {name: folder / name for name in ("vae", "image_encoder", "text_encoder")}
    if not parts["text_encoder"].is_dir():
        parts["text_encoder"] = text_encoder_folder()
    return {name: folder_hash(part, MADE_OF) for name, part in parts.items() if part.is_dir()}


def check_same_run(path: Path, before: dict[str, Any], now: dict[str, Any], may_change: tuple[str, ...]) -> None:
    """Raise CheckpointError where a state was made by another configuration, data, weights or code than those of this run.

    What says only how long a run is, what it writes when, and on how many processes, may differ (FREE), and what `may_change`
    names, by the last part of its name or the whole. What only one of both contains is reported on stderr and accepted.
    """
    changes = [(name, a, b) for name, a, b in differences(before, as_json(now)) if name.split(".")[0] not in LEFT_OUT]
    changes = [each for each in changes if each[0].split(".")[-1] not in FREE and not each[0].startswith(TWICE)]
    unknown = [each for each in changes if MISSING in each[1:]]
    changed = [each for each in changes if each not in unknown]
    allowed = [each for each in changed if {each[0], each[0].split(".")[-1], each[0].split(".")[0]} & set(may_change)]
    refused = [each for each in changed if each not in allowed]
    if refused:
        names = " ".join(dict.fromkeys(f"--allow-change {name.split('.')[-1]}" for name, _, _ in refused))
        raise CheckpointError(
            f"{path} is a checkpoint of another run: {spelled(refused)}; choose another folder, or accept it with {names}"
        )
    if unknown or allowed:
        print(f"phantom: this run goes on from a state of which {spelled([*allowed, *unknown])}", file=sys.stderr)


class StepWatch:
    """Looks at the loss and the gradient's norm of each step, one step late, and by `check` before anything is written.

    They are on their way from the GPU while the next step is prepared, so that it is never waited for.
    """

    def __init__(self, last: Callable[[], Path | None]) -> None:
        """`last` gives the last whole checkpoint."""
        self.last = last
        self.step, self.names, self.ids = 0, list[str](), list[str]()
        self.values: torch.Tensor | None = None
        self.arrived: torch.cuda.Event | None = None

    def see(self, step: int, values: dict[str, torch.Tensor], ids: list[str]) -> None:
        """Look at the step before, and keep the scalars of this one, and the ids of what it learned from."""
        self.check()
        stacked = torch.stack([value.detach().float() for value in values.values()])
        self.step, self.names, self.ids = step, list(values), ids
        self.values = stacked.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if stacked.is_cuda else None
        if self.arrived is not None:
            self.arrived.record()

    def check(self) -> None:
        """Raise NotFiniteError that names the step, what of it is not finite, its samples, and the last good checkpoint."""
        if self.values is None:
            return
        if self.arrived is not None:
            self.arrived.synchronize()
        wrong = [name for name, finite in zip(self.names, self.values.isfinite().tolist(), strict=True) if not finite]
        self.values = None
        if wrong:
            mine = self.ids if wrong != [NORM] else []
            # The norm is that of all processes, so that all of them are here.
            ids = [each for row in (everyone(mine) if NORM in wrong else [mine]) for each in row] or self.ids
            of = f" on {', '.join(ids)}" if ids else ""
            last = f"the last good checkpoint is {path}" if (path := self.last()) else "there is no checkpoint yet"
            what = f"{' and '.join(wrong)} became NaN or infinite{of}"
            raise NotFiniteError(f"step {self.step + 1}: {what}; {last}; a lower learning rate or float32 may help")


class Spikes:
    """Tells steps whose gradient is `factor` times as long as usual; with 0 none is.

    What is usual is a mean over about a hundred steps, in which a spike counts as the bound that it exceeds, so that a norm that
    stays large becomes usual. The norm is waited for.
    """

    def __init__(self, factor: float, usual: float = 0.0, seen: int = 0, skipped: int = 0) -> None:
        self.factor, self.usual, self.seen, self.skipped = factor, usual, seen, skipped

    def skips(self, norm: torch.Tensor) -> bool:
        """Whether a step with this norm is to be skipped. One that is not finite is not: it ends the run."""
        if not self.factor:
            return False
        value, bound = float(norm), self.factor * self.usual
        if not math.isfinite(value):
            return False
        spike = self.seen >= FIRST_STEPS and value > bound
        self.usual += (min(value, bound if spike else value) - self.usual) / min(self.seen + 1, USUAL_STEPS)
        self.seen += 1
        self.skipped += spike
        return spike
