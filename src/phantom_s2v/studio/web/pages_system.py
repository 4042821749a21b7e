"""Health, readiness, metrics and the files of the pages."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest
from sqlalchemy import func, select

from phantom_s2v.errors import PhantomError
from phantom_s2v.studio import audit, database, webhooks
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.problems import NotFound
from phantom_s2v.studio.schema import Delivery, Job, JobState, Video
from phantom_s2v.studio.web.static import static_files
from phantom_s2v.studio.web.view import ViewOf

routes = APIRouter(include_in_schema=False)


@routes.get("/health")
def health() -> dict[str, str]:
    """That the process answers."""
    return {"status": "ok"}


@routes.get("/ready")
def ready(view: ViewOf) -> JSONResponse:
    """That the database, the audit log's head and the disk are as they should be."""
    reasons = _not_ready(view.studio)
    return JSONResponse({"status": "ready" if not reasons else "not ready", "reasons": reasons}, 503 if reasons else 200)


def _not_ready(studio: Studio) -> list[str]:
    reasons = []
    try:
        with studio.reading() as session:
            if not database.is_current(session.connection()):
                reasons.append("the tables are of another version")
            elif audit.last(session) not in studio.head.read():
                reasons.append(audit.ALTERED)
        with studio.storage.staged(b"ready"):
            pass
    except PhantomError as error:
        reasons.append(str(error))
    except Exception as error:
        reasons.append(f"the database does not answer ({type(error).__name__})")
    return reasons


@routes.get("/metrics")
def metrics(view: ViewOf) -> Response:
    """Metrics for Prometheus: those of this process, and jobs and videos as the database has them."""
    text = generate_latest(view.request.app.state.registry).decode()
    with view.reading() as session:
        states = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
        seconds, videos = session.execute(
            select(func.sum(Job.seconds), func.sum(Job.candidates)).where(Job.state == JobState.DONE)
        ).one()
        made = session.scalar(select(func.count()).select_from(Video))
        given_up = session.scalar(select(func.count()).where(Delivery.next_at.is_(None), Delivery.outcome != webhooks.DELIVERED))
    ended = (JobState.FAILED, JobState.STOPPED, JobState.SET_ASIDE)
    failures = {**{state.value: states.get(state, 0) for state in ended}, "webhook given up": given_up or 0}
    lines = ["# TYPE studio_jobs gauge", *(f'studio_jobs{{state="{state.value}"}} {states.get(state, 0)}' for state in JobState)]
    lines += ["# TYPE studio_queue_length gauge", f"studio_queue_length {states.get(JobState.QUEUED, 0)}"]
    lines += [
        "# TYPE studio_video_seconds summary",
        f"studio_video_seconds_sum {seconds or 0}",
        f"studio_video_seconds_count {videos or 0}",
    ]
    lines += ["# TYPE studio_videos gauge", f"studio_videos {made}"]
    lines += ["# TYPE studio_failures gauge", *(f'studio_failures{{kind="{kind}"}} {count}' for kind, count in failures.items())]
    return Response(text + "\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


@routes.get("/static/{name:path}")
def static(view: ViewOf) -> Response:
    """A file of the pages. Its address has its hash, so it is kept for a year."""
    found = static_files().get(view.param("name"))
    if found is None:
        raise NotFound
    content, kind, _ = found
    return Response(content, media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"})
