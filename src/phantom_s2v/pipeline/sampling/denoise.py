"""The denoising loop of PhantomPipeline: its scheduler along the guided velocity, with callbacks between the steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from phantom_s2v.errors import InputError, NotFiniteError
from phantom_s2v.models.finite import all_finite, check_finite, first_not_finite
from phantom_s2v.pipeline.conditions import Conditions, Guided
from phantom_s2v.pipeline.sampling.schedulers import restore_state, set_timesteps, state_of

CHANGEABLE = ("latents", "prompt_embeds", "negative_prompt_embeds")  # by a callback


def denoise(
    pipe: Any,
    conditions: Conditions,
    latents: torch.Tensor,
    steps: int,
    resume_state: dict[str, torch.Tensor] | None = None,
    callback: Any = None,
    wanted: Sequence[str] = (),
) -> torch.Tensor:
    """Latents [N, C, T, h, w] of noise; `pipe` is a PhantomPipeline, and `wanted` the tensors that the callback asks for.

    A callback that sets `pipe._interrupt` ends it with the latents as they are.
    """
    timesteps = set_timesteps(pipe.scheduler, steps, latents.device)
    pipe._num_timesteps, begin = len(timesteps), 0
    if conditions.first is not None:
        latents = torch.cat([conditions.first.to(latents), latents[:, :, 1:]], 2)
    if resume_state is not None:
        if pipe.step_cache or getattr(pipe.transformer, "is_cache_enabled", False):
            raise InputError("resume_state cannot be combined with a step cache")
        latents, begin = restore_state(pipe.scheduler, resume_state, latents)
    guided, scales = pipe.guided(conditions, latents), (pipe.guidance_scale, pipe.image_guidance_scale)
    with pipe.progress_bar(total=steps - begin) as bar:
        for step in range(begin, steps):
            if pipe.interrupt:
                continue
            pipe._current_timestep = timesteps[step]
            velocity = _finite_velocity(guided, latents, step, steps, pipe.transformer)
            clean = latents - float(pipe.scheduler.sigmas[step]) * velocity
            latents = pipe.scheduler.step(velocity, timesteps[step], latents, return_dict=False)[0]
            if callback is not None:
                latents, changed = _call_back(pipe, callback, wanted, step, latents, clean, conditions)
                now = (pipe.guidance_scale, pipe.image_guidance_scale)  # which a callback may set, as diffusers' own do
                if changed is not conditions or now != scales:
                    conditions, scales, guided = changed, now, pipe.guided(changed, latents)
            bar.update()
    pipe._current_timestep = None
    if pipe.step_cache:
        pipe.step_cache.end()
    check_finite(latents, f"the latents after step {steps}, the last")
    return latents


def _call_back(
    pipe: Any,
    callback: Any,
    wanted: Sequence[str],
    step: int,
    latents: torch.Tensor,
    clean: torch.Tensor,
    conditions: Conditions,
) -> tuple[torch.Tensor, Conditions]:
    """Latents and conditions as the callback leaves them after a step; unchanged conditions are the same object.

    Raises InputError for what no next step can start from.
    """
    held: dict[str, Any] = {"latents": latents, "clean_latents": clean}
    held |= {name: getattr(conditions, name) for name in ("prompt_embeds", "negative_prompt_embeds")}
    if "resume_state" in wanted:
        held["resume_state"] = state_of(pipe.scheduler, latents, step + 1)
    changed = callback(pipe, step, pipe.current_timestep, {name: held[name] for name in wanted}) or {}
    if not isinstance(changed, dict):
        raise InputError(f"callback_on_step_end must return a dict or None (got {type(changed).__name__})")
    new = {name: changed[name] for name in CHANGEABLE if changed.get(name, held[name]) is not held[name]}
    for name, value in new.items():
        free = () if name == "latents" else (1,)  # a text may be longer or shorter
        _check_like(value, held[name], name, free)
        new[name] = value.to(held[name])
    latents = new.pop("latents", latents)
    return latents, replace(conditions, **new) if new else conditions


def _check_like(value: Any, like: torch.Tensor, name: str, free: Sequence[int]) -> None:
    """Raise InputError where what a callback returns has not the shape of what it got, but for the dimensions in `free`."""
    if not isinstance(value, torch.Tensor):
        raise InputError(f"callback_on_step_end must return {name} as a tensor (got {type(value).__name__})")
    got, wanted = ([n for i, n in enumerate(each.shape) if i not in free] for each in (value, like))
    if got != wanted:
        raise InputError(f"callback_on_step_end must return {name} of shape {list(like.shape)} (got {list(value.shape)})")


def _finite_velocity(guided: Guided, x: torch.Tensor, step: int, steps: int, transformer: Any) -> torch.Tensor:
    """The guided velocity. Raises NotFiniteError at the first step that is not finite; the block is found by a second forward,
    so that a sound step costs two sums over the latents.
    """
    where = f"step {step + 1} of {steps}"
    check_finite(x, f"the latents before {where}")
    v = guided(x, step)
    if not all_finite(v):
        block = first_not_finite(transformer, lambda: guided(x, step))
        place = f"first in {block} of the transformer" if block else "and no block of the transformer shows it again"
        advice = "; float16 may be too narrow for this model, bfloat16 is not" if transformer.dtype == torch.float16 else ""
        raise NotFiniteError(f"{where}: the velocity is not finite, {place}; no video was written{advice}")
    return v
