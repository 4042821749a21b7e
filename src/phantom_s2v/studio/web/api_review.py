"""The API of what becomes of a video: review, sign-off, exports, verification, webhooks, forgetting and the audit log."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field
from sqlalchemy import select

from phantom_s2v.studio import erasure, exports, reviews, verify, webhooks
from phantom_s2v.studio.database import paged
from phantom_s2v.studio.problems import Problem
from phantom_s2v.studio.schema import AuditLine, VideoState
from phantom_s2v.studio.web.api import Given, PageOut, Row
from phantom_s2v.studio.web.api_project import NameIn, Text, files
from phantom_s2v.studio.web.view import ViewOf

routes = APIRouter(prefix="/api/v1")
LIST = "/projects/{project_id}/videos"
ONE = LIST + "/{video_id}"
Share = Annotated[float, Field(ge=0, le=1)]


class VideoOut(Row):
    """A video. `sha256` and the policy's version are what an approval binds."""

    id: str
    job_id: str
    candidate: int
    seed: int
    fps: int
    num_frames: int
    width: int
    height: int
    state: VideoState
    passed: bool | None
    marked: str
    created_at: datetime
    blob: Annotated[str, Field(serialization_alias="sha256")]


@routes.get(LIST)
def list_videos(view: ViewOf, project_id: str, state: VideoState | None = None, after: str | None = None) -> PageOut[VideoOut]:
    """Videos of the project, the newest first."""
    with view.reading() as session:
        page = reviews.listed(session, view.actor, project_id, state, after)
        return PageOut[VideoOut].model_validate(page)


@routes.get(ONE)
def read_video(view: ViewOf, project_id: str, video_id: str) -> VideoOut:
    """A video."""
    with view.reading() as session:
        return VideoOut.model_validate(reviews.video_of(session, view.actor, project_id, video_id))


@routes.get(f"{ONE}/file", response_class=FileResponse)
def read_video_file(view: ViewOf, project_id: str, video_id: str) -> Response:
    """The video as it was made, mp4."""
    with view.reading() as session:
        video = reviews.video_of(session, view.actor, project_id, video_id)
        return FileResponse(view.studio.storage.path(video.blob), media_type="video/mp4")


@routes.post(f"{ONE}/submit", status_code=204)
def submit_video(view: ViewOf, project_id: str, video_id: str) -> Response:
    """Hand in one's own video for review."""
    with view.writing() as session:
        reviews.submit(session, view.actor, reviews.video_of(session, view.actor, project_id, video_id))
    return Response(status_code=204)


class CommentIn(Given):
    """A comment on a frame, on a place in it (shares from the top left), or without a frame on the whole video."""

    text: Text
    frame: Annotated[int, Field(ge=0, le=10**9)] | None = None
    x: Share | None = None
    y: Share | None = None


class CommentOut(Row):
    """A comment."""

    id: str
    user_id: str
    frame: int | None
    x: float | None
    y: float | None
    text: str
    created_at: datetime
    resolved_at: datetime | None


@routes.get(f"{ONE}/comments")
def list_comments(view: ViewOf, project_id: str, video_id: str) -> list[CommentOut]:
    """Comments of a video in the order of its frames."""
    with view.reading() as session:
        video = reviews.video_of(session, view.actor, project_id, video_id)
        return [CommentOut.model_validate(each) for each, _ in reviews.comments(session, view.actor, video)]


@routes.post(f"{ONE}/comments", status_code=201)
def add_comment(view: ViewOf, project_id: str, video_id: str, body: CommentIn) -> CommentOut:
    """Say something of a video."""
    if (body.x is None) != (body.y is None):
        raise Problem("The place must lie within a frame.", "place")
    place = (body.x, body.y) if body.x is not None and body.y is not None else None
    with view.writing() as session:
        video = reviews.video_of(session, view.actor, project_id, video_id)
        return CommentOut.model_validate(reviews.comment(session, view.actor, video, body.text, body.frame, place))


