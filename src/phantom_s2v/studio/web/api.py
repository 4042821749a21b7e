"""The API, /api/v1: what the pages do, by the same services. Tokens are made on the account's page."""

from datetime import datetime
from typing import Generic, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from phantom_s2v.studio import projects
from phantom_s2v.studio.problems import NotFound
from phantom_s2v.studio.web.view import ViewOf

routes = APIRouter(prefix="/api/v1")
ABOUT = (
    "Send a token of your account's page as `Authorization: Bearer TOKEN`; it may do what you may. Lists are paged: `following` "
    "of an answer goes into `after` of the next request, until it is null. Times are ISO 8601 in UTC, money is in the smallest "
    "unit of the project's currency."
)


class Row(BaseModel):
    """What is read from a table's row."""

    model_config = ConfigDict(from_attributes=True)


Item = TypeVar("Item", bound=BaseModel)


class PageOut(Row, Generic[Item]):
    """A page of a list; `following` goes into `after` for the next one."""

    items: list[Item]
    following: str | None


class Given(BaseModel):
    """What a request brings; a field that there is not is refused, since a misspelled one would be passed over."""

    model_config = ConfigDict(extra="forbid")


class ErrorOut(BaseModel):
    """What is wrong, in the language of the token's person. `field` is empty where it is about the whole request."""

    field: str
    message: str


class ErrorsOut(BaseModel):
    """Why a request was refused."""

    errors: list[ErrorOut]


class ProjectIn(Given):
    """A new project."""

    name: str


class ProjectOut(Row):
    """A project."""

    id: str
    name: str
    model: str
    currency: str
    price_per_hour: int
    budget: int | None
    spent: int
    policy_version: int
    created_at: datetime


@routes.get("/openapi.json", include_in_schema=False)
def openapi(view: ViewOf) -> dict[str, object]:
    """The description of this API."""
    found = view.request.app.openapi()
    found["info"]["description"] = ABOUT
    found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {**found, "security": [{"token": []}]}


@routes.get("/projects")
def list_projects(view: ViewOf, after: str | None = None) -> PageOut[ProjectOut]:
    """Projects that you work in, newest first."""
    with view.reading() as session:
        found = projects.mine(session, view.actor, after)
        return PageOut[ProjectOut].model_validate(found)


@routes.post("/projects", status_code=201)
def create_project(view: ViewOf, body: ProjectIn) -> ProjectOut:
    """Create a project, as an administrator of the studio; its members, policy and settings come next."""
    with view.writing() as session:
        return ProjectOut.model_validate(projects.create(session, view.actor, body.name))


@routes.get("/projects/{project_id}")
def read_project(view: ViewOf, project_id: str) -> ProjectOut:
    """A project."""
    if view.project is None:
        raise NotFound
    return ProjectOut.model_validate(view.project)
