"""Pages of review and sign-off: the list, the player with comments, the checklist, exports, and forgetting."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from sqlalchemy.orm import Session, lazyload

from phantom_s2v.studio import erasure, exports, gate, i18n, projects, reviews
from phantom_s2v.studio.access import find
from phantom_s2v.studio.problems import N_, NotFound, Problem
from phantom_s2v.studio.reviews import ANSWERS, SignOff
from phantom_s2v.studio.schema import Role, Subject, Video, VideoState
from phantom_s2v.studio.web.view import View, ViewOf

routes = APIRouter(include_in_schema=False)
ONE = "/projects/{project_id}/videos/{video_id}"
SAFE = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; sandbox"  # of a report


@routes.get("/projects/{project_id}/reviews")
def reviews_page(view: ViewOf) -> Response:
    """Videos by how far they have come; what waits for a decision first."""
    asked = view.query("state") or VideoState.SUBMITTED.value
    state = next((each for each in VideoState if each.value == asked), None)
    with view.reading() as session:
        page = reviews.listed(session, view.actor, view.project_id, state, view.query("after"))
        names = projects.names(session, {video.user_id for video in page.items})
        return view.page("reviews.html", page=page, names=names, state=state.value if state else "all", verdict=gate.verdict)


def _address(view: View, rest: str) -> str:
    return f"/projects/{view.project_id}/videos/{view.param('video_id')}/{rest}"


@routes.get(f"{ONE}/review")
def review_page(view: ViewOf) -> Response:
    """The player: frame by frame, comments on frames, and another version beside it."""
    with view.reading() as session:
        return view.page("review.html", **_review(view, session))


def _review(view: View, session: Session) -> dict[str, Any]:
    video = reviews.video_of(session, view.actor, view.project_id, view.param("video_id"))
    others = reviews.others(session, view.actor, video)
    beside = next((each for each in others if each.id == view.query("with")), None)
    verdict = gate.verdict(video)
    mine = view.actor.id == video.user_id
    return {
        "video": video, "comments": reviews.comments(session, view.actor, video), "others": others, "beside": beside,
        "verdict": verdict, "may_submit": mine and video.state in (VideoState.MADE, VideoState.SENT_BACK)
        and verdict in ("passed", "overridden") and not video.marked,
        "may_decide": not mine and view.actor.has(Role.REVIEWER, Role.APPROVER) and video.state == VideoState.SUBMITTED,
    }  # fmt: skip


@routes.post(f"{ONE}/submit")
def submit(view: ViewOf) -> Response:
    """Hand in a video for review."""
    with view.writing() as session:
        reviews.submit(session, view.actor, _video(view, session))
    return view.go(_address(view, "review"), N_("The video was submitted. Reviewers and approvers were notified."))


def _video(view: View, session: Session) -> Video:
    return reviews.video_of(session, view.actor, view.project_id, view.param("video_id"))


@routes.post(f"{ONE}/comments")
def comment(view: ViewOf) -> Response:
    """Say something of a frame, of a place in it, or of the whole video."""
    try:
        with view.writing() as session:
            frame = _number(view.form["frame"], "frame") if view.form["where"] != "video" else None
            pinned = view.form["where"] == "place"
            place = (_number(view.form["x"], "place") / 1000, _number(view.form["y"], "place") / 1000) if pinned else None
            reviews.comment(session, view.actor, _video(view, session), view.form["text"], frame, place)
    except Problem as problem:
        with view.reading() as session:
            return view.wrong("review.html", problem, **_review(view, session))
    at = f"?frame={frame}" if frame is not None else ""
    return view.go(_address(view, f"review{at}"), N_("Your comment was added."))


def _number(text: str, field: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Problem("Please enter a whole number from %(low)d to %(high)d.", field, low=0, high=10**9 - 1)
    return int(text)


@routes.post(f"{ONE}/comments/{{comment_id}}/resolve")
def resolve(view: ViewOf) -> Response:
    """Mark a comment as dealt with, or open it again."""
    with view.writing() as session:
        found = reviews.resolve(session, view.actor, _video(view, session), view.param("comment_id"))
        at = f"?frame={found.frame}" if found.frame is not None else ""
    return view.go(_address(view, f"review{at}"), N_("Saved."))


@routes.get(f"{ONE}/sign-off")
def sign_off_page(view: ViewOf) -> Response:
    """The checklist, and who has signed."""
    with view.reading() as session:
        return view.page("sign_off.html", **_sign_off(view, session))


def _sign_off(view: View, session: Session) -> dict[str, Any]:
    video, stand = reviews.opened(session, view.actor, view.project_id, view.param("video_id"))
    return {"video": video, "stand": stand, "answers": ANSWERS, "why_not": _why_not(view, video, stand)}


def _why_not(view: View, video: Video, stand: SignOff) -> str:
    """Why the person cannot decide now; "" where they can."""
    if stand.approved:
        return view.say("This video is approved. It can be exported.")
    if stand.rules is None:
        return view.say("This project has no policy yet. An administrator of the project chooses one.")
    if view.actor.id == video.user_id:
        return view.say("You made this video, so another person has to decide.")
    if not view.actor.has(Role.REVIEWER, Role.APPROVER):
        return view.say("Reviewers and approvers of this project decide.")
    if video.state != VideoState.SUBMITTED and not stand.outdated:
        return view.say("This video has not been submitted.")
    if any(each.user_id == view.actor.id for each in stand.signatures):
        return view.say("You have signed. Another approver has to sign too.")
    return ""


@routes.post(f"{ONE}/sign-off")
def decide(view: ViewOf) -> Response:
    """Approve a video or send it back."""
    back = view.form["decision"] == "send back"
    try:
        with view.writing() as session:
            video, stand = reviews.opened(session, view.actor, view.project_id, view.param("video_id"))
            if back:
                reviews.send_back(session, view.actor, video, view.form["note"])
            else:
                items = stand.rules.checklist if stand.rules else ()
                answers = {item: (view.form[f"check-{item}"], view.form[f"note-{item}"]) for item in items}
                version = _number(view.form["policy"], "policy")
                stand = reviews.approve(session, view.actor, video, answers, view.form["sha256"], version, view.form["note"])
    except Problem as problem:
        with view.reading() as session:
            return view.wrong("sign_off.html", problem, **_sign_off(view, session))
    if back:
        return view.go(_address(view, "review"), N_("The video was sent back; its maker was notified."))
    said = (
        N_("The video is approved and can be exported.")
        if stand.approved
        else N_("You signed. Another approver has to sign too.")
    )
    return view.go(_address(view, "sign-off"), said)


@routes.get(f"{ONE}/export")
def export_page(view: ViewOf) -> Response:
    """Exports of a video, and the form of a new one."""
    with view.reading() as session:
        return view.page("exports.html", **_exports(view, session))


def _exports(view: View, session: Session) -> dict[str, Any]:
    video, stand = reviews.opened(session, view.actor, view.project_id, view.param("video_id"))
    page = exports.of_video(session, view.actor, video, view.query("after"))
    return {"video": video, "stand": stand, "page": page, "may": view.actor.has(*exports.MAY), "unsigned": _unsigned(view)}


def _unsigned(view: View) -> str:
    """Why nothing can be signed; "" where it can."""
    try:
        exports.signature(view.studio)
    except Problem as problem:
        return i18n.sentence(view.language, problem)
    return ""


@routes.post(f"{ONE}/export")
def export(view: ViewOf) -> Response:
    """Make an export."""
    video = view.param("video_id")
    try:
        label = view.form["label"] != "no"
        exports.make(view.studio, view.actor, view.project_id, video, label, view.form["reason"])
    except Problem as problem:
        with view.reading() as session:
            return view.wrong("exports.html", problem, **_exports(view, session))
    return view.go(_address(view, "export"), N_("The export is ready."))


@routes.get(f"{ONE}/exports/{{export_id}}/{{part}}")
def export_file(view: ViewOf) -> Response:
    """The video, the poster or the report of an export."""
    with view.reading() as session:
        found = exports.export_of(session, view.actor, view.project_id, view.param("video_id"), view.param("export_id"))
    parts = {"video": (found.blob, "video/mp4", ".mp4"), "poster": (found.poster, "image/jpeg", ".jpg"),
             "report": (found.report, "text/html", ".html")}  # fmt: skip
    if view.param("part") not in parts:
        raise NotFound
    sha256, kind, suffix = parts[view.param("part")]
    how = "attachment" if view.query("save") else "inline"
    return FileResponse(
        view.studio.storage.path(sha256), media_type=kind, filename=f"{found.id}{suffix}", content_disposition_type=how,
        headers={"Content-Security-Policy": SAFE, "Cache-Control": "private, max-age=3600"},
    )  # fmt: skip


@routes.get("/projects/{project_id}/subjects/{subject_id}/erase")
def erase_page(view: ViewOf) -> Response:
    """What would be erased with a subject, and the form that asks for its name."""
    with view.reading() as session:
        return view.page("erase.html", **_erase(view, session))


def _erase(view: View, session: Session) -> dict[str, Any]:
    alone = (lazyload(Subject.images), lazyload(Subject.rights))
    subject = find(session, Subject, view.param("subject_id"), view.project_id, options=alone)
    if subject.erased_at is not None:
        raise NotFound
    return {"subject": subject, "consequences": erasure.consequences(session, view.actor, view.project_id, subject.id)}


@routes.post("/projects/{project_id}/subjects/{subject_id}/erase")
def erase(view: ViewOf) -> Response:
    """Forget a subject."""
    try:
        with view.writing() as session:
            erasure.erase_subject(session, view.actor, view.project_id, view.param("subject_id"), view.form["name"])
    except Problem as problem:
        with view.reading() as session:
            return view.wrong("erase.html", problem, **_erase(view, session))
    return view.go(f"/projects/{view.project_id}/subjects", N_("The subject and everything made of it was erased."))