@routes.post(f"{ONE}/comments/{{comment_id}}/resolve")
def resolve_comment(view: ViewOf, project_id: str, video_id: str, comment_id: str) -> CommentOut:
    """Mark a comment as dealt with, or open it again."""
    with view.writing() as session:
        video = reviews.video_of(session, view.actor, project_id, video_id)
        return CommentOut.model_validate(reviews.resolve(session, view.actor, video, comment_id))


class DecisionIn(Given):
    """Approve a video with the checklist, for the file and policy that one has looked at, or send it back with a note."""

    approve: bool
    note: Text = ""
    sha256: Text = ""
    policy_version: Annotated[int, Field(ge=0, le=10**9)] = 0
    checklist: dict[Text, Literal["yes", "no", "does not apply"]] = Field(default_factory=dict)


class SignOffOut(BaseModel):
    """How far the sign-off of a video has come."""

    approved: bool
    signatures: list[str]
    needed: int
    policy_version: int
    checklist: list[str]


def _stand(stand: reviews.SignOff) -> SignOffOut:
    rules, signed = stand.rules, [each.id for each in stand.signatures]
    needed, items = (rules.signatures, list(rules.checklist)) if rules else (1, [])
    return SignOffOut(
        approved=stand.approved, signatures=signed, needed=needed, policy_version=stand.policy_version, checklist=items
    )


@routes.get(f"{ONE}/sign-off")
def read_sign_off(view: ViewOf, project_id: str, video_id: str) -> SignOffOut:
    """How far the sign-off of a video has come."""
    with view.reading() as session:
        return _stand(reviews.opened(session, view.actor, project_id, video_id)[1])


@routes.post(f"{ONE}/sign-off")
def decide(view: ViewOf, project_id: str, video_id: str, body: DecisionIn) -> SignOffOut:
    """Approve a video, or send it back."""
    with view.writing() as session:
        video = reviews.video_of(session, view.actor, project_id, video_id)
        if not body.approve:
            reviews.send_back(session, view.actor, video, body.note)
            return _stand(reviews.sign_off(session, video))
        answers = {item: (answer, "") for item, answer in body.checklist.items()}
        return _stand(reviews.approve(session, view.actor, video, answers, body.sha256, body.policy_version, body.note))


class ExportIn(Given):
    """Whether the video carries the visible label, or why not."""

    label: bool = True
    reason: Text = ""


class ExportOut(Row):
    """An export; `sha256` is that of the file."""

    id: str
    blob: Annotated[str, Field(serialization_alias="sha256")]
    labelled: bool
    label_reason: str
    created_at: datetime


@routes.get(f"{ONE}/exports")
def list_exports(view: ViewOf, project_id: str, video_id: str) -> list[ExportOut]:
    """Exports of a video, the newest first."""
    with view.reading() as session:
        video = reviews.video_of(session, view.actor, project_id, video_id)
        return [ExportOut.model_validate(each) for each in exports.of_video(session, view.actor, video).items]


@routes.post(f"{ONE}/exports", status_code=201)
def make_export(view: ViewOf, project_id: str, video_id: str, body: ExportIn) -> ExportOut:
    """Export an approved video."""
    made = exports.make(view.studio, view.actor, project_id, video_id, body.label, body.reason)
    with view.reading() as session:
        return ExportOut.model_validate(exports.export_of(session, view.actor, project_id, video_id, made))


@routes.get(f"{ONE}/exports/{{export_id}}/file", response_class=FileResponse)
def read_export(view: ViewOf, project_id: str, video_id: str, export_id: str) -> Response:
    """The exported file, mp4."""
    with view.reading() as session:
        found = exports.export_of(session, view.actor, project_id, video_id, export_id)
        return FileResponse(view.studio.storage.path(found.blob), media_type="video/mp4")


class FindingOut(BaseModel):
    """What is known of a file."""

    verdict: str
    sha256: str
    credentials: str
    made_by_ai: bool
    video: str | None
    export: str | None
    similarity: float | None
    mirrored: bool
    approved: bool | None = Field(description="under the policy in force; null where no video of ours was found")
    rights: dict[str, str] = Field(description="id -> how it stands now")
    ended_rights: list[str]
    generator: str
    signer: str
    readable: bool = Field(description="whether it holds a video that can be looked at")


