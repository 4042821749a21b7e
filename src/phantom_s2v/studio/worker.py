"""The process that makes videos: it says what it offers, takes jobs, keeps their lease alive, and commits what it made.

Threads and instruction set decide the last bits of a video. A worker offers this machine's, sets the threads that a job fixes,
and leaves a job that fixes what it does not have.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from phantom_s2v.errors import OutputError, PhantomError
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import load_preset, model_folder, video_model
from phantom_s2v.pipeline.cost import measure
from phantom_s2v.pipeline.generate import load_for
from phantom_s2v.pipeline.loading import check_models, model_hash
from phantom_s2v.pipeline.metadata import WHERE, versions
from phantom_s2v.pipeline.request import Reference, Request, with_defaults
from phantom_s2v.studio import audit, making, policies, queue, rights
from phantom_s2v.studio.config import BESIDE
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.measuring import Measures
from phantom_s2v.studio.problems import N_
from phantom_s2v.studio.queue import BEAT, CancelledError, LeaseLostError, Ticket
from phantom_s2v.studio.schema import Job, JobState, Video, Worker, now

log = logging.getLogger("phantom_s2v.studio.worker")
COURTEOUS = 10  # niceness of the worker beside a web process
POLL = 0.5  # seconds between looks at the queue
# seconds without a step or a begun measurement after which a worker counts as hung, or a candidate's whole estimate if longer
STILL = 600.0
PAUSES = (2.0, 5.0, 15.0, 60.0)  # seconds after a full disk, each next time
FORBIDDEN = N_("the policy in force no longer allows it, or a right behind it has ended")
PLATFORM = ("machine", "kernels", "gpu")  # of pipeline.metadata.versions: what chooses kernels


@dataclass
class Models:
    """The models that a worker offers; one is loaded at a time."""

    names: list[str]
    placement: Placement
    _loaded: tuple[str, Any] | None = None

    def pipe(self, name: str, request: Request) -> Any:
        """The pipeline of a model, for a request. One whose text encoder has gigabytes reads every prompt before it loads."""
        folder = model_folder(name)
        if self._loaded and self._loaded[0] == name and not (folder / "text_encoder").is_dir():
            return self._loaded[1]
        self._loaded = None  # its memory is needed
        pipe = load_for([request], folder, self.placement)
        self._loaded = (name, pipe)
        return pipe

    def offers(self, threads: int) -> dict[str, Any]:
        """What jobs may fix, and what estimates need. Loads the first model, so that its first job begins at once."""
        now_here, held = versions(), self.placement.resolved()
        platform = {name: now_here[name] for name in PLATFORM}
        platform["placement"] = str(sorted((k, str(v)) for k, v in held.items() if k not in WHERE))
        offered: dict[str, Any] = {}
        for name in self.names:
            folder = model_folder(name)
            check_models(folder)
            preset, weights = load_preset(folder), model_hash(folder)
            usual = with_defaults(preset, prompt="a", references=(Reference("", "a"),))
            offered[name] = {
                "weights": weights,
                "key": queue.platform_key(name, weights, platform),
                "preset": asdict(preset),
                "checks_prompts": video_model(folder).checks_prompts,
                "profile": measure.profile(usual, folder, self.placement).as_json(),
            }
            if self._loaded is None:
                self.pipe(name, with_defaults(preset, prompt="", references=()))
        return {"models": offered, "platform": platform, "threads": threads, "max_threads": max(threads, os.cpu_count() or 1)}


@dataclass
class Heart(threading.Thread):
    """Beats for a worker, and renews the lease of what it is making, while the main thread computes.

    Where that thread hangs, so that nothing moves for the job's patience, the process ends: the lease runs out, which counts as
    a death, and who started the worker starts it again.
    """

    studio: Studio
    worker_id: str
    hung: Callable[[], object] = lambda: os._exit(1)
    orphaned: Callable[[], object] = lambda: None  # what happens when the web process that started this one is gone
    ticket: Ticket | None = None
    progress: int | None = None
    patience: float = STILL
    moved: float = 0.0  # when something last moved
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._parent = os.getppid() if os.environ.get(BESIDE) else None

    __hash__ = threading.Thread.__hash__

    def moves(self, progress: int | None) -> None:
        """A step is done, or something else has begun: loading, measuring, the next candidate."""
        self.progress, self.moved = progress, time.monotonic()

    def run(self) -> None:
        """Beat until ended. A beat that fails, because the disk is full or the job is another's, is left out."""
        while not self.ended.wait(BEAT):
            if self._parent and os.getppid() != self._parent:
                self.orphaned()
            if self.ticket and time.monotonic() - self.moved > self.patience:
                log.critical("job %s: nothing has moved for %.0f s; this worker ends", self.ticket.job_id, self.patience)
                self.hung()
                return
            try:
                with self.studio.writing() as session:
                    queue.beat(session, self.worker_id)
                    if self.ticket:
                        queue.renew(session, self.ticket, self.progress)
                        rights.sweep(session)  # one that ends stops what runs under it, whether or not the web process lives
            except (LeaseLostError, OperationalError, OSError, PhantomError) as error:
                log.warning("no heartbeat: %s", error)


