"""What a fine-tuning learns: the loss of a batch, and its error on triplets that are held out.

Legend: B batch, C latent channels, T latent time, h w latent grid.
"""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import save_on_cpu

from phantom_s2v.models.distributed import everyone, rank, world
from phantom_s2v.models.flow_matching import clean, interpolate, shift_mean, velocity_loss, velocity_target
from phantom_s2v.pipeline.conditions import Dropped
from phantom_s2v.training.batches import Batch, collate
from phantom_s2v.training.config import OwnConfig
from phantom_s2v.training.encoded import EncodedStore, JoinedStore
from phantom_s2v.training.learner import Loss
from phantom_s2v.training.transformer import permute_subjects
from phantom_s2v.training.validation import TIMES

TIMESTEPS = 1000  # of Wan
BANDS = 4  # of t, whose losses the log tells apart
EDGE = 1e-6  # of the uniform numbers that become t


def draw_t(count: int, config: OwnConfig, positions: int) -> torch.Tensor:
    """Times of the config's density for latents of so many positions, float32 on the CPU, within its bounds.

    The logit of t is normal or, where t is uniform, logistic; a shift moves it by its logarithm. Bounds cut the density, by the
    inverse of its distribution, so that inside them it keeps its shape.
    """
    normal = config.t_density == "logit-normal"
    mean = shift_mean(config.t_mean, positions, config.t_tokens or positions) if normal else 0.0
    mean, scale = mean + math.log(config.t_shift), config.t_scale if normal else 1.0
    bounds = torch.tensor([config.min_timestep, config.max_timestep], dtype=torch.float64) / TIMESTEPS
    scaled = (torch.logit(bounds) - mean) / scale
    low, high = (torch.special.ndtr(scaled) if normal else torch.sigmoid(scaled)).tolist()
    u = (low + (high - low) * torch.rand(count, dtype=torch.float64)).clamp(EDGE, 1 - EDGE)
    z = torch.special.ndtri(u) if normal else torch.logit(u)
    return torch.sigmoid(mean + scale * z).clamp(*bounds.tolist()).float()


def whole(t: torch.Tensor, pipe: Any) -> torch.Tensor:
    """t as the model takes it: whole timesteps of 1 to 1000, or any."""
    return ((t * TIMESTEPS).floor().clamp(min=1) / TIMESTEPS) if pipe.whole_timesteps else t


def draw_dropped(batch: Batch, config: OwnConfig, empty: torch.Tensor) -> Dropped:
    """Which rows lose what, at random."""
    draw = torch.rand(4, len(batch["latents"]), device=batch["latents"].device)
    rates = (config.drop_text, config.drop_references, config.drop_latents, config.drop_tokens)
    text, references, latents, tokens = (row < rate for row, rate in zip(draw, rates, strict=True))
    return Dropped(text, references, latents, tokens, empty)


def weight_of(batch: Batch, config: OwnConfig) -> torch.Tensor | None:
    """Weight of each latent position in the loss, [B, T, h, w]: gray of the clips' masks; None where no clip has one."""
    mask = batch.get("mask")
    return None if mask is None else config.outside_mask + (1 - config.outside_mask) * mask


def loss_of(pipe: Any, config: OwnConfig, empty: torch.Tensor) -> Loss:
    """Rectified flow: squared error of the velocity. References are clean, and no part of the loss (Phantom 3.3).

    `loss_t0.25` and so on are the losses of samples with t below that and above the band before.
    """

    def loss(batch: Batch, step: int) -> Batch:
        x = batch["latents"]
        if config.permute_subjects:
            batch = {**batch, "subjects": permute_subjects(batch["subjects"])}
        times = whole(draw_t(len(x), config, x[0, 0].numel()), pipe)
        t, noise = times.to(x.device), torch.randn(x.shape, device=x.device)
        x_t = interpolate(x, noise, t[:, None, None, None, None])
        with save_on_cpu(pin_memory=x.is_cuda) if config.activation_offload else nullcontext():
            velocity = pipe.training_velocity(x_t, t, batch, draw_dropped(batch, config, empty))
        target, weight = velocity_target(x, noise), weight_of(batch, config)
        counted = torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device)
        value = velocity_loss(velocity, target, counted, weight)
        return {"loss": value, **_by_band(velocity.detach(), target, times, counted, weight)}

    return loss


def _by_band(
    velocity: torch.Tensor, target: torch.Tensor, times: torch.Tensor, counted: torch.Tensor, weight: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """The loss of the samples of each band of t that a batch has some of."""
    bands = (times * BANDS).long().clamp(max=BANDS - 1).tolist()
    found = {}
    for band in sorted(set(bands)):
        rows = [place for place, each in enumerate(bands) if each == band]
        part = None if weight is None else weight[rows]
        found[f"loss_t{(band + 1) / BANDS:g}"] = velocity_loss(velocity[rows], target[rows], counted[rows], part)
    return found


class Errors:
    """Error of the predicted clean latent on held-out triplets, at fixed t and noise, with and without the references.

    Their difference is what the references are worth. Processes share the triplets: each makes as many forwards as the others,
    since weights may be split, and counts those of its own triplets.
    """

    def __init__(
        self, store: EncodedStore | JoinedStore, rows: list[int], pipe: Any, empty: torch.Tensor, parts: int = 1
    ) -> None:
        """`parts` processes share a sequence, and so a triplet."""
        self.store, self.rows, self.pipe, self.empty = store, rows, pipe, empty
        self.rank, self.ranks = rank() // parts, world() // parts

    @torch.no_grad()
    def __call__(self, device: torch.device) -> dict[str, float]:
        """`with_0.3` and so on, `without_...`; means over the triplets. One is held in memory at a time."""
        errors: dict[int, dict[str, float]] = {}
        for number in range(self.rank, len(self.rows) + -len(self.rows) % self.ranks, self.ranks):
            row = self.rows[min(number, len(self.rows) - 1)]
            sums = errors[number] = dict[str, float]()
            batch = collate(self.store.take([row]), np.random.default_rng([17, number]))
            batch = {name: value.to(device) for name, value in batch.items()}
            x = batch["latents"]
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number)).to(x)
            for t in TIMES:
                time = whole(torch.full((1,), t, device=device), self.pipe)
                x_t = interpolate(x, noise, time[:, None, None, None, None])
                for name, gone in (("with", False), ("without", True)):
                    no = torch.zeros(1, dtype=torch.bool, device=device)
                    velocity = self.pipe.training_velocity(x_t, time, batch, Dropped(no, no | gone, no, no, self.empty))
                    error = (clean(x_t, velocity.float(), t) - x).square().mean()
                    sums[f"{name}_{t}"] = float(error)
        each = {number: sums for part in everyone(errors) for number, sums in part.items() if number < len(self.rows)}
        return {key: sum(each[number][key] for number in sorted(each)) / len(each) for key in each[0]}
