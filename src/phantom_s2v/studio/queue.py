"""The queue of jobs: rows of the table `jobs`, which workers take under a lease.

A worker renews its lease with every heartbeat. A lease that has run out puts its job back into the queue, before all others, and
counts a death. Taking raises the job's `lease`, and who writes with a lower number is refused, so that a worker that was only
slow changes nothing. Every function works in the transaction of its caller; those that write need one that holds the database's
lock for writing (`database.writing`), or rows locked by SELECT ... FOR UPDATE.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from phantom_s2v.errors import PhantomError
from phantom_s2v.files.reuse import origin_hash
from phantom_s2v.studio import audit, webhooks
from phantom_s2v.studio.context import studio_of
from phantom_s2v.studio.problems import Conflict, Problem
from phantom_s2v.studio.schema import Job, JobFile, JobState, JobSubject, Project, User, Video, Worker, now

LEASE = timedelta(seconds=8)  # without a heartbeat, until another worker may take the job: within 10 s of a death (worker.POLL)
ABSENT = timedelta(minutes=1)  # after the lease, until the web process counts a worker as dead that no other has replaced
BEAT = 2.0  # seconds between heartbeats
DEATHS = 3  # of workers without a newly saved step, until a job is set aside
RUNNING_EACH = 2  # jobs of one person that run at once
QUEUED_EACH = 50  # jobs of one person that wait
FORGOTTEN = timedelta(days=1)  # since the last heartbeat, until a dead worker's row goes
HELD = (JobState.RUNNING, JobState.CANCELLING)
OPEN = (JobState.QUEUED, *HELD)
RESUMABLE = (JobState.SET_ASIDE, JobState.FAILED)


class LeaseLostError(PhantomError):
    """Another worker has the job, or it has ended: who gets this writes nothing more for it."""


class CancelledError(PhantomError):
    """Somebody asked for the end of the job."""


@dataclass(frozen=True)
class Ticket:
    """The right to write for a job, as long as its lease has this number."""

    job_id: str
    lease: int


def platform_key(model: str, weights: str, platform: dict[str, str]) -> str:
    """What decides the pixels beside request and threads, in one word: the model's weights and the processor's kernels."""
    return origin_hash({"model": model, "weights": weights, "platform": platform})


def requirement(offers: dict[str, Any], model: str) -> dict[str, Any]:
    """What a job with `model` fixes, by what a worker offers that has it: weights, processor and threads."""
    offered = offers["models"][model]
    return {
        "model": model,
        "weights": offered["weights"],
        "platform": offers["platform"],
        "threads": offers["threads"],
        "key": offered["key"],
    }


def enqueue(session: Session, job: Job) -> Job:
    """Put a job into the queue, in the transaction that its rows are made in. Raises Problem for one too many of a person."""
    waiting = session.scalar(select(func.count()).where(Job.user_id == job.user_id, Job.state == JobState.QUEUED)) or 0
    if waiting >= QUEUED_EACH:
        raise Problem("At most %(most)d of your jobs can wait. Cancel one, or come back when some are done.", most=QUEUED_EACH)
    session.add(job)
    session.flush()
    session.add_all(JobFile(job_id=job.id, blob=blob) for blob in files_of(job))
    audit.append(session, job.user_id, "job queued", job.id, project=job.project_id, candidates=job.candidates)
    webhooks.emit(session, job.project_id, "job.queued", job=job.id)
    return job


def files_of(job: Job) -> set[str]:
    """Hashes of the files that a job's request names."""
    named = [each["path"] for each in job.request.get("references", ())]
    return {each for each in (*named, job.request.get("background"), job.request.get("first_frame")) if each}


def note(job: Job, code: str, **values: Any) -> None:
    """Tell the readers of a job something, once: the pages have the sentence of the code."""
    entry = {"code": code, **values}
    if entry not in job.notes:
        job.notes = [*job.notes, entry]


def sweep(session: Session, at: datetime | None = None, patience: timedelta = timedelta(0)) -> None:
    """Put the jobs whose lease has run out back into the queue, or end them: cancelled, or set aside after DEATHS deaths.

    `patience` more than the lease is for who has no other worker for them: one on a busy machine may only be slow.
    """
    at = at or now()
    lost = select(Job).where(Job.state.in_(HELD), Job.lease_until < at - patience).with_for_update(skip_locked=True)
    for job in session.scalars(lost):
        job.deaths += 1
        if job.state == JobState.CANCELLING:
            _end(session, job, JobState.CANCELLED, "", at)
        elif job.deaths >= DEATHS:
            where = f"candidate {job.candidate + 1}, after step {job.step} of {job.steps}"
            note(job, "set aside", deaths=job.deaths, candidate=job.candidate + 1, step=job.step, steps=job.steps)
            _end(session, job, JobState.SET_ASIDE, f"its worker died {job.deaths} times at {where}", at)
        else:
            _back(job)
    held = aliased(Job)
    session.execute(
        delete(Worker).where(Worker.heartbeat_at < at - FORGOTTEN, ~select(held.id).where(held.worker_id == Worker.id).exists())
    )


