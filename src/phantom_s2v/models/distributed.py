"""Several processes under torchrun: they split the sequence (Ulysses, ring) or the weights (FSDP), by torch and diffusers, or a
training's batches."""

import os
from typing import Any

import torch
from diffusers import ContextParallelConfig
from torch import distributed

from phantom_s2v.errors import InputError


def world() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process under torchrun, from 0; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, where several share a machine."""
    if device.type == "cuda" and device.index is None and world() > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def join(device: torch.device) -> None:
    """Enter the group of torchrun's processes, unless this one is alone or has entered."""
    if world() > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def summed(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The sums of every process's tensors, in one message; themselves in a process that is alone."""
    if world() < 2 or not tensors:
        return tensors
    flat = torch.cat([t.flatten() for t in tensors])
    distributed.all_reduce(flat)
    return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients; a parameter that a batch did not touch counts as zero there."""
    if world() < 2:
        return
    touched = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    touching = [p for p, count in zip(parameters, summed([touched])[0].tolist(), strict=True) if count]
    for p, total in zip(touching, summed([torch.zeros_like(p) if p.grad is None else p.grad for p in touching]), strict=True):
        p.grad = total / world()


def parallelize(transformer: Any, kind: str, device: torch.device) -> None:
    """Split the work ("ulysses", "ring") or the weights ("fsdp") of a transformer over the processes of torchrun."""
    if world() < 2:
        raise InputError(f"--parallel {kind} needs several processes; start with torchrun --nproc-per-node=N -m phantom_s2v")
    join(device)
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        transformer.to(device)
        for block in transformer.blocks:
            fully_shard(block)
        fully_shard(transformer)
        return
    options: Any = {f"{kind}_degree": world(), f"{kind}_anything": True}  # "anything": any length, any number of heads
    transformer.enable_parallelism(config=ContextParallelConfig(**options))


def leave() -> None:
    """Close the group of processes, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
