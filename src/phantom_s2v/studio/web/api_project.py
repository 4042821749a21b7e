"""The API of people, and of a project: its members and settings, and changes of its subjects."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field

from phantom_s2v.studio import erasure, projects, sign_in, subjects
from phantom_s2v.studio.problems import Problem
from phantom_s2v.studio.schema import Role
from phantom_s2v.studio.web.api import Given, Row
from phantom_s2v.studio.web.view import ViewOf

routes = APIRouter(prefix="/api/v1/projects/{project_id}")
people = APIRouter(prefix="/api/v1/people")
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


class PersonOut(Row):
    """A person of the studio."""

    id: str
    name: str
    email: str
    language: str
    active: bool
    admin: bool


class PeopleOut(BaseModel):
    """A page of people; `following` goes into `after` for the next one."""

    items: list[PersonOut]
    following: str | None


@people.get("")
def list_people(view: ViewOf, after: str | None = None) -> PeopleOut:
    """Everyone in the studio, as an administrator of it, by e-mail address."""
    with view.reading() as session:
        found = projects.people(session, view.actor, after)
        return PeopleOut(items=[PersonOut.model_validate(each) for each in found.items], following=found.following)


class NameIn(Given):
    """The name of what is to be erased, typed once more."""

    name: Text


class PersonIn(Given):
    """A new person."""

    email: Text
    name: Text
    language: Text = "en"
    admin: bool = False


class InvitedOut(BaseModel):
    """A person and the one-time link by which they set their password; it is not shown again."""

    person: PersonOut
    link: str


class StandingIn(Given):
    """Whether a person may sign in, and administers the studio."""

    active: bool
    admin: bool


@people.post("", status_code=201)
def add_person(view: ViewOf, body: PersonIn) -> InvitedOut:
    """Add a person, as an administrator of the studio."""
    with view.writing() as session:
        user, token = projects.add_user(session, view.actor, body.email, body.name, body.language, body.admin)
        return InvitedOut(person=PersonOut.model_validate(user), link=view.link_of(token))


@people.post("/{user_id}/link", status_code=201)
def new_link(view: ViewOf, user_id: str) -> InvitedOut:
    """Another one-time link: the old password, links and sessions of the person end."""
    with view.writing() as session:
        user = projects.person(session, view.actor, user_id)
        return InvitedOut(person=PersonOut.model_validate(user), link=view.link_of(sign_in.make_link(session, view.actor, user)))


@people.put("/{user_id}", status_code=204)
def change_person(view: ViewOf, user_id: str, body: StandingIn) -> Response:
    """Whether a person may sign in, and administers the studio."""
    with view.writing() as session:
        projects.set_person(session, view.actor, projects.person(session, view.actor, user_id), body.active, body.admin)
    return Response(status_code=204)


@people.post("/{user_id}/erase", status_code=204)
def erase_person(view: ViewOf, user_id: str, body: NameIn) -> Response:
    """Forget a person who works here: name, address, roles, sessions and notices. What they did stays under their id.

    The name is given as a confirmation: nothing brings it back.
    """
    with view.writing() as session:
        erasure.erase_user(session, view.actor, user_id, body.name)
    return Response(status_code=204)


class SettingsIn(Given):
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
