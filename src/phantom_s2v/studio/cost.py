"""What a run will take, before it runs, by what the workers have written of themselves; what the project can still spend."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, literal, select, true
from sqlalchemy.orm import Session

from phantom_s2v.errors import PhantomError
from phantom_s2v.models.base import Preset
from phantom_s2v.models.registry import MODELS, load_preset
from phantom_s2v.pipeline.cost import profile
from phantom_s2v.pipeline.request import Request
from phantom_s2v.studio import queue
from phantom_s2v.studio.schema import Job, JobState, Project, Worker

COMPARED = 20  # finished jobs of a model by which estimates are corrected
WORKERS = 20  # the latest, among which one that offers a model is looked for


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


def offer_of(session: Session, model: str) -> Worker | None:
    """The worker that was heard last and offers a model, alive or not; None where none ever did."""
    latest = session.scalars(select(Worker).order_by(Worker.heartbeat_at.desc()).limit(WORKERS))
    return next((worker for worker in latest if model in worker.offers["models"]), None)


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


def estimate(session: Session, project: Project, offer: dict[str, Any], request: Request, candidates: int) -> Cost:
    """Seconds, money and memory of a request. What is computed is corrected by what the latest jobs of this model have really
    taken: previews, encoding and measuring come on top of it.
    """
    found = profile.estimate(profile.Profile.from_json(offer["profile"]), request, preset_of(offer))
    computed, (correction, committed) = found.seconds * candidates, _experience(session, project)
    seconds = computed * correction
    left = None if project.budget is None else project.budget - project.spent - committed
    return Cost(seconds, computed, queue.cost_of(seconds, project.price_per_hour), found.peak, left)


def _experience(session: Session, project: Project) -> tuple[float, int]:
    """How much longer than computed the latest jobs of the project's model ran, the median, 1 before the first; and what the
    project's waiting and running jobs will cost by their estimates.
    """
    committed = (
        select(func.sum(Job.estimated_seconds)).where(Job.project_id == project.id, Job.state.in_(queue.OPEN)).scalar_subquery()
    )
    latest = (
        select(Job.seconds, Job.requires["computed_seconds"].as_float().label("computed"))
        .where(Job.state == JobState.DONE, Job.requires["model"].as_string() == project.model)
        .order_by(Job.ended_at.desc())
        .limit(COMPARED)
        .subquery()
    )
    one = select(literal(1).label("one")).subquery()
    rows = session.execute(
        select(committed, latest.c.seconds, latest.c.computed).select_from(one.outerjoin(latest, true()))
    ).all()
    ratios = [seconds / computed for _, seconds, computed in rows if computed]
    return statistics.median(ratios) if ratios else 1.0, queue.cost_of(float(rows[0][0] or 0), project.price_per_hour)
