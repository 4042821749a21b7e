"""Step caches of Phantom-Wan: diffusers' hooks that skip work between steps, under guidance of three branches.

PyramidAttentionBroadcast and FasterCache keep one state for all forwards of a step, so under them the branches are one batch;
of FasterCache that leaves the extrapolated attention, since its saving of the unconditional branch knows two branches only.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.mag_cache import nearest_interp
from diffusers.utils import logging as diffusers_logging

from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.files.untrusted import parse_json
from phantom_s2v.models.finite import check_finite

CACHES = ("none", "first-block", "taylorseer", "magcache", "seacache", "pab", "fastercache")
ONE_BATCH = ("pab", "fastercache")
THRESHOLDS = {"first-block": 0.08, "magcache": 0.06, "seacache": 0.25}  # change allowed before a step is computed again
RATIOS = "magcache.json"  # in a model folder: what `phantom calibrate-magcache` measured of its weights


class StepCache:
    """A cache on a transformer; it is notified when a video begins and, by its contexts, which step and branch is computed.

    `threshold` None is the cache's default. `ratios`, of MagCache, are the growths of the blocks' residual from step to step;
    without them its state is measured instead of used.
    """

    def __init__(
        self,
        transformer: Any,
        name: str,
        threshold: float | None,
        dtype: torch.dtype,
        ratios: list[float] | None = None,
    ) -> None:
        self.transformer, self.name, self.ratios = transformer, name, ratios
        self.one_batch = name in ONE_BATCH
        self.measured: list[float] = []  # by MagCache: growth of the blocks' residual at each step, the mean over the branches
        self.steps, self.references, self.timestep = 1, 0, 1000.0
        self.config = self._config(THRESHOLDS.get(name, 0.0) if threshold is None else threshold, dtype)
        before = diffusers_logging.get_verbosity()
        diffusers_logging.set_verbosity_error()  # FasterCache says at length that it is experimental
        transformer.enable_cache(self.config)
        diffusers_logging.set_verbosity(before)

    def _config(self, threshold: float, dtype: torch.dtype) -> Any:
        """diffusers' configuration of this cache."""
        match self.name:
            case "first-block":
                return FirstBlockCacheConfig(threshold=threshold)
            case "taylorseer":  # its default patterns match nothing in Wan
                parts = [r"blocks\.\d+\.(attn1|attn2|ffn)"]
                return TaylorSeerCacheConfig(cache_interval=3, taylor_factors_dtype=dtype, cache_identifiers=parts)
            case "magcache":
                return MagCacheConfig(threshold=threshold, mag_ratios=self.ratios, calibrate=self.ratios is None)
            case "seacache":
                return SeaCacheConfig(threshold=threshold, raw_vision_callback=self._video)
            case "pab":
                return PyramidAttentionBroadcastConfig(
                    spatial_attention_block_skip_range=2,
                    cross_attention_block_skip_range=3,
                    current_timestep_callback=lambda: self.timestep,  # type: ignore[arg-type]
                )
        return FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            is_guidance_distilled=True,
            attention_weight_callback=lambda _: 0.5,
            current_timestep_callback=lambda: self.timestep,  # type: ignore[arg-type]
        )

    def _video(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """What SeaCache compares between steps: the noisy frames, without the references that never change."""
        places: torch.Tensor = kwargs["hidden_states"]
        return list(places[:, :, : places.shape[2] - self.references].unbind(0))

    def begin(self, steps: int, references: int) -> None:
        """A new video: nothing stays of the one before. Its number of steps and of reference places."""
        self.steps, self.references = steps, references
        self.transformer._reset_stateful_cache()  # as diffusers' own pipelines do it
        if isinstance(self.config, MagCacheConfig):
            measuring = self.ratios is None
            self.config.num_inference_steps = steps + measuring  # past the last step diffusers drops what it measured
            self.config.mag_ratios = None if self.ratios is None else nearest_interp(torch.tensor(self.ratios), steps)

    def context(self, branch: str, step: int, t: float) -> AbstractContextManager[None]:
        """Around the forward of a branch at a step, at t in 0..1."""
        self.timestep = 1000 * t
        return self.transformer.cache_context(branch, step_index=step, sigma=t, num_inference_steps=self.steps)

    def end(self) -> None:
        """The video is made: what was measured of it is kept, since a pipeline resets its caches when it ends."""
        if not isinstance(self.config, MagCacheConfig) or self.ratios is not None:
            return
        hook = self.transformer.blocks[0]._diffusers_hook.get_hook("mag_cache_leader_block_hook")
        states = hook.state_manager._state_cache.values()
        self.measured = torch.tensor([state.calibration_ratios for state in states]).mean(0).tolist()


def wants_one_batch(transformer: Any) -> bool:
    """Whether the cache that a user enabled on a transformer has one state for all forwards of a step.

    Raises InputError for one whose state assumes two branches.
    """
    config = transformer._cache_config if transformer.is_cache_enabled else None
    if isinstance(config, FasterCacheConfig) and not config.is_guidance_distilled:
        raise InputError("FasterCacheConfig must have is_guidance_distilled=True; otherwise it assumes two branches, not three")
    return isinstance(config, FasterCacheConfig | PyramidAttentionBroadcastConfig)


def read_ratios(folder: Path, weights: str) -> list[float]:
    """What `phantom calibrate-magcache` measured of these weights, which are given by their hash. Raises where it did not, where
    it measured other weights, and where the file is damaged.
    """
    file = folder / RATIOS
    if not file.is_file():
        raise InputError(f"--cache magcache needs {file}, which does not exist; run phantom calibrate-magcache")
    try:
        known = parse_json(file.read_bytes())
        ratios, measured = [float(ratio) for ratio in known["ratios"]], str(known["weights"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); run phantom calibrate-magcache again") from error
    if measured != weights:
        raise CheckpointError(
            f"{file} was measured on other weights ({measured[:12]}, not {weights[:12]}); run phantom calibrate-magcache again"
        )
    check_finite(torch.tensor(ratios), f"what {file} holds", CheckpointError)
    return ratios
