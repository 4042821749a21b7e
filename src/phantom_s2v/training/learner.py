"""What a training step does: gradients of batches, in one process or torchrun's many, and the update."""

import os
import shutil
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from phantom_s2v.errors import InputError
from phantom_s2v.models.distributed import HOW, join, local_world, shard, split_sequence, weight_mesh, world
from phantom_s2v.training.config import TrainConfig
from phantom_s2v.training.optim import Muon, update_ema
from phantom_s2v.training.swap import Visiting

PROGRAMS = 1024  # of a block: beyond them torch goes on uncompiled, and a resumed run would compute otherwise
Loss = Callable[[Any, int], dict[str, torch.Tensor]]  # batch, step -> {"loss": scalar, ...}
Numbered = tuple[int, Any]  # number of a batch over all processes, and the batch


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


def sequence_parts(config: TrainConfig) -> int:
    """How many processes share a sequence, and so a batch."""
    return config.ring_degree * config.ulysses_degree


def spread(config: TrainConfig, transformer: Any, device: torch.device) -> None:
    """Split a transformer over torchrun's processes as the config says, before it is trained; its parameters are new ones then.

    With DDP, which `Learner` does, nothing is split. Raises InputError for what is not possible.
    """
    parts = sequence_parts(config)
    if world() < 2 and (config.parallel != "ddp" or parts > 1):
        raise InputError(f"parallel {config.parallel} with {parts} parts of a sequence needs several processes; {HOW}")
    if world() < 2:
        return
    join(device)
    if parts > 1:
        split_sequence(transformer, device, config.ring_degree, config.ulysses_degree)
    if config.parallel != "ddp":
        shards = world() if config.parallel == "fsdp" else config.shard_size or local_world()
        dtype = pick_dtype(config.precision)
        shard(transformer, weight_mesh(device, shards), dtype if dtype != torch.float32 else None)


def check_compiler(device: torch.device) -> None:
    """Raise InputError where torch.compile lacks a compiler for this device."""
    on_cpu = device.type == "cpu"
    compiler = os.environ.get("CXX", "g++") if on_cpu else os.environ.get("CC", "gcc")  # as torch and triton look for one
    if not any(map(shutil.which, (compiler,) if on_cpu else (compiler, "clang"))):
        raise InputError(f"compile needs a compiler, and {compiler} is not installed; install it, or set compile to false")


def compile_blocks(transformer: Any) -> None:
    """Compile the blocks of a transformer that is trained, which share a program for each shape of batches.

    Programs for any shape would take several times as long to make.
    """
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor", UserWarning)  # torch.compile looks at every input's
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = PROGRAMS
    for block in transformer.blocks:
        whole = block.forward if isinstance(block.forward, Visiting) else block
        whole.compile(dynamic=False)


def average_of(model: nn.Module) -> nn.Module:
    """A copy of a model for its average. Of split weights it has only what this process holds, and computes nothing."""
    if not isinstance(model, FSDPModule):
        return deepcopy(model).requires_grad_(False)
    tensors = OrderedDict((name.replace(".", "/"), p.detach().clone()) for name, p in model.named_parameters())
    return nn.ParameterDict(tensors).requires_grad_(False)


@dataclass
class Seen:
    """What a step has learned from, and its loss."""

    batches: list[Any] = field(default_factory=list)
    parts: dict[str, torch.Tensor] = field(default_factory=dict)  # of the loss, means over the batches
    waited: float = 0.0  # seconds, for batches

    @property
    def ids(self) -> list[str]:
        """Ids of the samples, where batches have them."""
        return [each for batch in self.batches if isinstance(batch, dict) for each in batch.get("ids", ())]


class _Step(nn.Module):
    """The loss of a batch as a module, which DDP can wrap."""

    def __init__(self, trained: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.trained, self.loss = trained, loss

    def forward(self, batch: Any, step: int) -> dict[str, torch.Tensor]:
        return self.loss(batch, step)


class Learner:
    """Model, average and optimizer, and how a step changes them.

    `within` is the module that the model's parameters are part of, where it is not the model itself. `exclude` and `slow` name
    matrices as Muon has it.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        within: nn.Module,
        loss: Loss,
        exclude: tuple[str, ...] = (),
        slow: tuple[str, ...] = (),
    ) -> None:
        self.config, self.model, self.dtype = config, model, pick_dtype(config.precision)
        self.device = next(model.parameters()).device
        if self.dtype != torch.float32:  # norms whose float32 weights meet bfloat16, as autocast has it
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
        self.ema = average_of(model)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.optimizer = Muon(named, config.lr, config.adam_lr, dtype=self.dtype, exclude=exclude, slow=slow)
        self.parameters = [p for _, p in named]
        self.split = within if isinstance(within, FSDPModule) else None
        self.network: Any = _Step(model, loss)
        if world() > 1 and self.split is None:
            self.network = DistributedDataParallel(self.network, find_unused_parameters=True)

    def autocast(self) -> torch.autocast:
        """Matrix products in the config's type."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def accumulate(self, batches: Iterable[Numbered], count: int, step: int, prepare: Callable[[Any], Any]) -> Seen:
        """Gradients of a step's `count` batches, over which processes talk once, at the end."""
        self.optimizer.zero_grad(set_to_none=True)
        seen, rows, began = Seen(), [], time.perf_counter()
        for place, (number, batch) in enumerate(batches, 1):
            seen.waited += time.perf_counter() - began
            torch.manual_seed(self.config.seed * 1_000_003 + number)  # a resumed run draws the noise of an unbroken one
            with self._exchanging(place == count):
                with self.autocast():
                    parts = self.network(prepare(to_device(batch, self.device)), step)
                # Gradients of processes that share a sequence are parts of one, of which the mean over processes is taken.
                (parts["loss"] * (sequence_parts(self.config) / count)).backward()
            rows.append({name: value.detach() for name, value in parts.items()})
            seen.batches.append(batch)
            began = time.perf_counter()
        names = dict.fromkeys(name for row in rows for name in row)
        seen.parts = {name: torch.stack([row[name] for row in rows if name in row]).mean() for name in names}
        return seen

    def _exchanging(self, exchanging: bool) -> AbstractContextManager[Any]:
        """Whether processes exchange the gradients of a backward pass."""
        if self.split is not None:
            self.split.set_requires_gradient_sync(exchanging)
        if isinstance(self.network, DistributedDataParallel) and not exchanging:
            return self.network.no_sync()
        return nullcontext()

    def clip(self) -> torch.Tensor:
        """Clip the gradient; its norm over all processes before that."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, factor: float, step: int) -> None:
        """One optimizer step at `factor` of the base rates, and the average after it."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        update_ema(self.ema, self.model, self.config.ema_decay, step)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch's tensors on a device, without waiting for the copy; whatever else it holds stays as it is."""
    if not isinstance(batch, dict):
        return batch
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) and value.ndim else value
        for name, value in batch.items()
    }
