"""The web application: one router of pages, one of the API, and the layers around them. It never imports torch."""

from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from phantom_s2v import __version__
from phantom_s2v.errors import OutputError, PhantomError
from phantom_s2v.files.hosts import own_names
from phantom_s2v.studio.access import RULES
from phantom_s2v.studio.config import Settings
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.logs import LOG
from phantom_s2v.studio.problems import BUSY, NO_ROOM, NotFound, Problem, Problems, Unavailable
from phantom_s2v.studio.sign_in import Guard
from phantom_s2v.studio.uploads import Decoder
from phantom_s2v.studio.web import (
    api,
    api_files,
    api_jobs,
    api_people,
    api_project,
    api_review,
    api_subjects,
    pages,
    pages_generate,
    pages_jobs,
    pages_people,
    pages_policy,
    pages_review,
    pages_subjects,
    pages_system,
    pages_verify,
    pages_webhooks,
)
from phantom_s2v.studio.web.outer import Outer
from phantom_s2v.studio.web.view import API, enter, problem_answer

PAGES = [compile_path(rule.removeprefix("GET "))[0] for rule in RULES if rule.startswith("GET ")]
ROUTERS = (
    pages_system.routes, pages.routes, pages_subjects.routes, pages_policy.routes, pages_people.routes, pages_generate.routes,
    pages_jobs.routes, pages_review.routes, pages_verify.routes, pages_webhooks.routes, api.routes, api_jobs.routes,
    api_subjects.routes, api_project.routes, api_people.routes, api_review.routes, api_files.routes,
)  # fmt: skip


def create_app(studio: Studio) -> FastAPI:
    """The application of a studio that was started."""
    app = FastAPI(
        title="phantom studio",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(enter)],
        responses={"4XX": {"model": api.ErrorsOut, "description": "What is wrong with the request."}},
    )
    app.state.studio, app.state.guard, app.state.registry, app.state.decoder = studio, Guard(), CollectorRegistry(), Decoder()
    for routes in ROUTERS:
        app.include_router(routes)
    for kind in (PhantomError, HTTPException, RequestValidationError, OperationalError):
        app.add_exception_handler(kind, _refuse)
    app.add_middleware(Outer, web=app, settings=studio.settings, names=_names(studio.settings), registry=app.state.registry)
    return app


def _names(settings: Settings) -> frozenset[str]:
    """Names under which the studio may be asked for."""
    return own_names(settings.host) | {(urlsplit(settings.public_url).hostname or settings.host).lower()}


def _invalid(error: dict[str, Any]) -> Problem:
    """What the API's shapes find wrong with a request."""
    field = ".".join(str(part) for part in error["loc"][1:])
    if error["type"] == "json_invalid":
        return Problem("The body is not valid JSON.")
    if error["type"] == "extra_forbidden":
        return Problem("There is no field of this name.", field)
    if error["type"] == "missing":
        return Problem("Please fill this in.", field)
    return Problem("This value cannot be used: %(reason)s", field, reason=error["msg"])


def _page_above(request: Request) -> str:
    """The page that is nearest above an address which only takes forms: for who reloads the page of a refused form, or reads it
    in another language; "" for requests of programs.
    """
    path = request.url.path
    while request.method == "GET" and not path.startswith(API):
        path = path.rpartition("/")[0] or "/"
        if any(pattern.fullmatch(path) for pattern in PAGES):
            return path
    return ""


def _refuse(request: Request, error: Exception) -> Response:
    """Anything that was refused, as a sentence."""
    if isinstance(error, Problem):
        problem = error
    elif isinstance(error, OutputError | OperationalError):
        LOG.error("nothing could be written", extra={"values": {"why": str(getattr(error, "orig", error))}})
        full = isinstance(error, OutputError) or "full" in str(error.orig)
        problem = Unavailable(NO_ROOM if full else BUSY, seconds=60)
    elif isinstance(error, PhantomError):
        problem = Problem("%(sentence)s", sentence=str(error))
    elif isinstance(error, RequestValidationError):
        problem = Problems([_invalid(each) for each in error.errors()])
    elif isinstance(error, HTTPException) and error.status_code == 405 and (page := _page_above(request)):
        return RedirectResponse(page, 303)
    elif isinstance(error, HTTPException) and error.status_code in (404, 405):
        problem = NotFound()
    else:
        problem = Problem("The request could not be read.")
    return problem_answer(request, problem)
