"""What stands behind every request: who asks, the check against the table of access, the form, and answers in their language."""

import base64
import binascii
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

import phantom_s2v
from phantom_s2v.studio import access, gate, i18n, sign_in
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.config import Settings
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.problems import N_, Forbidden, NotSignedIn, Problem, Problems, TooMany, Unavailable
from phantom_s2v.studio.schema import Project, Role
from phantom_s2v.studio.territories import TERRITORIES
from phantom_s2v.studio.web.navigation import LINKS, TABS
from phantom_s2v.studio.web.static import static_url

TEMPLATES = Path(__file__).parent / "templates"
REPORTS = Path(phantom_s2v.__file__).parent / "assets" / "templates"  # whose charts the pages draw as well
SESSION, LANGUAGE, SAID = "phantom_session", "phantom_language", "phantom_said"
API = "/api/"
SECRETS = ("csrf", "password", "again", "old")  # fields that no page gets back
MAX_FIELDS, MAX_FILES, MAX_FIELD_BYTES = 300, 20, 1 << 20
EXPIRED_PAGE = N_("This page was open for too long, or came from elsewhere. Please try again.")


class Form:
    """What was typed, and the sentence beside each field where something was wrong with it."""

    def __init__(self, data: FormData | None = None, **values: Any) -> None:
        self._data, self._values = data or FormData(), values
        self.errors: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        """The text of a field; "" where there is none."""
        value = self._data.get(name, self._values.get(name, ""))
        return value if isinstance(value, str) else ""

    def all(self, name: str) -> list[str]:
        """The texts of a field that may have several, such as ticked boxes."""
        if name in self._data:
            return [value for value in self._data.getlist(name) if isinstance(value, str)]
        given = self._values.get(name, ()) if not self._data else ()
        return [given] if isinstance(given, str) and given else list(given)

    def files(self, name: str) -> list[tuple[str, BinaryIO]]:
        """Names and contents of files of a field; a field left empty has none."""
        found = (value for value in self._data.getlist(name) if isinstance(value, UploadFile))
        return [(value.filename or "", value.file) for value in found if value.filename or value.size]

    def typed(self) -> list[tuple[str, str]]:
        """Names and texts of the fields that were typed, without secrets and files."""
        return [(name, value) for name, value in self._data.multi_items() if isinstance(value, str) and name not in SECRETS]

    def wrong(self, language: str, problem: Problem) -> "Form":
        """The form with the sentences of a problem, each beside its field."""
        for each in problem.each if isinstance(problem, Problems) else [problem]:
            self.errors.setdefault(each.field, i18n.sentence(language, each))
        return self


