"""The making of one candidate: from its last saved step on, with previews, to a video whose file and row exist, or neither.

The state after a step is a blob of safetensors that also says all that made it: code, weights, request, processor.
Where one of them has changed, the candidate begins anew and its readers are notified. Nothing is written under a lost lease.
"""

import io
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from phantom_s2v.files.reuse import Origin, as_json, code_version, differences, spelled
from phantom_s2v.files.untrusted import parse_json, typed
from phantom_s2v.media import images
from phantom_s2v.models.autoencoder import to_video
from phantom_s2v.pipeline.generate import Output, State, generate
from phantom_s2v.pipeline.request import Reference, Request
from phantom_s2v.studio import fingerprints, queue
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.queue import Ticket
from phantom_s2v.studio.schema import Job, Video
from phantom_s2v.studio.storage import Storage

SAVING = 1 / 20  # of the running time at most
PREVIEWS = 1 / 10
FIRST_PREVIEW = 0.2  # of the steps: before it there is little to see
TENSORS, MP4, PNG = "application/octet-stream", "video/mp4", "image/png"


def request_of(job: Job, storage: Storage) -> Request:
    """The request of a job's present candidate, its files where they lie."""
    request = typed(Request, job.request, "the request")

    def place(sha256: str | None) -> str | None:
        return str(storage.path(sha256)) if sha256 else None

    return replace(
        request,
        references=tuple(Reference(str(storage.path(r.path)), r.subject) for r in request.references),
        background=place(request.background),
        first_frame=place(request.first_frame),
        seed=request.seed + job.candidate,
    )


def origin_of(job: Job) -> Origin:
    """All that makes the state of a job's present candidate."""
    made_by = {name: job.requires[name] for name in ("model", "weights", "platform", "threads")}
    return as_json({"request": job.request, "candidate": job.candidate, **made_by, "code": code_version("pipeline.generate")})


@dataclass
class Pace:
    """When something that takes time is due again, so that it takes at most a share of all time."""

    share: float
    cost: float = 0.0  # seconds that it took last
    last: float = field(default_factory=lambda: time.monotonic())

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last one."""
        return time.monotonic() - self.last >= self.cost / self.share

    @contextmanager
    def counted(self) -> Any:
        """Around one of them."""
        begun = time.monotonic()
        yield
        self.last = time.monotonic()
        self.cost = self.last - begun


class StoppingError(Exception):
    """The worker is asked to end; its state is saved."""


@dataclass
class Making:
    """One candidate of a job being made. `stopping` says that the worker has to end; `report` gets the steps done."""

    studio: Studio
    job: Job
    ticket: Ticket
    pipe: Any
    stopping: Callable[[], bool] = lambda: False
    report: Callable[[int], None] = lambda done: None
    saving: Pace = field(default_factory=lambda: Pace(SAVING))
    previews: Pace = field(default_factory=lambda: Pace(PREVIEWS))

    def run(self) -> str:
        """Make the video and keep it; its id. Raises LeaseLostError and CancelledError within a step."""
        request = request_of(self.job, self.studio.storage)
        state = self._saved()
        output = generate(request, self.pipe, self._on_step, state, self._on_state)
        return self._keep(request, output)

    def _saved(self) -> State | None:
        """The state to go on from; None begins anew, with a note where there was one."""
        if self.job.saved_state is None:
            return None
        path, origin = self.studio.storage.path(self.job.saved_state), origin_of(self.job)
        try:
            with safe_open(path, "pt") as file:
                changed = spelled(differences(parse_json((file.metadata() or {})["origin"]), origin))
                state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (OSError, SafetensorError, KeyError, ValueError):
            changed, state = "the saved state is damaged", None
        if not changed:
            return state
        with self.studio.writing() as session:
            job = queue.held(session, self.ticket)
            queue.note(job, "restarted", candidate=job.candidate + 1, step=job.step, why=changed)
            self._replace(session, queue.save_step(session, self.ticket, 0, None))
        return None

    def _on_step(self, done: int, steps: int, clean: Any) -> None:
        with self.studio.reading() as session:
            queue.check(session, self.ticket)
        self.report(done)
        if FIRST_PREVIEW * steps <= done < steps and self.previews.due:
            with self.previews.counted():
                frames = to_video(self.pipe.decode(clean)[0])
                content = png(images.contact_sheet([], frames))
                with self.studio.storage.staged(content) as staged, self.studio.writing() as session:
                    queue.held(session, self.ticket)
                    kept = self.studio.storage.keep(session, staged, PNG)
                    self._replace(session, queue.save_preview(session, self.ticket, kept))

    def _on_state(self, state: State) -> None:
        stopping = self.stopping()
        if stopping or self.saving.due:
            with self.saving.counted():
                self._save(state)
        if stopping:
            raise StoppingError

    def _save(self, state: State) -> None:
        content = save(state, {"origin": _text(origin_of(self.job)), "job": self.job.id})
        with self.studio.storage.staged(content) as staged, self.studio.writing() as session:
            queue.held(session, self.ticket)
            kept = self.studio.storage.keep(session, staged, TENSORS)
            old = queue.save_step(session, self.ticket, int(state["step"]), kept)
            self._replace(session, old if old != kept else None)

    def _keep(self, request: Request, output: Output) -> str:
        """Commit file and row of the video together; the state that it grew from goes."""
        storage, job = self.studio.storage, self.job
        content = images.encode_video(output.video, request.fps)
        poster = png(output.video[len(output.video) // 2])
        frames, height, width = output.video.shape[:3]
        looks = fingerprints.measure((number / request.fps, image) for number, image in enumerate(output.video))
        with storage.staged(content) as made, storage.staged(poster) as still, self.studio.writing() as session:
            queue.held(session, self.ticket)
            video = Video(
                project_id=job.project_id, job_id=job.id, user_id=job.user_id, candidate=job.candidate, seed=request.seed,
                blob=storage.keep(session, made, MP4), poster=storage.keep(session, still, PNG), fps=request.fps,
                num_frames=frames, width=width, height=height, details=_details(job, request, output),
            )  # fmt: skip
            self._replace(session, queue.made(session, self.ticket, video))
            fingerprints.keep(session, video.id, looks)
            return video.id

    def _replace(self, session: Any, old: str | None) -> None:
        self.studio.storage.forget(session, [old] if old else [])


def _details(job: Job, request: Request, output: Output) -> dict[str, Any]:
    """The metadata of a video; files are named by their hashes, wherever they lie."""
    named = {**job.request, "seed": request.seed}
    files = sorted(set(output.metadata["files"].values()))
    return as_json({**output.metadata, "request": named, "files": files, "origin": origin_of(job), "notices": output.notices})


def _text(origin: Origin) -> str:
    return json.dumps(origin, sort_keys=True)


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG."""
    target = io.BytesIO()
    Image.fromarray(image).save(target, "PNG")
    return target.getvalue()
