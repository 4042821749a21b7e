"""The denoising loop of PhantomPipeline: its scheduler along the guided velocity, with callbacks between the steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from phantom_s2v.errors import InputError, NotFiniteError
from phantom_s2v.models.finite import all_finite, check_finite, first_not_finite
from phantom_s2v.pipeline.conditions import Conditions, Guided
from phantom_s2v.pipeline.sampling.schedulers import restore_state, set_timesteps, state_of


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
    guided = pipe.guided(conditions, latents)
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
                if changed is not conditions:
                    conditions, guided = changed, pipe.guided(changed, latents)
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
    """Latents and conditions as the callback leaves them after a step; unchanged conditions are the same object."""
    held: dict[str, Any] = {"latents": latents, "clean_latents": clean}
    held |= {name: getattr(conditions, name) for name in ("prompt_embeds", "negative_prompt_embeds")}
    if "resume_state" in wanted:
        held["resume_state"] = state_of(pipe.scheduler, latents, step + 1)
    changed = callback(pipe, step, pipe.current_timestep, {name: held[name] for name in wanted}) or {}
    texts = {name: value for name, value in changed.items() if name in Conditions.__dataclass_fields__}
    if any(value is not getattr(conditions, name) for name, value in texts.items()):
        conditions = replace(conditions, **texts)
    return changed.get("latents", latents), conditions


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
