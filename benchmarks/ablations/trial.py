"""One arm with one seed, from its start to its figures; and its probe."""

import shutil
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .arms import BY_NAME, TRUE
from .judge import judge_of
from .results import chosen
from .world import PROBE_STEPS, World, exact, losses, network_of, train_arm, velocity_of

PROBED = 4  # subjects, and samples of a batch, of a probe


class Trials:
    """The arms of the paper's own way, by name; judges are made once for each length of clips."""

    def __init__(self, world: World, scratch: Path) -> None:
        self.world, self.scratch = world, scratch
        self.judge = cache(lambda frames: judge_of(world, frames))
        self.probe = cache(self._probe)

    def made_by(self, name: str, seed: int) -> dict[str, Any]:
        """All that makes an arm's figures but code."""
        if name in TRUE:
            return {"arm": name}
        arm = BY_NAME[name]
        return {
            "training": chosen(arm.recipe.config(seed, arm.training)),
            "sizes": arm.recipe.sizes,
            "arm": [arm.network, arm.pairing, arm.one_index],
        }

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train and judge; seconds are of this process on the CPU."""
        if name in TRUE:
            return {"figures": self.judge(TRUE[name]).true_figures()}
        arm = BY_NAME[name]
        config, folder = arm.recipe.config(seed, arm.training), self.scratch / f"{arm.name}-{seed}"
        began = time.process_time()
        network = train_arm(arm, config, self.world, folder)
        trained = time.process_time()
        figures = self.judge(arm.recipe.frames)(velocity_of(network.eval(), arm, self.world.dtype))
        judged = time.process_time()
        shutil.rmtree(folder)
        return {
            "samples": round(arm.recipe.samples),
            "cost": {"training_seconds": round(trained - began), "judging_seconds": round(judged - trained)},
            "figures": figures,
        }

    def _probe(self, name: str) -> list[float]:
        """Losses of the first steps on a few samples and errors on a few subjects, in float32.

        The weights are stirred, since a new network's output is zero whatever it sees.
        """
        world = exact(self.world)
        if name in TRUE:
            figures = judge_of(world, TRUE[name], PROBED).true_figures()
            return [float(f"{np.mean(values):.6g}") for values in figures.values()]
        arm = BY_NAME[name]
        folder = self.scratch / f"probe-{arm.name}"
        shutil.rmtree(folder, ignore_errors=True)
        config = arm.recipe.config(0, arm.training)
        few = tuple(replace(bucket, batch=PROBED if bucket.frames == 1 else 1) for bucket in config.buckets)
        short = replace(config.train, steps=PROBE_STEPS, warmup=1, log_steps=1, precision="float32")
        network = train_arm(arm, replace(config, train=short, buckets=few), world, folder, stirred(network_of(arm, world, 0)))
        errors = judge_of(world, arm.recipe.frames, PROBED).errors(velocity_of(network.eval(), arm, torch.float32))
        found = [*losses(folder), *(float(np.mean(values)) for values in errors.values())]
        shutil.rmtree(folder)
        return [float(f"{value:.6g}") for value in found]


def stirred(network: nn.Module) -> nn.Module:
    """The network with noise on all weights."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())), alpha=0.1)
    return network
