"""The API of subjects, their images and rights, and of the policy in force."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel

from phantom_s2v.files.untrusted import typed
from phantom_s2v.studio import policies, rights, subjects
from phantom_s2v.studio.problems import NotFound, Problem
from phantom_s2v.studio.schema import Right, Role, Subject
from phantom_s2v.studio.web.api import Given, PageOut, Row
from phantom_s2v.studio.web.api_project import files
from phantom_s2v.studio.web.pages_subjects import document_file, keep_image, park_document, staged_document
from phantom_s2v.studio.web.view import View, ViewOf

routes = APIRouter(prefix="/api/v1/projects/{project_id}")
ONE = "/subjects/{subject_id}"
BasedOn = Annotated[int | None, Query(ge=0, le=10**9)]


class _Right(Given):
    """What a rights record says."""

    shown: str
    owner: str
    basis: str
    uses: list[str]
    territories: list[str]
    valid_from: datetime
    valid_until: datetime | None = None


class RightIn(_Right):
    """A rights record. `document` is what uploading its document gave; its name is that under which it is saved later."""

    document: str = ""
    document_name: str = ""


class RightOut(_Right, Row):
    """A rights record and how it stands. `document_name` is empty where it has no document."""

    id: str
    state: str
    document_name: str


class DocumentOut(BaseModel):
    """An uploaded document, which waits for its record for a day."""

    document: str


class ImageOut(Row):
    """A reference image, with warnings of what may be wrong with it."""

    id: str
    width: int
    height: int
    warnings: list[Any]


class SubjectIn(Given):
    """A new subject."""

    name: str
    kind: str


class SubjectOut(SubjectIn):
    """A subject with its images and rights."""

    id: str
    images: list[ImageOut]
    rights: list[RightOut]


class Reason(Given):
    """Why something is done."""

    reason: str


def _right(right: Right) -> RightOut:
    own = {name: getattr(right, name) for name in RightOut.model_fields if name != "state"}
    return RightOut(**own, state=rights.state(right))


def _subject(subject: Subject) -> SubjectOut:
    images = [ImageOut.model_validate(image) for image in subject.images]
    return SubjectOut(
        id=subject.id, name=subject.name, kind=subject.kind, images=images, rights=[_right(right) for right in subject.rights]
    )


def _find(view: View, session: Any) -> Subject:
    return subjects.find(session, view.actor, view.project_id, view.param("subject_id"))


@routes.get("/subjects")
def list_subjects(view: ViewOf, project_id: str, after: str | None = None) -> PageOut[SubjectOut]:
    """Subjects of a project, the newest first."""
    with view.reading() as session:
        found = subjects.listed(session, view.actor, view.project_id, after)
        return PageOut[SubjectOut](items=[_subject(each) for each in found.items], following=found.following)


@routes.post("/subjects", status_code=201)
def create_subject(view: ViewOf, project_id: str, given: SubjectIn) -> SubjectOut:
    """Create a subject."""
    with view.writing() as session:
        made = subjects.create(session, view.actor, view.project_id, given.name, given.kind)
        return _subject(made)


@routes.get(ONE)
def read_subject(view: ViewOf, project_id: str, subject_id: str) -> SubjectOut:
    """A subject."""
    with view.reading() as session:
        return _subject(_find(view, session))


@routes.post(f"{ONE}/images", status_code=201)
def add_image(view: ViewOf, project_id: str, subject_id: str) -> ImageOut:
    """Add an image: multipart/form-data with one file, `image`."""
    with view.reading() as session:
        _find(view, session)
    for _, source in view.form.files("image"):
        return ImageOut.model_validate(keep_image(view, source))
    raise Problem("Please choose an image.", "image")


@routes.get(f"{ONE}/rights")
def list_rights(view: ViewOf, project_id: str, subject_id: str) -> list[RightOut]:
    """Rights records of a subject, the oldest first."""
    with view.reading() as session:
        return [_right(each) for each in _find(view, session).rights]


@routes.post(f"{ONE}/documents", status_code=201, openapi_extra=files("document", "a PDF, PNG, JPEG or Word file"))
def add_document(view: ViewOf, project_id: str, subject_id: str) -> DocumentOut:
    """Upload the document of a rights record that is added next; it is kept byte for byte."""
    with view.reading() as session:
        subject = _find(view, session)
        view.actor.must(subject.project_id, Role.MAKER, *rights.CHECKERS)
    parked = park_document(view)
    if not parked:
        raise Problem("Please choose a file that is not empty.", "document")
    return DocumentOut(document=parked)


@routes.get(f"{ONE}/rights/{{right_id}}/document", response_class=FileResponse)
def read_document(view: ViewOf, project_id: str, subject_id: str, right_id: str) -> Response:
    """The document of a rights record, as it was uploaded."""
    return document_file(view)


@routes.post(f"{ONE}/rights", status_code=201)
def add_right(view: ViewOf, project_id: str, subject_id: str, given: RightIn) -> RightOut:
    """Add a rights record. Another person checks it."""
    for name in ("valid_from", "valid_until"):
        value = getattr(given, name)
        if value is not None and value.tzinfo is None:
            raise Problem("A time must have a zone, such as 2027-03-31T00:00:00Z.", name)
        if value is not None and not 1900 <= value.year <= 2200:
            raise Problem("Please enter a date as year-month-day, such as 2027-03-31.", name)
    record = rights.Record(**given.model_dump(exclude={"document", "document_name"}))
    with view.studio.storage.parked(given.document) as staged, view.writing() as session:
        if given.document and staged is None:
            raise Problem("This document is not here any more. Please upload it again.", "document")
        kept = staged_document(staged, given.document_name)
        return _right(rights.add(session, view.actor, _find(view, session), record, kept))


@routes.post(f"{ONE}/rights/{{right_id}}/check")
def check_right(view: ViewOf, project_id: str, subject_id: str, right_id: str) -> RightOut:
    """Say that a record is true."""
    with view.writing() as session:
        right = rights.find(_find(view, session), view.param("right_id"))
        rights.check(session, view.actor, right, view.project_id)
        return _right(right)


@routes.post(f"{ONE}/rights/{{right_id}}/revoke")
def revoke_right(view: ViewOf, project_id: str, subject_id: str, right_id: str, given: Reason) -> RightOut:
    """End a right now: its jobs stop, and videos made under it are marked."""
    with view.writing() as session:
        right = rights.find(_find(view, session), view.param("right_id"))
        rights.revoke(session, view.actor, right, view.project_id, given.reason)
        return _right(right)


@routes.get("/policy")
def read_policy(view: ViewOf, project_id: str) -> dict[str, Any]:
    """The rules in force."""
    with view.reading() as session:
        rules = policies.current(session, view.project) if view.project else None
    if rules is None:
        raise NotFound("This project has no policy yet. An administrator of the project chooses one.")
    return asdict(rules)


@routes.put("/policy")
def put_policy(view: ViewOf, project_id: str, given: dict[str, Any], based_on: BasedOn = None) -> dict[str, Any]:
    """Put rules in force as a new version; what is left out is as in the template `standard`. `based_on`: the version that you
    had before you; where another is in force by now, nothing is changed.
    """
    try:
        rules = typed(policies.Rules, given, "the policy")
    except ValueError as error:
        raise Problem("%(sentence)s", sentence=str(error)) from error
    with view.writing() as session:
        made = policies.put(session, view.actor, view.project_id, rules, based_on)
        return {"version": made.version, **made.rules}


class EndingOut(RightOut):
    """A right with an end, and whose it is."""

    subject_id: str


@routes.get("/rights")
def list_ending(view: ViewOf, project_id: str, after: str | None = None) -> PageOut[EndingOut]:
    """Rights of the project that have an end, the nearest first; revoked ones are left out."""
    with view.reading() as session:
        found = rights.ending(session, view.actor, project_id, after)
        items = [EndingOut(**_right(each).model_dump(), subject_id=each.subject_id) for each in found.items]
        return PageOut[EndingOut](items=items, following=found.following)


class VersionOut(Row):
    """A version of the policy."""

    version: int
    rules: dict[str, Any]
    created_by: str
    created_at: datetime


@routes.get("/policy/versions")
def list_versions(view: ViewOf, project_id: str) -> list[VersionOut]:
    """Versions of the policy, the newest first: what an approval was given under."""
    with view.reading() as session:
        return [VersionOut.model_validate(each) for each in policies.versions(session, view.actor, project_id)]