@dataclass
class View:
    """A request of a person, or of nobody yet, and how to answer it."""

    request: Request
    studio: Studio
    language: str
    actor: Actor
    project: Project | None = None
    unread: int = 0
    token: str = ""  # of the session or the API; "" where nobody is signed in
    by_token: bool = False  # whether it is the API's, which no other site can make a browser send
    form: Form = field(default_factory=Form)

    @property
    def signed_in(self) -> bool:
        """Whether somebody is."""
        return bool(self.token)

    @property
    def project_id(self) -> str:
        """The project of the address."""
        return self.request.path_params["project_id"]

    def param(self, name: str) -> str:
        """A part of the address, such as subject_id."""
        return self.request.path_params[name]

    def query(self, name: str) -> str | None:
        """A value behind the question mark."""
        return self.request.query_params.get(name)

    def reading(self) -> AbstractContextManager[Session]:
        """See Studio.reading."""
        return self.studio.reading()

    def writing(self) -> AbstractContextManager[Session]:
        """See Studio.writing."""
        return self.studio.writing()

    @property
    def tabs(self) -> list[tuple[str, str]]:
        """Pages of the project that the person's roles allow."""
        return [tab for tab in TABS if self.actor.roles & _allowed(f"GET /projects/{{project_id}}{tab[0]}")]

    @property
    def links(self) -> list[tuple[str, str]]:
        """Pages of the studio that the person may see."""
        return [link for link in LINKS if self.actor.admin or access.RULES[f"GET {link[0]}"] != access.STUDIO_ADMIN]

    def with_query(self, **changed: str) -> str:
        """What stands behind the question mark, with some of it changed."""
        return urlencode({**self.request.query_params, **changed})

    def link_of(self, token: str) -> str:
        """A one-time link: below the studio's address as this browser sees it, unless a public one is set."""
        return f"{self.studio.settings.public_url.rstrip('/') or str(self.request.base_url).rstrip('/')}/link/{token}"

    def say(self, message: str, **values: Any) -> str:
        """A text in the person's language."""
        return i18n.translate(self.language, message, **values)

    def render(self, template: str, **values: Any) -> str:
        """A template, or a part of a page."""
        shown = {
            "view": self,
            "actor": self.actor,
            "project": self.project,
            "form": self.form,
            "Role": Role,
            "said": "",
            **values,
        }
        return environment(self.language).get_template(template).render(shown)

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page, with what was said by the redirect that led to it."""
        said = _read_said(self.studio.settings, self.request.cookies.get(SAID, ""))
        values.setdefault("said", self.say(said[0], **said[1]) if said else "")
        response = HTMLResponse(self.render(template, **values), status)
        if SAID in self.request.cookies:
            response.delete_cookie(SAID)
        return response

    def wrong(self, template: str, problem: Problem, **values: Any) -> Response:
        """The page of a form again, with everything that was typed, and what is wrong beside its field."""
        self.form.wrong(self.language, problem)
        return come_again(self.page(template, problem.status, **values), problem)

    def go(self, address: str, said: str = "", **values: Any) -> Response:
        """On to another page, which says what was done."""
        response = RedirectResponse(address, 303)
        if said:
            self.set_cookie(response, SAID, _signed_said(self.studio.settings, said, values), 60)
        return response

    def set_cookie(self, response: Response, name: str, value: str, seconds: int | None = None) -> None:
        """A cookie that no script can read and no other site can send along."""
        secure = self.studio.settings.secure
        response.set_cookie(name, value, max_age=seconds, httponly=True, samesite="lax", secure=secure)

    @property
    def csrf(self) -> str:
        """What every form and every request of a script has to bring: only pages of this session know it."""
        return self.studio.settings.keyed_hash("csrf", self.token)


def _allowed(route: str) -> frozenset[Role]:
    who = access.RULES[route]
    return who if isinstance(who, frozenset) else frozenset()


def sign_cookie(settings: Settings, token: str) -> str:
    """A session's token, signed."""
    return f"{token}.{settings.keyed_hash('session cookie', token)}"


def _signed_token(settings: Settings, cookie: str) -> str:
    """The token of a signed cookie; "" where the signature is not ours."""
    token, _, signature = cookie.rpartition(".")
    right = hmac.compare_digest(
        signature.encode(), settings.keyed_hash("session cookie", token.encode("utf-8", "replace")).encode()
    )
    return token if right else ""


def _signed_said(settings: Settings, message: str, values: dict[str, Any]) -> str:
    body = base64.urlsafe_b64encode(json.dumps([message, values]).encode()).decode()
    return f"{body}.{settings.keyed_hash('said', body)}"


def _read_said(settings: Settings, cookie: str) -> tuple[str, dict[str, Any]] | None:
    body, _, signature = cookie.partition(".")
    if not hmac.compare_digest(signature.encode(), settings.keyed_hash("said", body).encode()):
        return None
    try:
        message, values = json.loads(base64.urlsafe_b64decode(body))
    except (ValueError, binascii.Error):
        return None
    return message, values


async def read_form(request: Request) -> AsyncIterator[FormData | None]:
    """The form of a request, within limits; None where there is none. Its files are closed after the answer."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if request.method in ("GET", "HEAD") or kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        yield None
        return
    try:
        data = await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    except HTTPException as error:
        raise Problem("The form could not be read. Please try again with fewer or smaller files.") from error
    try:
        yield data
    finally:
        await data.close()


def enter(request: Request, data: Annotated[FormData | None, Depends(read_form)]) -> View:
    """Who asks, checked against the table of access: the one dependency of every route."""
    studio: Studio = request.app.state.studio
    view = recognize(request, studio)
    view.form = Form(data)
    request.state.view = view
    route = request.scope["route"]
    access.check(access.RULES.get(f"{request.method} {route.path}"), view.actor if view.signed_in else None)
    if request.method not in ("GET", "HEAD"):
        _check_origin(view)
    return view


ViewOf = Annotated[View, Depends(enter)]


def recognize(request: Request, studio: Studio, token: str = "") -> View:
    """The person of the session's cookie, or of the API's token, with their roles in the address's project: one query. `token` is
    that of a session which has just begun.
    """
    language = request.cookies.get(LANGUAGE) or i18n.preferred(request.headers.get("accept-language", ""))
    language = language if language in i18n.LANGUAGES else "en"
    nobody = View(request, studio, language, Actor("", language=language))
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    kind = "token" if scheme.lower() == "bearer" else "session"
    token = token or (bearer.strip() if kind == "token" else _signed_token(studio.settings, request.cookies.get(SESSION, "")))
    if not token:
        return nobody
    with studio.reading() as session:
        found = sign_in.who(session, token, kind, request.path_params.get("project_id"))
        if found is None:
            return nobody
        session.expunge_all()
    if kind == "session" and sign_in.needs_touch(found.credential):
        with studio.writing() as session:
            sign_in.touch(session, token)
    return View(request, studio, found.actor.language, found.actor, found.project, found.unread, token, kind == "token")


def _from_here(request: Request) -> bool:
    """Whether a page of this studio sent the request, as far as the browser says."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    return origin is None or origin in (f"http://{host}", f"https://{host}")


