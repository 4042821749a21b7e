"""Pages of jobs: the queue, a job's progress, its results, and the gate of each video."""

import io
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from phantom_s2v.media.videos import Video as VideoFile
from phantom_s2v.studio import access, drafts, gate, queue, waiting
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.database import paged
from phantom_s2v.studio.problems import N_, Forbidden, NotFound, Problem
from phantom_s2v.studio.schema import Job, JobState, Role, User, Video, now
from phantom_s2v.studio.web.view import View, ViewOf

routes = APIRouter(include_in_schema=False)
NOTHING: dict[str, Any] = {"faults": {}, "notes": [], "verdicts": []}  # of a video that is not measured, or not yet
KEPT = "private, max-age=31536000, immutable"  # what an address with a hash or an id of a video gives never changes


@dataclass(frozen=True)
class Progress:
    """What a page says of a job at a moment."""

    job: Job
    place: waiting.Place | None
    blocked: str  # why no worker takes it
    left: float  # seconds that it has still to run
    share: float
    ended: bool
    lost: bool  # its worker is not heard any more


def progress_of(session: Session, job: Job) -> Progress:
    """Place and wait of a job that waits, what is left of one that runs."""
    if job.state not in queue.OPEN:
        return Progress(job, None, "", 0.0, waiting.share_done(job), True, False)
    line = waiting.line(session)
    lost = job.state in queue.HELD and job.lease_until is not None and job.lease_until < now()
    blocked = waiting.blocked(line, job) if lost or job.state == JobState.QUEUED else ""
    return Progress(job, line.places.get(job.id), blocked, waiting.left(job), waiting.share_done(job), False, lost)


def may_end(actor: Actor, job: Job) -> bool:
    """Whether a person may cancel a job, or let it try again: its maker and administrators of the project."""
    return actor.id == job.user_id or actor.has(Role.ADMIN)


@routes.get("/projects/{project_id}/jobs")
def jobs_page(view: ViewOf) -> Response:
    """The project's jobs, and how many of others are before them."""
    with view.reading() as session:
        query = select(Job).where(Job.project_id == view.project_id).options(joinedload(Job.user))
        page = paged(session, query, [Job.created_at, Job.id], view.query("after"))
        line = waiting.line(session)
        rows = [(job, line.places.get(job.id), waiting.left(job), waiting.share_done(job)) for job in page.items]
        return view.page("jobs.html", page=page, rows=rows, line=line, open=queue.OPEN)


@routes.get("/projects/{project_id}/jobs/{job_id}")
def job_page(view: ViewOf) -> Response:
    """A job: its progress, and its videos as they come."""
    with view.reading() as session:
        return view.page("job.html", **_shown(view, session))


def _shown(view: View, session: Session) -> dict[str, Any]:
    job = access.find(session, Job, view.param("job_id"), view.project_id)
    videos = list(session.scalars(select(Video).where(Video.job_id == job.id).order_by(Video.candidate)))
    return {
        "job": job, "videos": videos, "verdicts": {video.id: gate.verdict(video) for video in videos},
        "progress": progress_of(session, job), "may_end": may_end(view.actor, job),
        "similarity": {v.id: (v.score or {}).get("similarity") for v in videos},
        "resumable": job.state in queue.RESUMABLE,
    }  # fmt: skip


@routes.get("/projects/{project_id}/jobs/{job_id}/progress")
def job_progress(view: ViewOf) -> Response:
    """The part of a job's page that changes; it is asked for until the job has ended."""
    with view.reading() as session:
        return HTMLResponse(view.render("job_progress.html", **_shown(view, session)))


@routes.get("/projects/{project_id}/jobs/{job_id}/preview")
def job_preview(view: ViewOf) -> Response:
    """The latest preview of a job."""
    with view.reading() as session:
        preview = access.find(session, Job, view.param("job_id"), view.project_id).preview
    if preview is None:
        raise NotFound
    return FileResponse(view.studio.storage.path(preview), media_type="image/png", headers={"Cache-Control": "no-store"})


@routes.post("/projects/{project_id}/jobs/{job_id}/cancel")
def cancel(view: ViewOf) -> Response:
    """Cancel a job."""
    with view.writing() as session:
        queue.cancel(session, view.actor.must_be_person(), own_job(view, session))
    return view.go(f"/projects/{view.project_id}/jobs/{view.param('job_id')}", N_("The job is being cancelled."))


