"""The API of a project: its members and settings, and changes of its subjects."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field

from phantom_s2v.studio import projects, subjects
from phantom_s2v.studio.problems import Problem
from phantom_s2v.studio.schema import Role
from phantom_s2v.studio.web.api import Given, PageOut
from phantom_s2v.studio.web.view import ViewOf

routes = APIRouter(prefix="/api/v1/projects/{project_id}")
Text = Annotated[str, Field(max_length=20_000)]
Small = Annotated[int, Field(ge=0, le=10**12)]


def files(field: str, meaning: str) -> dict[str, Any]:
    """What OpenAPI says of a form with one file."""
    file = {"type": "string", "format": "binary", "description": meaning}
    shape = {"type": "object", "required": [field], "properties": {field: file}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": shape}}}}


class MemberOut(BaseModel):
    """A person of a project."""

    id: str
    name: str
    email: str
    roles: list[Role]


class RolesIn(Given):
    """Roles of a person; none removes them from the project."""

    email: Text
    roles: list[Role]


@routes.get("/members")
def list_members(view: ViewOf, project_id: str, after: str | None = None) -> PageOut[MemberOut]:
    """People of the project with their roles, by name."""
    with view.reading() as session:
        page = projects.members(session, view.actor, project_id, after)
        items = [MemberOut(id=user.id, name=user.name, email=user.email, roles=roles) for user, roles in page.items]
        return PageOut[MemberOut](items=items, following=page.following)


@routes.put("/members", status_code=204)
def set_member(view: ViewOf, project_id: str, body: RolesIn) -> Response:
    """Give a person their roles."""
    with view.writing() as session:
        projects.set_roles(session, view.actor, project_id, body.email, body.roles)
    return Response(status_code=204)


class NameIn(Given):
    """The name of what is to be erased, typed once more."""

    name: Text


class SettingsIn(Given):
    """Settings of a project. Money is in the smallest unit of the currency."""

    name: Text
    model: Text
    currency: Text
    price_per_hour: Small
    budget: Small | None = None
    kpis: Annotated[str, Field(max_length=100_000)] = ""
    based_on: Annotated[str, Field(max_length=64, description="what you read before: else nothing is changed")] = ""


@routes.get("/settings")
def read_settings(view: ViewOf, project_id: str) -> SettingsIn:
    """The project's settings."""
    project = view.project
    assert project is not None
    own = {name: getattr(project, name) for name in SettingsIn.model_fields if name != "based_on"}
    return SettingsIn(**own, based_on=projects.stamp(project))


@routes.put("/settings", status_code=204)
def change_settings(view: ViewOf, project_id: str, body: SettingsIn) -> Response:
    """Change the project's settings."""
    if body.currency not in projects.CURRENCIES:
        raise Problem("Please choose one of the list.", "currency")
    settings = projects.ProjectSettings(**body.model_dump(exclude={"based_on"}))
    with view.writing() as session:
        projects.change(session, view.actor, project_id, settings, body.based_on)
    return Response(status_code=204)


class SubjectIn(Given):
    """Name and kind of a subject."""

    name: Text
    kind: Text


@routes.put("/subjects/{subject_id}", status_code=204)
def change_subject(view: ViewOf, project_id: str, subject_id: str, body: SubjectIn) -> Response:
    """Give a subject another name or kind."""
    with view.writing() as session:
        subject = subjects.find(session, view.actor, project_id, subject_id)
        subjects.change(session, view.actor, subject, body.name, body.kind)
    return Response(status_code=204)


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
