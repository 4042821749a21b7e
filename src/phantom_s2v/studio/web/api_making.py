"""The API of what a video is made of: people, settings, subjects, rights and policy."""

from contextlib import ExitStack
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from pydantic import AwareDatetime, BaseModel, Field

from phantom_s2v.studio import policies, projects, rights, subjects
from phantom_s2v.studio.policies import Rules
from phantom_s2v.studio.problems import Problem
from phantom_s2v.studio.schema import Role, Subject
from phantom_s2v.studio.web.api import Row
from phantom_s2v.studio.web.view import ViewOf

routes = APIRouter(prefix="/api/v1/projects/{project_id}")
Text = Annotated[str, Field(max_length=20_000)]
Small = Annotated[int, Field(ge=0, le=10**12)]


def files(field: str, meaning: str) -> dict[str, Any]:
    """What OpenAPI is told of a form with one file."""
    file = {"type": "string", "format": "binary", "description": meaning}
    shape = {"type": "object", "required": [field], "properties": {field: file}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": shape}}}}


class MemberOut(BaseModel):
    """A person of a project."""

    id: str
    name: str
    email: str
    roles: list[Role]


class RolesIn(BaseModel):
    """Roles of a person; none removes them from the project."""

    email: Text
    roles: list[Role]


@routes.get("/members")
def list_members(view: ViewOf, project_id: str) -> list[MemberOut]:
    """People of the project with their roles."""
    with view.reading() as session:
        found = projects.members(session, view.actor, project_id)
        return [MemberOut(id=user.id, name=user.name, email=user.email, roles=roles) for user, roles in found]


@routes.put("/members", status_code=204)
def set_member(view: ViewOf, project_id: str, body: RolesIn) -> Response:
    """Give a person their roles."""
    with view.writing() as session:
        projects.set_roles(session, view.actor, project_id, body.email, body.roles)
    return Response(status_code=204)


class SettingsIn(BaseModel):
    """Settings of a project. Money is in the smallest unit of the currency."""

    name: Text
    model: Text
    currency: Text
    price_per_hour: Small
    budget: Small | None = None
    kpis: Annotated[str, Field(max_length=100_000)] = ""


@routes.put("/settings", status_code=204)
def change_settings(view: ViewOf, project_id: str, body: SettingsIn) -> Response:
    """Change the project's settings."""
    if body.currency not in projects.CURRENCIES:
        raise Problem("Please choose one of the list.", "currency")
    with view.writing() as session:
        projects.change(session, view.actor, project_id, projects.ProjectSettings(**body.model_dump()))
    return Response(status_code=204)


class ImageOut(Row):
    """A reference image, and what is to be said of it."""

    id: str
    width: int
    height: int
    warnings: list[Any]


class RightOut(Row):
    """A rights record; `state` says how it stands."""

    id: str
    state: str
    shown: str
    owner: str
    basis: str
    uses: list[str]
    territories: list[str]
    valid_from: datetime
    valid_until: datetime | None
    document_name: str


class SubjectOut(Row):
    """A subject with images and rights."""

    id: str
    name: str
    kind: str
    created_at: datetime
    images: list[ImageOut]
    rights: list[RightOut]


class SubjectsOut(BaseModel):
    """A page of subjects."""

    items: list[SubjectOut]
    following: str | None


class SubjectIn(BaseModel):
    """Name and kind of a subject."""

    name: Text
    kind: Text


def _right(right: Any) -> RightOut:
    values = {name: getattr(right, name) for name in RightOut.model_fields if name != "state"}
    return RightOut(state=rights.state(right), **values)


def _subject(subject: Subject) -> SubjectOut:
    images = [ImageOut.model_validate(image) for image in subject.images]
    own = {name: getattr(subject, name) for name in ("id", "name", "kind", "created_at")}
    return SubjectOut(images=images, rights=[_right(each) for each in subject.rights], **own)


@routes.get("/subjects")
def list_subjects(view: ViewOf, project_id: str, after: str | None = None) -> SubjectsOut:
    """Subjects of the project, the newest first."""
    with view.reading() as session:
        page = subjects.listed(session, view.actor, project_id, after)
        return SubjectsOut(items=[_subject(each) for each in page.items], following=page.following)


@routes.post("/subjects", status_code=201)
def create_subject(view: ViewOf, project_id: str, body: SubjectIn) -> SubjectOut:
    """Create a subject."""
    with view.writing() as session:
        return _subject(subjects.create(session, view.actor, project_id, body.name, body.kind))


@routes.get("/subjects/{subject_id}")
def read_subject(view: ViewOf, project_id: str, subject_id: str) -> SubjectOut:
    """A subject."""
    with view.reading() as session:
        return _subject(subjects.find(session, view.actor, project_id, subject_id))


@routes.put("/subjects/{subject_id}")
def change_subject(view: ViewOf, project_id: str, subject_id: str, body: SubjectIn) -> SubjectOut:
    """Give a subject another name or kind."""
    with view.writing() as session:
        subject = subjects.find(session, view.actor, project_id, subject_id)
        subjects.change(session, view.actor, subject, body.name, body.kind)
        return _subject(subject)


@routes.post("/subjects/{subject_id}/images", status_code=201, openapi_extra=files("image", "PNG, JPEG, WebP, GIF, BMP or TIFF"))
def add_image(view: ViewOf, project_id: str, subject_id: str) -> ImageOut:
    """Add a reference image."""
    given = view.form.files("image")
    if not given:
        raise Problem("Please choose an image.", "image")
    storage = view.studio.storage
    with ExitStack() as stack:
        decoded = stack.enter_context(view.request.app.state.decoder.decoded(given[0][1]))
        opened = [stack.enter_context(path.open("rb")) for path in (decoded.image, decoded.thumbnail)]
        image, thumbnail = (stack.enter_context(storage.staged(file)) for file in opened)
        session = stack.enter_context(view.writing())
        subject = subjects.find(session, view.actor, project_id, subject_id)
        return ImageOut.model_validate(subjects.add_image(session, view.actor, subject, decoded, (image, thumbnail)))


@routes.get("/subjects/{subject_id}/images/{image_id}", response_class=FileResponse)
def read_image(view: ViewOf, project_id: str, subject_id: str, image_id: str) -> Response:
    """A reference image, PNG."""
    with view.reading() as session:
        found = subjects.image(session, view.actor, project_id, subject_id, image_id)
        return FileResponse(view.studio.storage.path(found.blob), media_type="image/png")


@routes.delete("/subjects/{subject_id}/images/{image_id}", status_code=204)
def remove_image(view: ViewOf, project_id: str, subject_id: str, image_id: str) -> Response:
    """Remove a reference image."""
    with view.writing() as session:
        subject = subjects.find(session, view.actor, project_id, subject_id)
        subjects.remove_image(session, view.actor, subject, image_id)
    return Response(status_code=204)


class RightIn(BaseModel):
    """A rights record."""

    shown: Text
    owner: Text
    basis: Text
    uses: list[Text]
    territories: list[Text]
    valid_from: AwareDatetime
    valid_until: AwareDatetime | None = None


class ReasonIn(BaseModel):
    """A written reason."""

    reason: Text


@routes.post("/subjects/{subject_id}/rights", status_code=201)
def add_right(view: ViewOf, project_id: str, subject_id: str, body: RightIn) -> RightOut:
    """Add a rights record; another person checks it. Its document is added on the page of the subject."""
    for name in ("valid_from", "valid_until"):
        if (value := getattr(body, name)) is not None and not 1900 <= value.year <= 2200:
            raise Problem("Please enter a date as year-month-day, such as 2027-03-31.", name)
    with view.writing() as session:
        subject = subjects.find(session, view.actor, project_id, subject_id)
        return _right(rights.add(session, view.actor, subject, rights.Record(**body.model_dump())))


@routes.post("/subjects/{subject_id}/rights/{right_id}/check", status_code=204)
def check_right(view: ViewOf, project_id: str, subject_id: str, right_id: str) -> Response:
    """Say that a rights record is true."""
    with view.writing() as session:
        subject = subjects.find(session, view.actor, project_id, subject_id)
        rights.check(session, view.actor, rights.find(subject, right_id), project_id)
    return Response(status_code=204)


@routes.post("/subjects/{subject_id}/rights/{right_id}/revoke", status_code=204)
def revoke_right(view: ViewOf, project_id: str, subject_id: str, right_id: str, body: ReasonIn) -> Response:
    """End a right: its jobs stop, its videos are marked."""
    with view.writing() as session:
        subject = subjects.find(session, view.actor, project_id, subject_id)
        rights.revoke(session, view.actor, rights.find(subject, right_id), project_id, body.reason)
    return Response(status_code=204)


class PolicyOut(BaseModel):
    """A version of the policy."""

    version: int
    rules: dict[str, Any]


@routes.get("/policy")
def read_policy(view: ViewOf, project_id: str) -> list[PolicyOut]:
    """All versions of the policy, the one in force first."""
    with view.reading() as session:
        found = policies.versions(session, view.actor, project_id)
        return [PolicyOut(version=each.version, rules=each.rules) for each in found]


@routes.put("/policy")
def put_policy(view: ViewOf, project_id: str, body: Rules) -> PolicyOut:
    """Put rules in force as a new version."""
    with view.writing() as session:
        made = policies.put(session, view.actor, project_id, body)
        return PolicyOut(version=made.version, rules=made.rules)
