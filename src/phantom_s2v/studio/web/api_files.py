"""The API of files: stills, previews and frames, what an export consists of, and the first frame of a draft."""

from contextlib import ExitStack

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from phantom_s2v.studio import drafts
from phantom_s2v.studio.problems import Problem
from phantom_s2v.studio.web import pages_generate, pages_jobs, pages_review, pages_subjects
from phantom_s2v.studio.web.api_project import files
from phantom_s2v.studio.web.view import ViewOf

routes = APIRouter(prefix="/api/v1/projects/{project_id}", default_response_class=FileResponse)


@routes.get("/jobs/{job_id}/preview")
def read_preview(view: ViewOf, project_id: str, job_id: str) -> Response:
    """The latest preview of a running job, PNG."""
    return pages_jobs.job_preview(view)


@routes.get("/videos/{video_id}/poster")
def read_poster(view: ViewOf, project_id: str, video_id: str) -> Response:
    """A still of a video, PNG."""
    return pages_jobs.video_poster(view)


@routes.get("/videos/{video_id}/frames/{number}")
def read_frame(view: ViewOf, project_id: str, video_id: str, number: str) -> Response:
    """A frame of a video by its number, from 0 on, PNG."""
    return pages_jobs.video_frame(view)


@routes.get("/videos/{video_id}/references/{number}")
def read_reference(view: ViewOf, project_id: str, video_id: str, number: str) -> Response:
    """The reference image of a video's subject, by the subject's number in the score, from 0 on."""
    return pages_jobs.video_reference(view)


@routes.get("/videos/{video_id}/exports/{export_id}/{part}")
def read_part(view: ViewOf, project_id: str, video_id: str, export_id: str, part: str) -> Response:
    """The `video`, the `poster` or the `report` of an export."""
    return pages_review.export_file(view)


@routes.get("/subjects/{subject_id}/images/{image_id}/thumbnail")
def read_thumbnail(view: ViewOf, project_id: str, subject_id: str, image_id: str) -> Response:
    """A reference image, small, JPEG."""
    return pages_subjects.thumbnail_file(view)


FIRST = "/drafts/{draft_id}/first-frame"


@routes.get(FIRST)
def read_first_frame(view: ViewOf, project_id: str, draft_id: str) -> Response:
    """The image that the video of a draft begins with."""
    return pages_generate.first_frame(view)


@routes.put(FIRST, status_code=204, openapi_extra=files("image", "the first frame"))
def set_first_frame(view: ViewOf, project_id: str, draft_id: str) -> Response:
    """Let the video of a draft begin with an image: multipart/form-data with one file, `image`."""
    given = view.form.files("image")
    with view.reading() as session:
        drafts.find(session, view.actor, project_id, draft_id)
    if not given:
        raise Problem("Please choose an image.", "image")
    with ExitStack() as stack:
        staged = pages_generate.decoded(view, stack, given[0][1])
        session = stack.enter_context(view.writing())
        drafts.set_first_frame(session, drafts.find(session, view.actor, project_id, draft_id)[0], staged)
    return Response(status_code=204)


@routes.delete(FIRST, status_code=204)
def remove_first_frame(view: ViewOf, project_id: str, draft_id: str) -> Response:
    """Let the video of a draft begin with no image any more."""
    with view.writing() as session:
        drafts.set_first_frame(session, drafts.find(session, view.actor, project_id, draft_id)[0], None)
    return Response(status_code=204)
