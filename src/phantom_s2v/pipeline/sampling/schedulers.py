"""diffusers' schedulers on the released grid of timesteps, and their state, from which a video goes on bit for bit."""

from copy import deepcopy
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
    state = {"latents": latents.contiguous(), "step": torch.tensor(step)}
    for name in STATE:
        value = getattr(scheduler, name, None)
        parts = {f"{name}.{i}": part for i, part in enumerate(value)} if isinstance(value, list) else {name: value}
        state |= {key: torch.as_tensor(part).clone().contiguous() for key, part in parts.items() if part is not None}
    return state


def restore_state(scheduler: Any, state: dict[str, torch.Tensor], like: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Put a scheduler, whose timesteps are set, where `state_of` found it. Returns the latents and the number of steps done.

    `like` are the latents of a start, whose shape, type and device hold. Raises InputError for the state of another video.
    """
    state = deepcopy(state)
    latents, step = state.get("latents"), state.get("step")
    if latents is None or step is None or latents.shape != like.shape or not 0 <= int(step) <= len(scheduler.timesteps):
        got = f"latents {tuple(latents.shape)} at step {step}" if latents is not None else "no latents"
        raise InputError(f"resume_state must be of latents {tuple(like.shape)} and {len(scheduler.timesteps)} steps (got {got})")
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
