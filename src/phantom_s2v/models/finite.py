"""Values that are not finite, seen where they first arise: a NaN in one weight makes a whole video of noise, and no error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from phantom_s2v.errors import CheckpointError, NotFiniteError, PhantomError

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def all_finite(value: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity. One sum over it, which is finite only where all of it is."""
    if not value.is_floating_point():
        return True
    value = value.detach()
    value = value.half() if value.dtype in FLOAT8 else value
    return bool(value.sum(dtype=torch.float32).isfinite()) or bool(value.isfinite().all())  # a sum alone may overflow


def check_finite(value: torch.Tensor | np.ndarray, what: str, kind: type[PhantomError] = NotFiniteError) -> None:
    """Raise `kind` where a tensor or an array is not finite; `what` names it in the sentence."""
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
    if all_finite(tensor):
        return
    tensor = tensor.float()
    nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    raise kind(f"{what} is not finite: of {tensor.numel()} values {nan} are NaN and {infinite} infinite")


def check_weights(model: nn.Module, where: str) -> nn.Module:
    """The model. Raises CheckpointError that names the first of its weights that is not finite; `where` they come from."""
    for name, value in model.state_dict().items():
        check_finite(value, f"the weight {name} of {where}", CheckpointError)
    return model


def first_not_finite(model: nn.Module, run: Callable[[], Any]) -> str:
    """The name of the innermost module of `model` that gives values that are not finite while `run` runs; empty for none."""
    names: list[str] = []

    def looking(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, out: Any) -> None:
            parts = out if isinstance(out, tuple | list) else [out]
            if not names and not all(all_finite(part) for part in parts if isinstance(part, torch.Tensor)):
                names.append(name)

        return look

    hooks = [module.register_forward_hook(looking(name)) for name, module in model.named_modules() if name]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return names[0] if names else ""
