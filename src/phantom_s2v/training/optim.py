"""Muon for matrices and AdamW for the rest, exponential moving average, and the learning-rate schedule.

Muon (Jordan 2024): momentum, then the nearest orthogonal matrix by a quintic Newton-Schulz iteration. torch.optim.Muon
orthogonalizes in bf16 only, which most CPUs emulate; here the type is an argument.
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from phantom_s2v.models.distributed import each_by_one

_QUINTIC = (3.4445, -4.7750, 2.0315)
SLOW = 0.3  # share of Muon's rate


def orthogonalize(matrix: torch.Tensor, dtype: torch.dtype = torch.float32, steps: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrices of [..., R, C], approximately: singular values end between 0.7 and 1.2."""
    a, b, c = _QUINTIC
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    x = (wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if matrix.shape[-2] <= matrix.shape[-1] else x.mT).to(matrix.dtype)


def orthogonalize_all(matrices: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """`orthogonalize` of each matrix, those of one shape together."""
    by_shape: dict[torch.Size, list[int]] = {}
    for number, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(number)
    out = list(matrices)
    for numbers in by_shape.values():
        for number, direction in zip(numbers, orthogonalize(torch.stack([matrices[n] for n in numbers]), dtype), strict=True):
            out[number] = direction
    return out


class Muon(torch.optim.Optimizer):
    """Muon on the weights of hidden layers, torch's AdamW without decay on all else, at two rates.

    Convolutions are treated as matrices [out, in * kernel]. The rate of a matrix is scaled by sqrt(max(1, R / C)). `exclude`
    names matrices, by how their names begin, that AdamW takes; `slow` those, by a part of their names, that move at SLOW of `lr`.
    Under torchrun every process orthogonalizes its share of the matrices, whole, so all need the same gradients.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        adam_lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
        exclude: tuple[str, ...] = (),
        slow: tuple[str, ...] = (),
    ) -> None:
        quick, gentle, rest = [], [], []
        for name, p in named:
            if p.ndim < 2 or min(p.shape[0], p.numel() // max(1, p.shape[0])) < 16 or name.startswith(exclude):
                rest.append(p)
            else:
                (gentle if any(part in name for part in slow) else quick).append(p)
        # One list of groups and one state for both, so that a schedule and a checkpoint see one optimizer.
        # Fused: on a CPU a quarter of the time, on a GPU one kernel.
        self.adamw = torch.optim.AdamW([{"params": rest}], adam_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        rates = (
            ({"params": quick}, lr, True),
            ({"params": gentle}, lr * SLOW, True),
            (self.adamw.param_groups[0], adam_lr, False),
        )
        self.dtype = dtype
        defaults = {"momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{**group, "lr": rate, "base_lr": rate, "muon": muon} for group, rate, muon in rates], defaults)
        self.adamw.param_groups, self.adamw.state = self.param_groups[2:], self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        for group in self.param_groups[:2]:
            self._muon([(p, p.grad) for p in group["params"] if p.grad is not None], group)
        self.adamw.step()

    def _muon(self, touched: list[tuple[torch.Tensor, torch.Tensor]], group: dict) -> None:
        if not touched:
            return
        parameters, grads = _own([p for p, _ in touched]), _own([grad for _, grad in touched])
        buffers = _own([self._buffer(p) for p, _ in touched])
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        matrices = [_matrix(update, p) for update, (p, _) in zip(updates, touched, strict=True)]
        directions = each_by_one(matrices, partial(orthogonalize_all, dtype=self.dtype))
        scales = [group["lr"] * max(1.0, m.shape[0] / m.shape[1]) ** 0.5 for m in matrices]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        steps = torch._foreach_mul(directions, scales)
        torch._foreach_sub_(parameters, [step.view_as(p) for step, p in zip(steps, parameters, strict=True)])

    def _buffer(self, p: torch.Tensor) -> torch.Tensor:
        """The momentum of a parameter."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        return state["momentum"]


def _own(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What this process holds of tensors, whose elements are changed in place."""
    return [each.to_local() if isinstance(each, DTensor) else each for each in tensors]


def _matrix(update: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """An update of a parameter, of which this process may hold rows only, as a matrix [out, in * kernel] of all rows."""
    flat = update.flatten(1)
    if not isinstance(p, DTensor):
        return flat
    shape = torch.Size((p.shape[0], p.numel() // p.shape[0]))
    return DTensor.from_local(flat, p.device_mesh, p.placements, run_check=False, shape=shape, stride=(shape[1], 1))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """ema <- decay ema + (1 - decay) model, with a shorter memory during the first steps."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(_own(ema.parameters()), _own(model.parameters()), weight)
    copy_buffers(ema, model)


def copy_buffers(ema: nn.Module, model: nn.Module) -> None:
    """Give an average the buffers of its model, where it has any."""
    for name, target in ema.named_buffers():
        target.copy_(model.get_buffer(name))


def rate_at(step: int, steps: int, warmup: int, decay_share: float) -> float:
    """Factor on the learning rate: linear warm-up, constant, then linearly to zero over the last share of the run."""
    falling = max(1, int(steps * decay_share))
    return min(1.0, (step + 1) / max(1, warmup), max(0.0, (steps - step) / falling) if decay_share else 1.0)


def rate_left(seconds: float, minutes: float, decay_minutes: float) -> float:
    """Factor on the learning rate of a run that ends after `minutes`: 1, then linearly to zero over the last `decay_minutes`."""
    return max(0.0, min(1.0, (minutes * 60 - seconds) / (decay_minutes * 60))) if decay_minutes else 1.0