@dataclass
class Service:
    """A running worker. `offers` are those of its models where they are known already."""

    studio: Studio
    models: Models
    threads: int
    offers: dict[str, Any] | None = None
    measures: Measures = field(default_factory=Measures)
    stopping: threading.Event = field(default_factory=threading.Event)
    _reported: set[str] = field(default_factory=set)

    def run(self, jobs: int | None = None) -> None:
        """Make jobs until it is asked to stop, or so many. A signal to end saves the present step and gives the job back."""
        torch.set_num_threads(self.threads)
        self.worker = self._register()
        self.heart = Heart(self.studio, self.worker.id, orphaned=self.stopping.set)
        self.heart.start()
        log.info("worker %s offers %s", self.worker.name, ", ".join(self.models.names))
        done, full = 0, 0
        while not self.stopping.is_set() and (jobs is None or done < jobs):
            try:
                job = self._take()
                if job is None:
                    self.stopping.wait(POLL)
                    continue
                full = 0 if self.serve(job) else full + 1
                done += 1
            except OperationalError as error:  # of taking: the database's disk is full, or it cannot be reached
                log.error("the database refuses: %s", error.orig)
                full += 1
            if full:
                self.stopping.wait(PAUSES[min(full, len(PAUSES)) - 1])
        self.heart.ended.set()
        self.heart.join()

    def _register(self) -> Worker:
        offers = self.offers or self.models.offers(self.threads)
        scoring = self.measures.speed()
        models = {name: {**offered, "scoring": scoring} for name, offered in offers["models"].items()}
        offers = {**offers, "models": models}
        name = f"{socket.gethostname()}:{os.getpid()}"
        worker = Worker(name=name, device=self.models.placement.torch_device().type, offers=offers, heartbeat_at=now())
        with self.studio.writing() as session:
            session.add(worker)
        return worker

    def _take(self) -> Job | None:
        with self.studio.reading() as session:
            if not queue.stirs(session):
                return None
            for job_id, lacking in queue.left(session, self.worker):
                if job_id not in self._reported:
                    self._reported.add(job_id)
                    log.warning("leaving job %s: it has fixed another %s than this worker offers", job_id, lacking)
        with self.studio.writing() as session:
            rights.sweep(session)  # a right may have ended since the last time somebody looked
            job = queue.take(session, self.worker)
            if job is not None and policies.obstacles(session, job):
                queue.end(session, Ticket(job.id, job.lease), JobState.STOPPED, FORBIDDEN)
                return None
            return job

    def serve(self, job: Job) -> bool:
        """Make all that a job lacks, or say why not; False where the disk was full, and the job waits."""
        ticket = Ticket(job.id, job.lease)
        self.heart.moves(None)
        self.heart.patience = max(STILL, job.estimated_seconds / job.candidates)
        self.heart.ticket = ticket
        log.info("job %s: candidate %d of %d from step %d", job.id, job.candidate + 1, job.candidates, job.step)
        try:
            torch.set_num_threads(job.requires["threads"])
            while not self._candidate(job, ticket):
                job = self._reloaded(job)
        except LeaseLostError as error:
            log.warning("%s", error)
        except CancelledError:
            self._end(ticket, JobState.CANCELLED, "")
        except making.StoppingError:
            self._give_back(ticket)
        except (OutputError, OperationalError) as error:
            log.error("job %s waits: %s", job.id, getattr(error, "orig", error))
            self._give_back(ticket, "no room")
            return False
        except PhantomError as error:
            self._end(ticket, JobState.FAILED, str(error))
        except Exception as error:  # a defect of ours: the job says so, and the worker goes on with the others
            log.exception("job %s failed", job.id)
            self._end(ticket, JobState.FAILED, f"{type(error).__name__}: {error}")
        finally:
            self.heart.ticket = None
        return True

    def _candidate(self, job: Job, ticket: Ticket) -> bool:
        """Make and measure the present candidate, whatever of it is lacking; True after the last one."""
        with self.studio.reading() as session:
            queue.check(session, ticket)
            video_id = session.scalar(select(Video.id).where(Video.job_id == job.id, Video.candidate == job.candidate))
        if video_id is None:
            pipe = self.models.pipe(job.requires["model"], making.request_of(job, self.studio.storage))
            video_id = making.Making(self.studio, job, ticket, pipe, self.stopping.is_set, self.heart.moves).run()
        if self.stopping.is_set():
            raise making.StoppingError
        self.heart.moves(self.heart.progress)
        score, passed = self.measures.of(self.studio, video_id)
        with self.studio.writing() as session:
            queue.held(session, ticket)
            video = session.get_one(Video, video_id)
            video.score, video.passed = score, passed
            audit.append(session, None, "video measured", video_id, passed=passed)
            return queue.advance(session, ticket)

    def _reloaded(self, job: Job) -> Job:
        self.heart.moves(None)
        with self.studio.reading() as session:
            fresh = session.get_one(Job, job.id)
            session.expunge(fresh)
            return fresh

    def _end(self, ticket: Ticket, state: JobState, reason: str) -> None:
        self._surely(ticket, lambda session: queue.end(session, ticket, state, reason))

    def _give_back(self, ticket: Ticket, code: str = "") -> None:
        def back(session: Any) -> None:
            if code:
                queue.note(queue.held(session, ticket), code)
            queue.give_back(session, ticket)

        self._surely(ticket, back)

    def _surely(self, ticket: Ticket, change: Any) -> None:
        """Write it as soon as the disk has room, unless the lease is lost by then."""
        for pause in (0.5, 1, 1, 1, 1, 2, 2, 2):
            try:
                with self.studio.writing() as session:
                    return change(session)
            except LeaseLostError:
                return None
            except (OperationalError, OutputError):
                time.sleep(pause)
        log.error("job %s could not be given back; its lease runs out", ticket.job_id)
        return None


def run_worker(studio: Studio, names: list[str], placement: Placement, threads: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends it at once, as a crash would. Beside a web process, pages go first."""
    if os.environ.get(BESIDE):
        os.nice(COURTEOUS)
    service = Service(studio, Models(names, placement), threads or torch.get_num_threads())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stopping.set() if not service.stopping.is_set() else os._exit(1))
    service.run()
