"""Samples of a run: videos of fixed requests by the weights as they are, the same bytes that `phantom generate` makes of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from phantom_s2v.errors import InputError
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import load_preset
from phantom_s2v.models.wan.lora import add_lora
from phantom_s2v.pipeline.batch import Job, make, read_requests
from phantom_s2v.pipeline.generate import request_images
from phantom_s2v.pipeline.loading import model_hash
from phantom_s2v.pipeline.metadata import origin_of
from phantom_s2v.training.checkpoint import step_name
from phantom_s2v.training.config import OwnConfig

FOLDER, ADAPTER, TRAINED = "samples", "sample", "default"  # TRAINED is peft's name of the adapter that is trained
Score = Callable[[Path, list[np.ndarray]], float]  # video, references -> similarity of the subjects


def read_samples(config: OwnConfig, folder: Path, out: Path) -> list[Job]:
    """The requests of the config's file, each with the name of its video. Raises InputError for one that cannot be made."""
    if not config.samples:
        return []
    if config.train.parallel != "ddp" or config.train.ring_degree * config.train.ulysses_degree > 1:
        raise InputError("samples need the whole model in one process (parallel ddp, ring_degree and ulysses_degree 1)")
    file = Path(config.samples)
    if not file.is_file():
        raise InputError(f"samples must be a JSON Lines file of requests as phantom generate --requests has it (got {file})")
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    jobs, faults, _ = read_requests(file, out / FOLDER, load_preset(folder))
    if faults or not jobs:
        raise InputError(f"{file}: {faults[0] if faults else 'it has no requests'}")
    for request, _ in jobs:
        request_images(request)
    return jobs


class Samples:
    """Makes the samples of a run."""

    def __init__(self, jobs: list[Job], pipe: Any, config: OwnConfig, placement: Placement, score: Score | None) -> None:
        self.jobs, self.pipe, self.config, self.placement = jobs, pipe, config, placement
        self.score = score if config.evaluate else None

    def __call__(self, average: nn.Module, made: Path, step: int) -> dict[str, float]:
        """Videos, sheets and metadata under samples/step-N by `average`, written as `made`; their similarity, if asked."""
        if not self.jobs:
            return {}
        device = self.placement.torch_device()
        target = self.jobs[0][1].parent / step_name(step)
        target.mkdir(parents=True, exist_ok=True)
        similarities = []
        with torch.no_grad(), torch.autocast(device.type, enabled=False), self._swapped(average, made, device):
            for request, named in self.jobs:
                video = target / named.name
                origin = origin_of(request, self.pipe.weights, self.pipe.placement.resolved(), None, None, None)
                make(request, self.pipe, video, False, lambda _: None, origin)
                if self.score:
                    similarities.append(self.score(video, request_images(request)[0]))
        return {"similarity": sum(similarities) / len(similarities)} if similarities else {}

    @contextmanager
    def _swapped(self, average: nn.Module, made: Path, device: torch.device) -> Iterator[None]:
        """Within it the pipeline has what was written, and not what is trained."""
        pipe, trained, before = self.pipe, self.pipe.transformer, (self.pipe.placement, self.pipe.weights)
        if pipe.vae is not None:
            pipe.vae.to(device)
        try:
            if self.config.lora is None:
                pipe.transformer = deepcopy(average).to(self.placement.torch_dtype()).eval()
                pipe.weights = model_hash(made)
            else:
                add_lora(trained, made, ADAPTER)
                trained.set_adapters([ADAPTER], [1.0])
                trained.eval()
                pipe.placement = replace(self.placement, loras=((str(made), 1.0),))
            yield
        finally:
            if self.config.lora is not None:
                trained.set_adapters([TRAINED], [1.0])
                trained.delete_adapters([ADAPTER])
            pipe.transformer = trained.train()
            pipe.placement, pipe.weights = before
            if pipe.vae is not None:
                pipe.vae.to("cpu")  # where it waits, since the training has no use for it
