"""Pages of signing in, projects and their members."""

import json
import re

from fastapi import APIRouter
from fastapi.responses import Response

from phantom_s2v.studio import i18n, projects, sign_in
from phantom_s2v.studio.problems import N_, NotFound, Problem, collecting, raise_all
from phantom_s2v.studio.projects import FIRST
from phantom_s2v.studio.schema import Role
from phantom_s2v.studio.web.view import LANGUAGE, SESSION, Form, ViewOf, recognize, sign_cookie

routes = APIRouter(include_in_schema=False)
OWN_ADDRESS = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")
YEAR = 365 * 24 * 3600


def _own_address(address: str | None) -> str:
    """An address of this studio to go on to; anything else is the start."""
    return address if address and OWN_ADDRESS.fullmatch(address) else "/"


@routes.get("/sign-in")
def sign_in_page(view: ViewOf) -> Response:
    """The form to sign in."""
    if view.signed_in:
        return view.go("/")
    return view.page("sign_in.html", next=_own_address(view.query("next")), kept="")


@routes.post("/sign-in")
def sign_in_now(view: ViewOf) -> Response:
    """Sign in, and go on where one wanted to go."""
    following, client = _own_address(view.form["next"]), view.request.client
    try:
        with view.reading() as session:
            guard, address = view.request.app.state.guard, client.host if client else ""
            user = sign_in.sign_in(session, guard, view.form["email"], view.form["password"], address)
    except Problem as problem:
        return view.wrong("sign_in.html", problem, next=following, kept=view.form["kept"])
    return _signed_in(view, user, following)


def _signed_in(view: ViewOf, user: str, address: str) -> Response:
    with view.writing() as session:
        token = sign_in.begin_session(session, user)
    to, fields = _kept(view.form["kept"])
    if to:
        response = recognize(view.request, view.studio, token).page("resume.html", to=to, fields=fields, next=address)
    else:
        response = view.go(address)
    view.set_cookie(response, SESSION, sign_cookie(view.studio.settings, token))
    return response


def _kept(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Where the form was to go that a session ended on, "" for none, and what was typed into it (view.problem_answer)."""
    try:
        kept = json.loads(text or "{}")
        return _own_address(kept["to"]), [(str(name), str(value)) for name, value in kept["fields"]]
    except (ValueError, KeyError, TypeError):
        return "", []


@routes.post("/sign-out")
def sign_out(view: ViewOf) -> Response:
    """End the session."""
    with view.writing() as session:
        sign_in.end_session(session, view.token)
    response = view.go("/sign-in")
    response.delete_cookie(SESSION)
    return response


@routes.get("/link/{token}")
def link_page(view: ViewOf) -> Response:
    """Where a one-time link leads: choose a password."""
    with view.reading() as session:
        user = sign_in.link_user(session, view.param("token"))
        return view.page("link.html", person=user, first_email=FIRST)


@routes.post("/link/{token}")
def use_link(view: ViewOf) -> Response:
    """Set the password and sign in."""
    token, password = view.param("token"), view.form["password"]
    with view.reading() as session:
        user = sign_in.link_user(session, token)
    found, hashed = list[Problem](), ""
    with collecting(found):
        hashed = sign_in.hash_password(password)
        if password != view.form["again"]:
            raise Problem("The two passwords are not the same.", "again")
    try:
        with view.writing() as session:
            person = sign_in.use_link(session, token, hashed, view.language)
            if user.email == FIRST:
                with collecting(found):
                    projects.introduce(session, person, view.form["email"], view.form["name"], view.form["organization"])
            raise_all(found)  # nothing was changed then, and the link stays
    except NotFound:
        raise  # used a moment ago, by someone else
    except Problem as problem:
        return view.wrong("link.html", problem, person=user, first_email=FIRST)
    return _signed_in(view, user.id, "/")


@routes.post("/language")
def choose_language(view: ViewOf) -> Response:
    """Another language from now on."""
    language = view.form["language"] if view.form["language"] in i18n.LANGUAGES else "en"
    if view.signed_in:
        with view.writing() as session:
            projects.set_language(session, view.actor, language)
    response = view.go(_own_address(view.form["next"]))
    view.set_cookie(response, LANGUAGE, language, YEAR)
    return response


@routes.get("/")
def home(view: ViewOf) -> Response:
    """The projects that a person works in."""
    with view.reading() as session:
        return view.page("projects.html", projects=projects.mine(session, view.actor, view.query("after")))


@routes.get("/projects/new")
def new_project_page(view: ViewOf) -> Response:
    """The form of a new project."""
    return view.page("project_new.html")


@routes.post("/projects")
def new_project(view: ViewOf) -> Response:
    """Create a project; its members come next."""
    try:
        with view.writing() as session:
            project = projects.create(session, view.actor, view.form["name"])
    except Problem as problem:
        return view.wrong("project_new.html", problem)
    return view.go(f"/projects/{project.id}/members", N_("The project was created. Now add the people who work in it."))


@routes.get("/projects/{project_id}")
def project_page(view: ViewOf) -> Response:
    """A project: what is to be done next."""
    with view.reading() as session:
        return view.page("project.html", progress=projects.progress(session, view.actor, view.project_id))


@routes.get("/projects/{project_id}/members")
def members_page(view: ViewOf) -> Response:
    """People of a project and their roles; those of one person in the form, where they are to be changed."""
    with view.reading() as session:
        members = projects.members(session, view.actor, view.project_id, view.query("after"))
        for person, roles in members.items:
            if person.id == view.query("change"):
                view.form = Form(email=person.email, roles=roles)
        return view.page("members.html", members=members, link="", person=None)


@routes.post("/projects/{project_id}/members")
def set_member(view: ViewOf) -> Response:
    """Give a person their roles; who has no account yet gets one, and the page shows their one-time link, once."""
    form, token = view.form, ""
    try:
        with view.writing() as session:
            roles = [role for role in Role if role.value in form.all("roles")]
            if view.actor.admin and not projects.has_account(session, form["email"]):
                if not form["name"].strip():
                    raise Problem("This person has no account yet. Enter their name, and one is made.", "name")
                if not roles:
                    raise Problem("Please choose at least one role for a new person.", "roles")
                _, token = projects.add_user(session, view.actor, form["email"], form["name"], view.language)
            user = projects.set_roles(session, view.actor, view.project_id, form["email"], roles)
    except Problem as problem:
        with view.reading() as session:
            members = projects.members(session, view.actor, view.project_id)
            return view.wrong("members.html", problem, members=members, link="", person=None)
    if token:
        view.form = Form()
        with view.reading() as session:
            members = projects.members(session, view.actor, view.project_id)
            return view.page("members.html", members=members, link=view.link_of(token), person=user)
    said = N_("The roles of %(name)s were changed.") if roles else N_("%(name)s no longer works in this project.")
    return view.go(f"/projects/{view.project_id}/members", said, name=user.name)