@routes.post("/projects/{project_id}/jobs/{job_id}/resume")
def resume(view: ViewOf) -> Response:
    """Let a job that was set aside, or failed, try again."""
    with view.writing() as session:
        drafts.resume(session, view.actor, own_job(view, session))
    return view.go(f"/projects/{view.project_id}/jobs/{view.param('job_id')}", N_("The job is in the queue again."))


def own_job(view: View, session: Session) -> Job:
    """The job of the address, for who may end it. Raises Forbidden."""
    job = access.find(session, Job, view.param("job_id"), view.project_id)
    if not may_end(view.actor, job):
        raise Forbidden("Only its maker and administrators of the project may do this.")
    return job


@routes.get("/projects/{project_id}/videos/{video_id}/gate")
def gate_page(view: ViewOf) -> Response:
    """What was measured of a video, and why it passes or not."""
    with view.reading() as session:
        return view.page("gate.html", **_gate(view, session))


def _gate(view: View, session: Session) -> dict[str, Any]:
    video = access.find(session, Video, view.param("video_id"), view.project_id)
    by = session.get(User, video.override_by) if video.override_by else None
    return {
        "video": video, "verdict": gate.verdict(video), "failures": gate.failures(session, video), "by": by,
        "subjects": gate.subjects(session, video, tuple(map(view.say, gate.IN_CHARTS))), "score": NOTHING | (video.score or {}),
        "words": gate.WORDS,
        "may_override": view.actor.has(Role.REVIEWER) and view.actor.id != video.user_id,
    }  # fmt: skip


@routes.post("/projects/{project_id}/videos/{video_id}/override")
def override(view: ViewOf) -> Response:
    """Let a video pass that fails, with a written reason."""
    try:
        with view.writing() as session:
            video = access.find(session, Video, view.param("video_id"), view.project_id)
            gate.override(session, view.actor, video, view.form["reason"])
    except Problem as problem:
        with view.reading() as session:
            return view.wrong("gate.html", problem, **_gate(view, session))
    return view.go(f"/projects/{view.project_id}/videos/{video.id}/gate", N_("The video may be submitted; your reason is kept."))


def _video(view: View) -> Video:
    with view.reading() as session:
        video = access.find(session, Video, view.param("video_id"), view.project_id)
        session.expunge(video)
        return video


@routes.get("/projects/{project_id}/videos/{video_id}/file")
def video_file(view: ViewOf) -> Response:
    """The video; parts of it where a player asks for them."""
    video = _video(view)
    return FileResponse(view.studio.storage.path(video.blob), media_type="video/mp4", headers={"Cache-Control": KEPT})


@routes.get("/projects/{project_id}/videos/{video_id}/poster")
def video_poster(view: ViewOf) -> Response:
    """A still of the video."""
    video = _video(view)
    return FileResponse(view.studio.storage.path(video.poster), media_type="image/png", headers={"Cache-Control": KEPT})


@routes.get("/projects/{project_id}/videos/{video_id}/frames/{number}")
def video_frame(view: ViewOf) -> Response:
    """A frame by its number, from 0 on."""
    video, number = _video(view), view.param("number")
    if not number.isascii() or not number.isdigit() or int(number) >= video.num_frames:
        raise NotFound
    source = VideoFile(view.studio.storage.path(video.blob))
    frames = source.frames(max(0.0, (int(number) - 0.5) / video.fps))
    target = io.BytesIO()
    Image.fromarray(next(frames)[1]).save(target, "PNG")
    return Response(target.getvalue(), media_type="image/png", headers={"Cache-Control": KEPT})


@routes.get("/projects/{project_id}/videos/{video_id}/references/{number}")
def video_reference(view: ViewOf) -> Response:
    """The reference image of a video's subject, by the subject's number in the score, from 0 on."""
    with view.reading() as session:
        video = access.find(session, Video, view.param("video_id"), view.project_id)
        shown, number = gate.subjects(session, video), view.param("number")
    if not number.isascii() or not number.isdigit() or int(number) >= len(shown) or not shown[int(number)].reference:
        raise NotFound
    path = view.studio.storage.path(shown[int(number)].reference)
    return Response(path.read_bytes(), media_type=_kind(path.read_bytes()[:16]), headers={"Cache-Control": KEPT})


def _kind(head: bytes) -> str:
    """The media type of a reference image by its first bytes: uploads are kept as PNG, JPEG or WebP."""
    if head.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if head[8:12] == b"WEBP" else "image/jpeg"
