"""The API, /api/v1: what the pages do, by the same services. Tokens are made on the account's page."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from phantom_s2v.studio import projects
from phantom_s2v.studio.problems import NotFound
from phantom_s2v.studio.web.view import ViewOf

routes = APIRouter(prefix="/api/v1")


class Row(BaseModel):
    """What is read from a table's row."""

    model_config = ConfigDict(from_attributes=True)


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


class ProjectsOut(BaseModel):
    """A page of projects; `following` goes into `after` for the next one."""

    items: list[ProjectOut]
    following: str | None


@routes.get("/openapi.json", include_in_schema=False)
def openapi(view: ViewOf) -> dict[str, object]:
    """The description of this API."""
    return view.request.app.openapi()


@routes.get("/projects")
def list_projects(view: ViewOf, after: str | None = None) -> ProjectsOut:
    """Projects that you work in, newest first."""
    with view.reading() as session:
        found = projects.mine(session, view.actor, after)
        return ProjectsOut(items=[ProjectOut.model_validate(each) for each in found.items], following=found.following)


@routes.get("/projects/{project_id}")
def read_project(view: ViewOf, project_id: str) -> ProjectOut:
    """A project."""
    if view.project is None:
        raise NotFound
    return ProjectOut.model_validate(view.project)