def _check_origin(view: View) -> None:
    """Refuse what another site's page sends. A token of the API is no cookie, so no other site can send it; other kinds of
    Authorization prove nothing, since a browser adds a password by itself that a proxy has asked for.
    """
    headers = view.request.headers
    if view.by_token:
        return
    if not _from_here(view.request):
        raise Forbidden(EXPIRED_PAGE)
    given = headers.get("x-csrf-token") or view.form["csrf"]
    if view.signed_in and not hmac.compare_digest(given.encode(), view.csrf.encode()):
        raise Forbidden(EXPIRED_PAGE)


@cache
def environment(language: str) -> Environment:
    """The templates in a language. A value that a template names and nobody gave raises UndefinedError."""
    jinja = Environment(
        loader=FileSystemLoader([TEMPLATES, REPORTS]), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, extensions=["jinja2.ext.i18n"],
    )  # fmt: skip
    texts: Any = i18n.translations(language)
    jinja.install_gettext_translations(texts, newstyle=True)  # type: ignore[attr-defined]
    for name in ("moment", "day", "money", "number", "listed", "name", "named", "person", "duration", "sentence"):
        jinja.filters[name] = partial(getattr(i18n, name), language)
    jinja.filters["note"] = partial(i18n.matched, language, gate.NOTES)
    jinja.filters["bytes"] = partial(i18n.bytes_, language)
    jinja.filters["pairs"] = lambda codes: [(code, code) for code in codes]
    jinja.globals |= {"static": static_url, "languages": i18n.LANGUAGES, "territories": TERRITORIES}
    return jinja


def problem_answer(request: Request, problem: Problem) -> Response:
    """A problem that no page of its own shows: JSON for the API, the way to sign in, or a page with the sentence."""
    view = getattr(request.state, "view", None) or recognize(request, request.app.state.studio)
    away = isinstance(problem, NotSignedIn) and "hx-request" not in request.headers  # a part of a page is no place to sign in
    if request.url.path.startswith(API):
        each = problem.each if isinstance(problem, Problems) else [problem]
        errors = [{"field": one.field, "message": i18n.sentence(view.language, one)} for one in each]
        response: Response = JSONResponse({"errors": errors}, problem.status)
    elif away and view.form.typed() and _from_here(request):
        kept = json.dumps({"to": _address(request), "fields": view.form.typed()})
        response = view.page("sign_in.html", problem.status, next=_came_from(request), kept=kept)
    elif away:
        address = _address(request) if request.method == "GET" else _came_from(request)
        response = RedirectResponse(f"/sign-in?next={quote(address, safe='')}", 303)
    else:
        response = view.page(
            "problem.html", problem.status, sentence=i18n.sentence(view.language, problem), missing=problem.status == 404
        )
    return come_again(response, problem)


def _address(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _came_from(request: Request) -> str:
    """The page of this studio that the request was sent from."""
    where = urlsplit(request.headers.get("referer", ""))
    return (where.path + (f"?{where.query}" if where.query else "")) if where.netloc == request.headers.get("host") else "/"


def come_again(response: Response, problem: Problem) -> Response:
    """The answer, saying when to ask again where that was too often."""
    if isinstance(problem, TooMany | Unavailable):
        response.headers["Retry-After"] = str(problem.values["seconds"])
    return response
