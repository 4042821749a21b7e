"""Several processes under torchrun: they split the sequence (Ulysses, ring) or the weights (FSDP), by torch and diffusers, or a
training's batches.

A process's number is (replica * shards + shard) * sequence parts + part: those that share a sequence, and then those that share
weights, are neighbors, which on a cluster are of one machine.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ContextParallelConfig
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from phantom_s2v.errors import InputError

HOW = "start with torchrun --nproc-per-node=N -m phantom_s2v"


def world() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world())))


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
    """Enter the group of torchrun's processes, unless this one is alone or has entered. It also talks by CPU tensors."""
    if world() > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def leave() -> None:
    """Close the group of processes, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def agreed(values: list[float]) -> list[float]:
    """The largest of each value over all processes, the same in all of them. No GPU is waited for."""
    if world() < 2:
        return values
    largest = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.tolist()


def everyone(value: Any) -> list[Any]:
    """The value of each process, in the order of their numbers."""
    if world() < 2:
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def parallelize(transformer: Any, kind: str, device: torch.device) -> None:
    """Split the work ("ulysses", "ring") or the weights ("fsdp") of a transformer that generates over torchrun's processes."""
    if world() < 2:
        raise InputError(f"--parallel {kind} needs several processes; {HOW}")
    join(device)
    if kind == "fsdp":
        shard(transformer, init_device_mesh(device.type, (world(),)))
        return
    options: Any = {f"{kind}_degree": world(), f"{kind}_anything": True}  # "anything": any length, any number of heads
    transformer.enable_parallelism(config=ContextParallelConfig(**options))


def shard(transformer: Any, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Split the weights of a transformer over a mesh, block by block, so that no process holds all of them on its device.

    Over a mesh of two dimensions they are split over the second and repeated over the first. With a `dtype` they are gathered and
    used in it; the weights themselves, and the sums of gradients, keep their type.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None, cast_forward_inputs=False)
    for block in transformer.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(transformer, mesh=mesh, mp_policy=policy)


def weight_mesh(device: torch.device, shards: int) -> DeviceMesh:
    """A mesh of all processes, whose rows of `shards` share one copy of the weights. Raises InputError where they cannot."""
    if world() < 2:
        raise InputError(f"sharded weights need several processes; {HOW}")
    if not 1 <= shards <= world() or world() % shards:
        raise InputError(f"the number of processes that share the weights must divide {world()} (got {shards})")
    if shards == world():
        return init_device_mesh(device.type, (shards,))
    return init_device_mesh(device.type, (world() // shards, shards), mesh_dim_names=("replica", "shard"))


def split_sequence(transformer: Any, device: torch.device, ring: int, ulysses: int) -> None:
    """Let each `ring` * `ulysses` processes share the sequences of a transformer that is trained, by diffusers.

    Raises InputError where the model, this device or the number of processes does not allow it.
    """
    parts, name = ring * ulysses, type(transformer).__name__
    if not getattr(transformer, "_cp_plan", None):
        raise InputError(f"{name} has no plan for context parallelism; ring_degree and ulysses_degree must be 1")
    if world() % parts:
        raise InputError(f"ring_degree x ulysses_degree must divide the {world()} processes (got {ring} x {ulysses})")
    heads = int(transformer.config.num_attention_heads)
    if heads % ulysses:
        raise InputError(f"ulysses_degree must divide the {heads} attention heads of {name} (got {ulysses})")
    if not torch.accelerator.device_count():
        raise InputError("context parallelism needs a GPU; ring_degree and ulysses_degree must be 1")
    if ring > 1:
        if device.type != "cuda":
            raise InputError("ring_degree must be 1 without a GPU: attention on a CPU returns no logarithms of sums")
        transformer.set_attention_backend("_native_cudnn")
    mesh = init_device_mesh(device.type, (world() // parts, ring, ulysses), mesh_dim_names=("data", "ring", "ulysses"))
    transformer.enable_parallelism(config=ContextParallelConfig(ring_degree=ring, ulysses_degree=ulysses, mesh=mesh))


def whole_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of which processes hold parts, whole and on the CPU of the first process; the others get none.

    All processes have to ask, for the same names in the same order.
    """
    whole: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        full = value.full_tensor().detach() if isinstance(value, DTensor) else value.detach()
        if is_main():
            whole[name] = full.cpu() if isinstance(value, DTensor) else full
    return whole


Matrices = list[torch.Tensor]


def each_by_one(matrices: Matrices, work: Callable[[Matrices], Matrices]) -> Matrices:
    """`work` of whole matrices, each done by one process alone and exactly as a single process does it.

    Of matrices that processes hold rows of (DTensor), each gets its rows of the results, as plain tensors; else the whole.
    """
    if world() < 2 or not matrices:
        return work(matrices)
    if isinstance(matrices[0], DTensor):
        return _by_owners_of_rows(matrices, work)  # type: ignore[arg-type]
    done = work(matrices[rank() :: world()])
    results = list(matrices)
    for owner in range(world()):
        owned = matrices[owner :: world()]
        if not owned:
            break
        flat = torch.cat([each.flatten() for each in (done if owner == rank() else owned)])
        distributed.broadcast(flat, owner)
        parts = flat.split([each.numel() for each in owned])
        results[owner :: world()] = [part.view_as(each) for part, each in zip(parts, owned, strict=True)]
    return results


def _by_owners_of_rows(matrices: list[DTensor], work: Callable[[Matrices], Matrices]) -> Matrices:
    """`each_by_one` among the processes that share one copy of the weights."""
    mesh = matrices[0].device_mesh
    mesh = mesh[mesh.mesh_dim_names[-1]] if mesh.ndim > 1 and mesh.mesh_dim_names else mesh
    own, count = mesh.get_local_rank(), mesh.size()
    mine = []
    for number, each in enumerate(matrices):
        rows = DTensor.from_local(each.to_local(), mesh, [Shard(0)], run_check=False, shape=each.shape, stride=each.stride())
        whole = rows.full_tensor()
        if number % count == own:
            mine.append(whole)
    done, results = iter(work(mine)), []
    for number, each in enumerate(matrices):
        whole = (
            next(done).contiguous() if number % count == own else torch.empty(each.shape, dtype=each.dtype, device=each.device)
        )
        results.append(distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=number % count).to_local())
    return results
