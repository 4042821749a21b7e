"""How long a job waits: the order in which the queue will serve, played through, and what it waits for."""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Null, ScalarSelect, func, null, or_, select
from sqlalchemy.orm import Session, load_only

from phantom_s2v.studio import queue
from phantom_s2v.studio.schema import Job, JobState, Project, User, Worker, now

MOST = 2000  # waiting jobs that are played through; what lies behind has no place yet
FINISHED = 50  # jobs finished last, of whatever model, by which estimates are corrected
WORKERS = 100  # that are looked at, the latest
COLUMNS = (
    Job.state, Job.project_id, Job.user_id, Job.created_at, Job.started_at, Job.ended_at, Job.estimated_seconds, Job.seconds,
    Job.candidate, Job.candidates, Job.progress, Job.steps, Job.requires,
)  # fmt: skip
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Place:
    """When a job's turn comes: its place from 1 on, and the seconds until then, None without a worker that is alive."""

    number: int
    wait: float | None


@dataclass(frozen=True)
class _Waiting:
    id: str
    project_id: str
    user_id: str
    served: tuple[datetime, datetime]  # its project and its person, last
    begun: bool
    created: datetime
    seconds: float  # that it will run


@dataclass(frozen=True)
class Line:
    """The queue at a moment: what runs, how long each has left, and what waits, in the order of its turns."""

    places: dict[str, Place]
    running: int
    workers: list[dict[str, Any]]  # what those that are alive offer


@dataclass(frozen=True)
class Snapshot:
    """What the database has at a moment of the queue and of the workers: two statements, from which all else follows."""

    at: datetime
    open: list[tuple[Job, datetime | None, datetime | None]]  # at most MOST, with when project and person were last served
    finished: list[Job]  # the latest
    committed: float  # seconds that the waiting and running jobs of a project will take by their estimates
    workers: list[Worker]  # those heard last, alive or not

    def line(self, extra: tuple[Project, User, float] | None = None) -> Line:
        """The queue; `extra` is a job that is not there yet, of a project, a person and some seconds, whose id is empty.

        Limits for each person, and what single workers cannot do, are not played through: waits are approximate.
        """
        running = [left(job) for job, *_ in self.open if job.state in queue.HELD]
        waiting = [
            _Waiting(
                job.id,
                job.project_id,
                job.user_id,
                (p or NEVER, u or NEVER),
                job.started_at is not None,
                job.created_at,
                left(job),
            )
            for job, p, u in self.open
            if job.state == JobState.QUEUED
        ]
        if extra:
            project, user, seconds = extra
            served = (project.served_at or NEVER, user.served_at or NEVER)
            waiting.append(_Waiting("", project.id, user.id, served, False, self.at, seconds))
        alive = [worker.offers for worker in self.workers if worker.heartbeat_at > self.at - queue.LEASE]
        return Line(dict(_places(waiting, running, len(alive))), len(running), alive)


def snapshot(session: Session, project_id: str | None = None, at: datetime | None = None) -> Snapshot:
    """The queue; with a project also what is committed for it, and the jobs finished last, by which it is estimated."""
    waits = select(Job.id).where(Job.state.in_(queue.OPEN)).order_by(Job.state == JobState.QUEUED, Job.created_at, Job.id)
    wanted = Job.id.in_(waits.limit(MOST))
    committed: ScalarSelect[Any] | Null = null()
    if project_id:
        latest = select(Job.id).where(Job.state == JobState.DONE).order_by(Job.ended_at.desc()).limit(FINISHED)
        wanted = or_(wanted, Job.id.in_(latest))
        seconds = select(func.sum(Job.estimated_seconds))
        committed = seconds.where(Job.project_id == project_id, Job.state.in_(queue.OPEN)).scalar_subquery()
    query = select(Job, Project.served_at, User.served_at, committed).join(Project, Project.id == Job.project_id)
    query = query.join(User, User.id == Job.user_id).where(wanted).options(load_only(*COLUMNS))
    rows = sorted(session.execute(query), key=lambda row: (row[0].state == JobState.QUEUED, row[0].created_at, row[0].id))
    waiting = [(job, p, u) for job, p, u, _ in rows if job.state in queue.OPEN]
    done = [row[0] for row in rows if row[0].state == JobState.DONE]
    return Snapshot(at or now(), waiting, done, float(rows[0][3] or 0) if rows else 0.0, workers(session))


def workers(session: Session) -> list[Worker]:
    """The workers that were heard last, alive or not."""
    return list(session.scalars(select(Worker).order_by(Worker.heartbeat_at.desc()).limit(WORKERS)))


def line(session: Session, at: datetime | None = None) -> Line:
    """The queue at a moment."""
    return snapshot(session, at=at).line()


def _places(waiting: list[_Waiting], running: list[float], workers: int) -> Iterator[tuple[str, Place]]:
    """Each waiting job's place, and the time at which the first free worker comes to it."""
    free = sorted([*running, *[0.0] * max(0, workers - len(running))])[-workers:] if workers else []
    heapq.heapify(free)
    for number, job in enumerate(_turns(waiting), 1):
        start = heapq.heappop(free) if free else None
        if start is not None:
            heapq.heappush(free, start + job.seconds)
        yield job.id, Place(number, start)


def _turns(waiting: list[_Waiting]) -> Iterator[_Waiting]:
    """In the order of `queue.take`: what was begun, then project and person longest unserved, each in turn."""
    yield from (job for job in waiting if job.begun)
    lines: dict[tuple[str, str], deque[_Waiting]] = {}  # of each person in each project, the oldest first
    served: dict[str, Any] = {}
    for job in waiting:
        if not job.begun:
            lines.setdefault((job.project_id, job.user_id), deque()).append(job)
            served |= {job.project_id: (0, job.served[0]), job.user_id: (0, job.served[1])}
    for turn in range(1, len(waiting) + 1):
        if not lines:
            return
        project, person = min(lines, key=lambda key: (served[key[0]], served[key[1]], lines[key][0].created, lines[key][0].id))
        yield lines[project, person].popleft()
        served |= {project: (turn, NEVER), person: (turn, NEVER)}
        if not lines[project, person]:
            del lines[project, person]


def share_done(job: Job) -> float:
    """How much of a job is made, 0 to 1; scoring counts as nothing."""
    if job.state == JobState.DONE:
        return 1.0
    return min(1.0, (job.candidate + job.progress / max(1, job.steps)) / max(1, job.candidates))


def left(job: Job) -> float:
    """Seconds that a job has still to run, waiting apart: by its own pace once a tenth is made or the estimate is used up, else
    by the estimate.
    """
    done, expected = share_done(job), job.estimated_seconds - job.seconds
    if done and job.seconds and (done >= 0.1 or expected <= 0):
        return job.seconds * (1 - done) / done
    return expected if expected > 0 else job.estimated_seconds


def blocked(line: Line, job: Job) -> str:
    """Why no worker takes a waiting job: "none" lives, or what the nearest of those that live lacks; empty where one can."""
    reasons = [queue.lacking(job.requires, offers) for offers in line.workers]
    if not reasons:
        return "none"
    order = ("", "threads", "processor", "weights", "model")
    return min(reasons, key=order.index)