def take(session: Session, worker: Worker, at: datetime | None = None) -> Job | None:
    """The next job that a worker can do, now its own; None where there is none.

    What was begun comes first. Then come the project and, in it, the person longest unserved; of one person the oldest job.
    """
    at = at or now()
    sweep(session, at)
    job = session.scalar(
        select(Job)
        .join(Project, Project.id == Job.project_id)
        .join(User, User.id == Job.user_id)
        .where(Job.state == JobState.QUEUED, _offered(worker), or_(Job.started_at.is_not(None), _below_limit()))
        .order_by(
            Job.started_at.is_(None),
            Project.served_at.asc().nulls_first(),
            User.served_at.asc().nulls_first(),
            Job.created_at,
            Job.id,
        )
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
    )
    if job is None:
        return None
    job.state, job.worker_id, job.lease, job.lease_until = JobState.RUNNING, worker.id, job.lease + 1, at + LEASE
    job.progress = job.step
    if job.started_at is None:
        job.started_at = at
        session.execute(update(Project).where(Project.id == job.project_id).values(served_at=at))
        session.execute(update(User).where(User.id == job.user_id).values(served_at=at))
    session.flush()
    return job


def stirs(session: Session, at: datetime | None = None) -> bool:
    """Whether taking may change anything: a job waits, or a lease has run out. Reads one row."""
    lost = and_(Job.state.in_(HELD), Job.lease_until < (at or now()))
    return session.scalar(select(Job.id).where(or_(Job.state == JobState.QUEUED, lost)).limit(1)) is not None


def _offered(worker: Worker) -> ColumnElement[bool]:
    keys = [each["key"] for each in worker.offers["models"].values()]
    return and_(
        Job.requires["key"].as_string().in_(keys),
        Job.requires["threads"].as_integer() <= worker.offers["max_threads"],
    )


def _below_limit() -> ColumnElement[bool]:
    other = aliased(Job)
    running = select(func.count()).where(other.user_id == Job.user_id, other.state.in_(HELD)).scalar_subquery()
    return running < RUNNING_EACH


def lacking(requires: dict[str, Any], offers: dict[str, Any]) -> str:
    """What a worker that offers this lacks for a job: model, weights, processor or threads; empty where nothing."""
    offered = offers["models"].get(requires["model"])
    if offered is None:
        return "model"
    if offered["weights"] != requires["weights"]:
        return "weights"
    if offers["platform"] != requires["platform"]:
        return "processor"
    return "threads" if offers["max_threads"] < requires["threads"] else ""


def left(session: Session, worker: Worker) -> list[tuple[str, str]]:
    """(job, what is lacking) of the waiting jobs that a worker cannot do, the oldest hundred."""
    rows = session.execute(
        select(Job.id, Job.requires).where(Job.state == JobState.QUEUED, ~_offered(worker)).order_by(Job.created_at).limit(100)
    )
    return [(job_id, lacking(requires, worker.offers)) for job_id, requires in rows]


def held(session: Session, ticket: Ticket) -> Job:
    """The job of a ticket, locked. Raises LeaseLostError where the ticket is no longer good."""
    job = session.scalar(select(Job).where(Job.id == ticket.job_id).with_for_update().execution_options(populate_existing=True))
    if job is None or job.lease != ticket.lease or job.state not in HELD:
        raise LeaseLostError(f"job {ticket.job_id} is no longer this worker's ({job.state if job else 'it was deleted'})")
    return job


def check(session: Session, ticket: Ticket) -> None:
    """Raise CancelledError or LeaseLostError where a worker has to stop; reads one row and writes nothing."""
    row = session.execute(select(Job.lease, Job.state).where(Job.id == ticket.job_id)).one_or_none()
    if row is None or row.lease != ticket.lease or row.state not in HELD:
        raise LeaseLostError(f"job {ticket.job_id} is no longer this worker's ({row.state if row else 'it was deleted'})")
    if row.state == JobState.CANCELLING:
        raise CancelledError(f"job {ticket.job_id} was cancelled")


