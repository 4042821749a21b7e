"""State of a run on disk: one folder a checkpoint, written by torch.distributed.checkpoint while the training goes on.

Each process writes what it holds in a safetensors file; any number of processes reads them. A folder takes its name when all of
it is on the disk, with the hashes of its files, so that a kill at any moment leaves whole checkpoints only, and a torn file is
found before it is used.
"""

import hashlib
import os
import re
import shutil
import sys
import warnings
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.files.io import naming, ours, read_json, write_json
from phantom_s2v.models.distributed import everyone, is_main, rank, world
from phantom_s2v.training.optim import copy_buffers

FACTS, DAMAGED, PARTIAL = "checkpoint.json", ".damaged", ".partial"
Tensors = dict[str, torch.Tensor]


def step_name(step: int) -> str:
    """The name of the checkpoint after so many steps."""
    return f"step-{step:08d}"


def steps_of(checkpoint: Path) -> int:
    """The steps of a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def saved(folder: Path) -> list[Path]:
    """Checkpoints in the folder of a run, the newest first, not yet verified."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=steps_of, reverse=True)


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """The facts of a checkpoint, without its tensors. Raises CheckpointError where they are damaged."""
    return _note(checkpoint)["facts"]


def _note(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / FACTS
    if not ours(file):
        raise CheckpointError(f"{file} is missing or damaged")
    return read_json(file)


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; empty if nothing. All processes ask, and each reads its share of the files."""
    reason = ""
    try:
        for name, noted in sorted(_note(checkpoint)["files"].items())[rank() :: world()]:
            file = checkpoint / name
            if not file.is_file() or file.stat().st_size != noted["bytes"]:
                reason = f"{name} has not the {noted['bytes']} bytes that were written"
            elif _hash(file) != noted["sha256"]:
                reason = f"the content of {name} has changed"
    except (CheckpointError, InputError, OSError, LookupError, TypeError, AttributeError) as error:
        reason = str(error)
    return next(filter(None, everyone(reason)), "")


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class _Writer(dcp.HuggingFaceStorageWriter):
    """Writes one file a process, and gives the folder its name when all are written."""

    def __init__(self, folder: Path, facts: dict[str, Any], keep: int) -> None:
        self.folder, self.scratch = folder, folder.with_name(f".{folder.name}{PARTIAL}")
        self.facts, self.keep = facts, keep
        super().__init__(str(self.scratch), save_distributed=True)

    def write_data(self, plan: Any, planner: Any) -> Any:
        """As torch does; what comes back names the files with their sizes and hashes."""
        written = super().write_data(plan, planner)
        notes: dict[str, dict[str, Any]] = {}
        for name in {result.storage_data.relative_path for result in written.wait()}:
            file = self.scratch / name
            notes[name] = {"bytes": file.stat().st_size, "sha256": _hash(file)}
        named: torch.futures.Future[list[Any]] = torch.futures.Future()
        named.set_result([replace(result, storage_data=notes) for result in written.wait()[:1]])
        return named

    def finish(self, metadata: Any, results: list[list[Any]]) -> None:
        """By the first process, when all have written."""
        files = {name: note for row in results for result in row for name, note in result.storage_data.items()}
        write_json(self.scratch / FACTS, {"files": files, "facts": self.facts}, sealed=True)
        _sync(self.scratch)
        if self.folder.exists():
            _remove(self.folder)
        self.scratch.rename(self.folder)
        _sync(self.folder.parent)
        for old in saved(self.folder.parent)[self.keep :]:
            _remove(old)


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, which is none from the first moment on."""
    gone = checkpoint.with_name(f".{checkpoint.name}.old{PARTIAL}")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone)


class Checkpoints:
    """The checkpoints of a run, of which the newest `keep` stay. One is written at a time, in the background."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, max(1, keep)
        self.last: Path | None = None  # whole, of this run
        self._writing: tuple[Path, Future[Any]] | None = None
        self._group: Any = distributed.new_group(backend="gloo") if world() > 1 else None
        # Said for each save of a process that is alone.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

    def newest(self) -> Path | None:
        """The newest whole checkpoint. Damaged ones are set aside under another name, which one line on stderr says.

        Raises CheckpointError where there are only damaged ones.
        """
        if is_main():
            for rest in self.folder.glob(f".step-*{PARTIAL}"):  # of a process that was killed
                shutil.rmtree(rest)
        everyone(None)  # nobody looks before that is done
        found = saved(self.folder)
        everyone(None)  # nor does anyone set one aside before all have looked
        for number, path in enumerate(found):
            if not (reason := damage(path)):
                self.last = path
                return path
            before = found[number + 1] if number + 1 < len(found) else None
            if before is None:
                raise CheckpointError(f"{path} is damaged ({reason}), and there is none before it; choose another folder")
            if is_main():
                path.rename(_free(path.with_name(path.name + DAMAGED)))
                print(f"phantom: {path} is damaged ({reason}); training goes on from {before.name}", file=sys.stderr)
        return None

    def save(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        """Begin to write a checkpoint of facts["step"]; returns when `tensors` may change. Raises OutputError where an earlier
        one could not be written.
        """
        self.wait()
        path = self.folder / step_name(facts["step"])
        self.folder.mkdir(parents=True, exist_ok=True)
        writer = _Writer(path, facts, self.keep)
        planner = dcp.DefaultSavePlanner()
        with naming(path, writer.scratch):
            future: Any = dcp.async_save(
                tensors, storage_writer=writer, planner=planner, process_group=self._group, no_dist=world() < 2
            )
        self._writing = path, future

    def whole(self) -> Path | None:
        """The last whole checkpoint, after waiting for one that is being written."""
        self.wait()
        return self.last

    def wait(self) -> None:
        """Wait for the checkpoint that is being written. Raises OutputError where it could not be."""
        if self._writing is None:
            return
        (path, future), self._writing = self._writing, None
        scratch = path.with_name(f".{path.name}{PARTIAL}")
        try:
            with naming(path, scratch):
                try:
                    future.result()
                except CheckpointException as error:  # of any process
                    raise next((each for each, _ in error.failures.values() if isinstance(each, OSError)), error) from error
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        self.last = path


def _free(path: Path) -> Path:
    """The path, or with a number where there is such a folder."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in range(2, 10_000))
    return path if not path.exists() else next(each for each in numbered if not each.exists())


def tensors_of(model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Model, average and optimizer by name; of weights that are split, what this process holds."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{name.replace('/', '.')}": value.detach() for name, value in ema.named_parameters()}
    for name, p in model.named_parameters():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state.get(p, {}).items()}
    return tensors


def load_state(checkpoint: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore a checkpoint, in place. Raises CheckpointError where it does not fit."""
    try:
        reader = dcp.HuggingFaceStorageReader(str(checkpoint))
        stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
        for name, p in model.named_parameters():
            prefix = f"optimizer.{name}."
            for key in [key for key in stored if key.startswith(prefix) and key[len(prefix) :].isidentifier()]:
                count = not stored[key].size  # of steps, which is a number
                value = torch.zeros((), device=p.device) if count else torch.zeros_like(p)
                optimizer.state[p][key[len(prefix) :]] = value.detach()
        tensors = tensors_of(model, ema, optimizer)
        if odd := sorted(tensors.keys() ^ stored.keys()):
            raise CheckpointError(f"{odd[0]} is in only one of both")
        dcp.load(tensors, storage_reader=reader, no_dist=world() < 2)
        copy_buffers(ema, model)
    except (CheckpointError, CheckpointException, SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{checkpoint} is not a checkpoint of this run: {error}") from error
