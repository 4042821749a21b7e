"""diffusers' schedulers on the released grid of timesteps, and their state, from which a video goes on bit for bit."""

from copy import deepcopy
from inspect import signature
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from phantom_s2v.errors import InputError

SIGMA_MAX = 0.999  # where the released multistep grid starts: log((1 - t) / t) is finite there
STATE = ("model_outputs", "timestep_list", "lower_order_nums", "this_order", "last_sample")  # of a multistep scheduler


def build_scheduler(solver: str, shift: float) -> Any:
    """The scheduler of a rectified flow with a timestep shift: Euler, or UniPC of order 2 (Zhao 2023, arXiv 2302.04867)."""
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def solver_of(scheduler: Any) -> str:
    """euler or unipc, the one whose requests a scheduler serves."""
    return "unipc" if "solver_order" in scheduler.config else "euler"


def shift_of(scheduler: Any) -> float:
    """The timestep shift of a scheduler."""
    return float(scheduler.config.get("flow_shift", scheduler.config.get("shift", 1.0)))


def check_scheduler(scheduler: Any) -> None:
    """Raise InputError for a scheduler that does not follow a rectified flow on a grid that it is given, step for step."""
    accepted = "sigmas" in signature(scheduler.set_timesteps).parameters
    config, name = scheduler.config, type(scheduler).__name__
    multistep = config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
    if not accepted or not (multistep or name.startswith("FlowMatch")) or config.get("use_dynamic_shifting"):
        raise InputError(
            "scheduler must be FlowMatchEulerDiscreteScheduler, or UniPCMultistepScheduler with use_flow_sigmas=True and "
            f"prediction_type='flow_prediction', without use_dynamic_shifting (got {name})"
        )


def grid(scheduler: Any, steps: int) -> np.ndarray:
    """Sigmas [steps] before the shift, as the released code spaces them: evenly from 1 (0.999 for a multistep scheduler) to 0."""
    return np.linspace(SIGMA_MAX if "solver_order" in scheduler.config else 1.0, 0, steps + 1)[:-1]


def set_timesteps(scheduler: Any, steps: int, device: torch.device) -> torch.Tensor:
    """Timesteps [steps] on the released grid, which the scheduler now follows from its start."""
    scheduler.set_timesteps(sigmas=grid(scheduler, steps), device=device)
    scheduler.set_begin_index(0)
    return scheduler.timesteps


def state_of(scheduler: Any, latents: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
    """All that the next steps need beside the request: latents, the number of steps done, and a multistep scheduler's history.

    Tensors by name, as safetensors stores them.
    """
    state = {"latents": latents.contiguous(), "step": torch.tensor(step), "sigmas": _sigmas(scheduler)}
    for name in STATE:
        value = getattr(scheduler, name, None)
        parts = {f"{name}.{i}": part for i, part in enumerate(value)} if isinstance(value, list) else {name: value}
        state |= {key: torch.as_tensor(part).clone().contiguous() for key, part in parts.items() if part is not None}
    return state


def restore_state(scheduler: Any, state: dict[str, torch.Tensor], like: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Put a scheduler, whose timesteps are set, where `state_of` found it. Returns the latents and the number of steps done.

    `like` are the latents of a start, whose shape, type and device hold. Raises InputError for the state of another video, of
    other steps or of another scheduler.
    """
    state = deepcopy(state)
    _check_state(scheduler, state, like)
    latents, step = state["latents"], state["step"]
    for name in STATE:
        held = getattr(scheduler, name, None)
        if isinstance(held, list):
            values = [state.get(f"{name}.{i}") for i in range(len(held))]
            setattr(scheduler, name, [v if v is None or v.ndim == 0 else v.to(like) for v in values])
        elif name in state:
            setattr(scheduler, name, int(state[name]) if state[name].ndim == 0 else state[name].to(like))
    scheduler.set_begin_index(int(step))
    if int(step):
        scheduler._step_index = int(step)
    return latents.to(like), int(step)


def _check_state(scheduler: Any, state: dict[str, Any], like: torch.Tensor) -> None:
    """Raise InputError where a state is not one that `state_of` makes of this scheduler and of latents like these."""
    if odd := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise InputError(f"resume_state must be a dict of tensors (got {type(state[odd[0]]).__name__} for {odd[0]})")
    steps = len(scheduler.timesteps)
    latents, step, sigmas = (state.get(name) for name in ("latents", "step", "sigmas"))
    if latents is None or latents.shape != like.shape:
        got = "no latents" if latents is None else f"latents {tuple(latents.shape)}"
        raise InputError(f"resume_state must be of latents {tuple(like.shape)} (got {got})")
    if step is None or step.numel() != 1 or step.is_floating_point() or not 0 <= int(step) <= steps:
        raise InputError(f"resume_state must be of a step between 0 and {steps} (got {step if step is None else step.tolist()})")
    if sigmas is None or not torch.equal(sigmas.cpu(), _sigmas(scheduler)):
        got = "no sigmas" if sigmas is None else f"{sigmas.numel() - 1} steps"
        raise InputError(f"resume_state must be of the same scheduler with the same {steps} steps and shift (got {got})")
    needed, more = _history(scheduler, int(step))
    if odd := sorted((needed - set(state)) | (set(state) - {"latents", "step", "sigmas"} - needed - more)):
        fault = "missing" if odd[0] in needed else "unknown"
        raise InputError(f"resume_state must be of the same scheduler ({odd[0]} is {fault})")
    if odd := [k for k, v in state.items() if k not in ("step", "sigmas") and v.ndim and v.shape != like.shape]:
        raise InputError(f"resume_state must be of latents {tuple(like.shape)} (got {odd[0]} of {tuple(state[odd[0]].shape)})")


def _history(scheduler: Any, step: int) -> tuple[set[str], set[str]]:
    """Names of what `state_of` gives of a scheduler's history after `step` steps: what a step needs, and what may be there."""
    order = scheduler.config.get("solver_order", 0)
    outputs = {f"model_outputs.{i}" for i in range(max(0, order - step), order)}
    needed = {"lower_order_nums", "this_order", "last_sample"} | outputs if outputs else set()
    return needed, {"lower_order_nums", "this_order", *(f"timestep_list.{i}" for i in range(order))} if order else set()


def _sigmas(scheduler: Any) -> torch.Tensor:
    """The grid of a scheduler, [steps + 1]: what decides its steps."""
    return torch.as_tensor(scheduler.sigmas).detach().cpu().float().contiguous()