def beat(session: Session, worker_id: str, at: datetime | None = None) -> None:
    """Say that a worker lives."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(heartbeat_at=at or now()))


def renew(session: Session, ticket: Ticket, progress: int | None = None, at: datetime | None = None) -> None:
    """Renew a lease, count the running time, and tell how many steps of the candidate are done. Raises LeaseLostError."""
    job, at = held(session, ticket), at or now()
    _count(job, at)
    job.lease_until = at + LEASE
    if progress is not None:
        job.progress = progress


def save_step(session: Session, ticket: Ticket, step: int, state: str | None) -> str | None:
    """Keep the state after `step` steps of the candidate, a blob, or none of a new start; returns the blob that it replaces."""
    job = held(session, ticket)
    old, job.saved_state, job.step, job.progress = job.saved_state, state, step, step
    if state:
        job.deaths = 0
    return old


def save_preview(session: Session, ticket: Ticket, preview: str | None) -> str | None:
    """Show a preview, a blob; returns the one that it replaces."""
    job = held(session, ticket)
    old, job.preview = job.preview, preview
    return old


def made(session: Session, ticket: Ticket, video: Video) -> str | None:
    """Keep the video of the job's present candidate. The state that it grew from is no longer needed, and returned.

    A job and a candidate have one video: a second one is refused by the lease, and by the table.
    """
    job = held(session, ticket)
    session.add(video)
    old, job.saved_state, job.step, job.deaths, job.progress = job.saved_state, None, job.steps, 0, job.steps
    session.flush()
    audit.append(
        session, None, "video made", video.id, job=job.id, candidate=video.candidate, file=audit.of_file(session, video.blob)
    )
    return old


def advance(session: Session, ticket: Ticket, at: datetime | None = None) -> bool:
    """Go on to the next candidate; True where that was the last one, which ends the job. Every candidate has its video then."""
    job, at = held(session, ticket), at or now()
    job.candidate, job.step, job.progress = job.candidate + 1, 0, 0
    if job.candidate < job.candidates:
        return False
    count = session.scalar(select(func.count()).where(Video.job_id == job.id)) or 0
    if count != job.candidates:
        raise ValueError(f"job {job.id} has {count} videos for {job.candidates} candidates")
    _end(session, job, JobState.DONE, "", at)
    return True


def end(session: Session, ticket: Ticket, state: JobState, reason: str = "", at: datetime | None = None) -> Job:
    """End a job as its worker: failed with a reason, or cancelled."""
    job = held(session, ticket)
    _end(session, job, state, reason, at or now())
    return job


def give_back(session: Session, ticket: Ticket, at: datetime | None = None) -> None:
    """Put a job back into the queue that a worker cannot go on with and another can, or this one later; no death is counted."""
    job = held(session, ticket)
    _count(job, at or now())
    _back(job)


def cancel(session: Session, actor: str, job: Job, at: datetime | None = None) -> None:
    """Cancel a job: at once where none runs it, else within its worker's step. Raises Conflict where it has ended."""
    at = at or now()
    audit.append(session, actor, "job cancelled", job.id)
    if job.state == JobState.QUEUED or (job.state in HELD and job.lease_until is not None and job.lease_until < at):
        _end(session, job, JobState.CANCELLED, "", at)
    elif job.state == JobState.RUNNING:
        job.state = JobState.CANCELLING
    elif job.state != JobState.CANCELLING:
        raise Conflict("This job has ended already.")


def resume(session: Session, actor: str, job: Job) -> None:
    """Let a job that failed or was set aside try again, from its last saved step. Raises Conflict for any other."""
    if job.state not in RESUMABLE:
        raise Conflict("Only a job that failed or was set aside can be tried again.")
    audit.append(session, actor, "job resumed", job.id)
    job.deaths, job.reason, job.ended_at = 0, "", None
    _back(job)


def stop(session: Session, right_ids: Iterable[str], reason: str, at: datetime | None = None) -> list[Job]:
    """Stop all jobs that run or wait under rights that are gone, at once: their workers can write nothing more."""
    at = at or now()
    under = select(JobSubject.job_id).where(JobSubject.right_id.in_(list(right_ids)))
    jobs = list(session.scalars(select(Job).where(Job.state.in_(OPEN), Job.id.in_(under)).with_for_update()))
    for job in jobs:
        _end(session, job, JobState.STOPPED, reason, at)
    return jobs


def cost_of(seconds: float, price_per_hour: int) -> int:
    """What running takes, in the currency's smallest unit, rounded up."""
    return math.ceil(round(seconds * price_per_hour / 3600, 6))


def _count(job: Job, at: datetime) -> None:
    """Add the time since the last heartbeat, when the lease was renewed, to what the job has run."""
    if job.lease_until is not None:
        job.seconds += max(0.0, (at - (job.lease_until - LEASE)).total_seconds())


def _back(job: Job) -> None:
    job.state, job.worker_id, job.lease_until, job.progress = JobState.QUEUED, None, None, job.step


def _end(session: Session, job: Job, state: JobState, reason: str, at: datetime) -> None:
    """A final state. What was run is paid for; a lost lease is counted up to its last heartbeat alone."""
    if job.state in HELD and job.lease_until is not None and job.lease_until >= at:
        _count(job, at)
    project = session.get_one(Project, job.project_id)
    cost = cost_of(job.seconds, project.price_per_hour)
    project.spent, job.cost = project.spent + cost - job.cost, cost
    job.state, job.reason, job.ended_at, job.worker_id, job.lease_until = state, reason, at, None, None
    job.lease += 1  # who still works on it writes nothing more
    if state not in RESUMABLE:
        old, job.saved_state, job.preview = [job.saved_state, job.preview], None, None
        studio_of(session).storage.forget(session, [each for each in old if each])
    session.flush()
    audit.append(session, None, "job ended", job.id, state=str(state), cost=cost, seconds=round(job.seconds, 3))
    name = "finished" if state == JobState.DONE else state.value.replace(" ", ".")
    webhooks.emit(session, job.project_id, f"job.{name}", job=job.id, seconds=round(job.seconds, 3), cost=cost)