@routes.post("/verify", openapi_extra=files("file", "any file"))
def verify_file(view: ViewOf) -> FindingOut:
    """What is known of a file, which is not kept."""
    given = view.form.files("file")
    if not given:
        raise Problem("Please choose a file that is not empty.", "file")
    found = verify.examine(view.studio, view.actor, given[0][1])
    return FindingOut(
        verdict=found.verdict.value, sha256=found.sha256, credentials=found.credentials.state.value,
        made_by_ai=found.credentials.made_by_ai, video=found.video.id if found.video else None,
        export=found.export.id if found.export else None, similarity=found.similarity,
        ended_rights=[each.id for each in found.ended], rights={each.id: each.state for each in found.rights},
        mirrored=found.mirrored, approved=found.approved, generator=found.credentials.generator,
        signer=found.credentials.signer, readable=found.readable,
    )  # fmt: skip


class WebhookIn(Given):
    """Where to tell of which events."""

    url: Text
    events: list[Text]


class WebhookOut(Row):
    """A webhook; its secret is shown when it is made, and never again."""

    id: str
    url: str
    events: list[str]
    secret: str = ""


@routes.get("/projects/{project_id}/webhooks")
def list_webhooks(view: ViewOf, project_id: str) -> list[WebhookOut]:
    """Webhooks of the project."""
    with view.reading() as session:
        found = webhooks.of_project(session, view.actor, project_id)
        return [WebhookOut(id=each.id, url=each.url, events=each.events) for each in found]


@routes.post("/projects/{project_id}/webhooks", status_code=201)
def add_webhook(view: ViewOf, project_id: str, body: WebhookIn) -> WebhookOut:
    """Add a webhook. Keep its secret: with it you check the signatures."""
    with view.writing() as session:
        return WebhookOut.model_validate(webhooks.add(session, view.actor, project_id, body.url, body.events))


@routes.delete("/projects/{project_id}/webhooks/{webhook_id}", status_code=204)
def remove_webhook(view: ViewOf, project_id: str, webhook_id: str) -> Response:
    """Remove a webhook."""
    with view.writing() as session:
        webhooks.remove(session, view.actor, project_id, webhook_id)
    return Response(status_code=204)


class DeliveryOut(Row):
    """An event for a webhook. `state`: waiting, delivered, failed (it is tried again at `next_at`) or given up."""

    id: str
    body: dict[str, Any]
    state: str
    outcome: str
    attempts: int
    created_at: datetime
    next_at: datetime | None


@routes.get("/projects/{project_id}/webhooks/{webhook_id}/deliveries")
def list_deliveries(view: ViewOf, project_id: str, webhook_id: str, after: str | None = None) -> PageOut[DeliveryOut]:
    """What was sent to a webhook, and what is still to be, the newest first."""
    with view.reading() as session:
        page = webhooks.deliveries(session, view.actor, project_id, webhook_id, after)
        items = [DeliveryOut.model_validate({**vars(each), "state": webhooks.state(each)}) for each in page.items]
        return PageOut[DeliveryOut](items=items, following=page.following)


@routes.post("/projects/{project_id}/subjects/{subject_id}/erase", status_code=204)
def erase_subject(view: ViewOf, project_id: str, subject_id: str, body: NameIn) -> Response:
    """Forget who or what a subject shows, with all videos made of it. Nothing brings it back."""
    with view.writing() as session:
        erasure.erase_subject(session, view.actor, project_id, subject_id, body.name)
    return Response(status_code=204)


class LineOut(Row):
    """A line of the audit log."""

    number: int
    at: datetime
    actor: str | None
    action: str
    object_id: str | None
    details: dict[str, Any]
    sha256: str


@routes.get("/audit")
def read_audit(view: ViewOf, after: str | None = None) -> PageOut[LineOut]:
    """The audit log, the newest line first."""
    with view.reading() as session:
        page = paged(session, select(AuditLine), [AuditLine.number], after, size=100)
        return PageOut[LineOut].model_validate(page)
