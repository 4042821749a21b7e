"""The API of drafts, jobs and the gate: what the pages of generating do."""

from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field, field_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.studio import access, drafts, gate, i18n, queue
from phantom_s2v.studio.database import paged
from phantom_s2v.studio.schema import Job, Video
from phantom_s2v.studio.web.api import Given, PageOut, Row
from phantom_s2v.studio.web.pages_generate import looked_at, proposed
from phantom_s2v.studio.web.pages_jobs import own_job, progress_of
from phantom_s2v.studio.web.view import View, ViewOf

routes = APIRouter(prefix="/api/v1/projects/{project_id}")


Option = Literal["size", "num_frames", "seed", "num_inference_steps", "guidance_scale", "image_guidance_scale", "negative_prompt"]


class DraftIn(Given):
    """What a draft says; options are texts, as they are typed."""

    prompt: str = Field("", max_length=drafts.LONGEST)
    options: dict[Option, str] = Field(default_factory=dict)
    subjects: list[str] = Field(default_factory=list, max_length=16, description="ids, in the order of their places")
    purpose: str = ""
    territories: list[str] = Field(default_factory=list, max_length=100)
    candidates: int = Field(1, ge=1, le=drafts.MAX_CANDIDATES)


class DraftOut(DraftIn, Row):
    """A draft."""

    id: str
    updated_at: datetime

    @field_validator("options", mode="before")
    @classmethod
    def _typed(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The options without what is kept beside them: the jobs that the draft was queued as."""
        return {name: value for name, value in options.items() if name in drafts.OPTIONS}


class ProblemOut(BaseModel):
    """Why a draft cannot run, and the field that it is about."""

    field: str
    message: str


class CostOut(Row):
    """Of all candidates together: seconds, money in the smallest unit of the currency, bytes, and what the budget has left."""

    seconds: float
    money: int
    memory: float
    left: int | None


class LookOut(BaseModel):
    """What is to be said of a draft before it runs."""

    problems: list[ProblemOut]
    notices: list[str]
    cost: CostOut | None
    place: int
    wait: float | None = Field(description="seconds until its turn; null while no worker is running")


class JobOut(Row):
    """A job. Times are UTC; `seconds` is what it has run, waiting apart."""

    id: str
    user_id: str
    state: str
    reason: str
    notes: list[Any]
    candidates: int
    candidate: int
    step: int
    progress: int
    steps: int
    estimated_seconds: float
    seconds: float
    cost: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class ProgressOut(BaseModel):
    """A job, its place in the queue, the seconds until its turn and those that it has still to run, and its videos."""

    job: JobOut
    place: int | None
    wait: float | None
    left: float
    blocked: str = Field(description="why no worker takes it: none, model, weights, processor, threads; empty where one can")
    videos: list[str]


class RunIn(Given):
    """A token of one's own: sent again with the same one, a draft is queued once."""

    once: str = Field("", max_length=64)


class ReasonIn(Given):
    """Why a video that misses KPIs may pass."""

    reason: str


class GateOut(BaseModel):
    """What was measured of a video."""

    verdict: str
    override_reason: str
    failures: list[dict[str, Any]]
    score: dict[str, Any] | None


@routes.get("/drafts")
def list_drafts(view: ViewOf, project_id: str, after: str | None = None) -> PageOut[DraftOut]:
    """One's own drafts, the latest first."""
    with view.reading() as session:
        found = drafts.mine(session, view.actor, project_id, after)
        return PageOut[DraftOut].model_validate(found)


@routes.delete("/drafts/{draft_id}", status_code=204)
def remove_draft(view: ViewOf, project_id: str, draft_id: str) -> Response:
    """Throw a draft away."""
    with view.writing() as session:
        drafts.remove(session, view.actor, drafts.find(session, view.actor, project_id, draft_id)[0])
    return Response(status_code=204)


@routes.post("/drafts")
def create_draft(view: ViewOf, project_id: str, wanted: DraftIn) -> DraftOut:
    """Begin a draft."""
    with view.writing() as session:
        draft = drafts.create(session, view.actor, project_id)
        drafts.change(draft, {**wanted.model_dump(exclude={"options"}), **wanted.options})
        session.flush()
        return DraftOut.model_validate(draft)


@routes.get("/drafts/{draft_id}")
def read_draft(view: ViewOf, project_id: str, draft_id: str) -> DraftOut:
    """A draft of your own."""
    with view.reading() as session:
        return DraftOut.model_validate(drafts.find(session, view.actor, project_id, draft_id)[0])


@routes.put("/drafts/{draft_id}")
def change_draft(view: ViewOf, project_id: str, draft_id: str, wanted: DraftIn) -> DraftOut:
    """Change a draft; whatever it says is kept."""
    with view.writing() as session:
        draft = drafts.find(session, view.actor, project_id, draft_id)[0]
        drafts.change(draft, {**wanted.model_dump(exclude={"options"}), **wanted.options})
        session.flush()
        return DraftOut.model_validate(draft)


@routes.get("/drafts/{draft_id}/look")
def look_at_draft(view: ViewOf, project_id: str, draft_id: str) -> LookOut:
    """Check and estimate a draft."""
    with view.reading() as session:
        _, found, line = looked_at(view, session)
        place = line.places[""]
        return LookOut(
            problems=[ProblemOut(field=each.field, message=i18n.sentence(view.language, each)) for each in found.problems],
            notices=[view.say(template, **values) for template, values in found.notices or ()],
            cost=CostOut.model_validate(found.cost) if found.cost else None,
            place=place.number,
            wait=place.wait,
        )


class ProposalOut(BaseModel):
    """A prompt to use in place of the draft's, and what it leaves open."""

    prompt: str
    notices: list[str]


@routes.post("/drafts/{draft_id}/rephrase")
def rephrase_draft(view: ViewOf, project_id: str, draft_id: str) -> ProposalOut:
    """Have the rephraser propose another prompt; the draft stays as it is."""
    proposal, notices = proposed(view)
    return ProposalOut(prompt=proposal, notices=[view.say(template, **values) for template, values in notices])


class AgainOut(BaseModel):
    """A draft with all that a video was made of; `changed` are subjects whose images have changed since."""

    draft: DraftOut
    changed: list[str]


@routes.post("/videos/{video_id}/again", status_code=201)
def make_again(view: ViewOf, project_id: str, video_id: str) -> AgainOut:
    """Begin a draft with all that a video was made of."""
    with view.writing() as session:
        draft, changed = drafts.again(session, view.actor, access.find(session, Video, video_id, project_id))
        return AgainOut(draft=DraftOut.model_validate(draft), changed=changed)


@routes.post("/drafts/{draft_id}/run")
def run_draft(view: ViewOf, project_id: str, draft_id: str, wanted: RunIn) -> JobOut:
    """Queue a draft."""
    with view.writing() as session:
        draft = drafts.find(session, view.actor, project_id, draft_id)[0]
        return JobOut.model_validate(drafts.run(session, view.actor, draft, wanted.once))


@routes.get("/jobs")
def list_jobs(view: ViewOf, project_id: str, after: str | None = None) -> PageOut[JobOut]:
    """The project's jobs, newest first."""
    with view.reading() as session:
        page = paged(session, select(Job).where(Job.project_id == project_id), [Job.created_at, Job.id], after)
        return PageOut[JobOut].model_validate(page)


@routes.get("/jobs/{job_id}")
def read_job(view: ViewOf, project_id: str, job_id: str) -> ProgressOut:
    """A job and how it gets on."""
    with view.reading() as session:
        return _progress(session, access.find(session, Job, job_id, project_id))


@routes.post("/jobs/{job_id}/cancel")
def cancel_job(view: ViewOf, project_id: str, job_id: str) -> JobOut:
    """Cancel a job: at once where it waits, within a step where it runs."""
    with view.writing() as session:
        job = own_job(view, session)
        queue.cancel(session, view.actor.must_be_person(), job)
        return JobOut.model_validate(job)


@routes.post("/jobs/{job_id}/resume")
def resume_job(view: ViewOf, project_id: str, job_id: str) -> JobOut:
    """Let a job that failed or was set aside try again, from its last saved step."""
    with view.writing() as session:
        job = own_job(view, session)
        drafts.resume(session, view.actor, job)
        return JobOut.model_validate(job)


@routes.get("/videos/{video_id}/gate")
def read_gate(view: ViewOf, project_id: str, video_id: str) -> GateOut:
    """What was measured of a video, and which KPIs it misses."""
    with view.reading() as session:
        return _gate(view, session)


@routes.post("/videos/{video_id}/override")
def override_gate(view: ViewOf, project_id: str, video_id: str, wanted: ReasonIn) -> GateOut:
    """Let a video pass that misses KPIs, with a written reason."""
    with view.writing() as session:
        gate.override(session, view.actor, access.find(session, Video, video_id, project_id), wanted.reason)
        return _gate(view, session)


def _gate(view: View, session: Session) -> GateOut:
    video = access.find(session, Video, view.param("video_id"), view.project_id)
    failures = [vars(each) for each in gate.failures(session, video)]
    return GateOut(verdict=gate.verdict(video), override_reason=video.override_reason, failures=failures, score=video.score)


def _progress(session: Session, job: Job) -> ProgressOut:
    found = progress_of(session, job)
    videos = session.scalars(select(Video.id).where(Video.job_id == job.id).order_by(Video.candidate))
    return ProgressOut(
        job=JobOut.model_validate(job),
        place=found.place.number if found.place else None,
        wait=found.place.wait if found.place else None,
        left=found.left,
        blocked=found.blocked,
        videos=list(videos),
    )
