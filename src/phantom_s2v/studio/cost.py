"""What a run will take, before it runs, by what the workers have written of themselves; what the project can still spend."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phantom_s2v.errors import PhantomError
from phantom_s2v.models.base import Preset
from phantom_s2v.models.registry import MODELS, load_preset, video_model
from phantom_s2v.pipeline.cost import profile
from phantom_s2v.pipeline.request import Request
from phantom_s2v.studio import queue
from phantom_s2v.studio.schema import Job, Project, Worker
from phantom_s2v.studio.waiting import Snapshot

FRAMES = 10  # that scoring looks at by networks (evaluation.footage, which loads torch)
MORE = 0.2  # of the time with one subject, for each further one; measured (dev/LOG.md)


@dataclass(frozen=True)
class Cost:
    """Of all candidates together."""

    seconds: float
    computed: float  # seconds by arithmetic, before the correction by finished jobs
    money: int  # in the smallest unit of the project's currency
    memory: float  # bytes
    left: int | None  # of the budget, what is queued and running taken off; None: no budget

    @property
    def fits(self) -> bool:
        """Whether the budget allows it."""
        return self.left is None or self.money <= self.left


def offer_of(workers: Iterable[Worker], model: str) -> Worker | None:
    """The first worker that offers a model; None where none does."""
    return next((worker for worker in workers if model in worker.offers["models"]), None)


def offered(workers: Iterable[Worker]) -> list[str]:
    """Names of the models that workers offer, and of those that are on this machine."""
    return sorted({*MODELS, *(name for worker in workers for name in worker.offers["models"])})


def preset_of(offer: dict[str, Any]) -> Preset:
    """The defaults and limits of an offered model, as its worker wrote them."""
    values = offer["preset"]
    sizes = tuple(tuple(each) for each in values["sizes"])
    return Preset(**{**values, "sizes": sizes, "side_range": tuple(values["side_range"])})


def own_preset(model: str) -> Preset | None:
    """The same of a model that lies on this machine, for a page opened before a worker has started; None for any other."""
    folder = MODELS.get(model, Path(model))
    try:
        return load_preset(folder) if folder.is_dir() else None
    except PhantomError:
        return None


def own_reading(model: str) -> bool | None:
    """Whether a model that lies on this machine reads free text (`checks_prompts`); None for any other."""
    folder = MODELS.get(model, Path(model))
    try:
        return video_model(folder).checks_prompts if folder.is_dir() else None
    except PhantomError:
        return None


def estimate(seen: Snapshot, project: Project, offer: dict[str, Any], request: Request, candidates: int) -> Cost:
    """Seconds, money and memory of a request. Steps, decoding and scoring are computed; that is corrected by what the latest jobs
    of this model have really taken: previews and encoding come on top of it.
    """
    found = profile.estimate(profile.Profile.from_json(offer["profile"]), request, preset_of(offer))
    computed = (found.seconds + scoring(offer.get("scoring"), request)) * candidates
    seconds = computed * _experience(seen.finished, project.model)
    committed = queue.cost_of(seen.committed, project.price_per_hour)
    left = None if project.budget is None else project.budget - project.spent - committed
    return Cost(seconds, computed, queue.cost_of(seconds, project.price_per_hour), found.peak, left)


def scoring(speed: Mapping[str, float] | None, request: Request) -> float:
    """Seconds of measuring a video by a machine's `Measures.speed`: at most FRAMES frames are looked at by networks, for each
    subject, and each frame is held against each subject.
    """
    if speed is None:
        return 0.0
    subjects = len({each.subject for each in request.references}) or 1
    looked = min(request.num_frames, FRAMES) * (1 + MORE * (subjects - 1))
    return looked * speed["frame"] + request.num_frames * request.height * request.width * subjects * speed["pixel"]


def _experience(finished: Iterable[Job], model: str) -> float:
    """How much longer than computed the jobs of a model ran, the median; 1 before the first."""
    of_model = [job for job in finished if job.requires.get("model") == model]
    ratios = [job.seconds / job.requires["computed_seconds"] for job in of_model if job.requires.get("computed_seconds")]
    return statistics.median(ratios) if ratios else 1.0
