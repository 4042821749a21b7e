"""Pages of the studio's people, notices, the audit log, and one's own account."""

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy.orm import Session

from phantom_s2v.studio import audit, certificates, erasure, i18n, notices, projects, sign_in
from phantom_s2v.studio.problems import N_, Problem
from phantom_s2v.studio.schema import User
from phantom_s2v.studio.web.view import Form, View, ViewOf

routes = APIRouter(include_in_schema=False)


@routes.get("/people")
def people_page(view: ViewOf) -> Response:
    """Everyone in the studio."""
    view.form = Form(language=view.language)
    with view.reading() as session:
        return view.page("people.html", people=projects.people(session, view.actor, view.query("after")), link="", person=None)


@routes.post("/people")
def add_person(view: ViewOf) -> Response:
    """Add a person; the page shows their one-time link, once."""
    form = view.form
    try:
        with view.writing() as session:
            person, token = projects.add_user(
                session, view.actor, form["email"], form["name"], form["language"], form["admin"] == "yes"
            )
    except Problem as problem:
        with view.reading() as session:
            return view.wrong("people.html", problem, people=projects.people(session, view.actor), link="", person=None)
    return _with_link(view, person, token)


def _with_link(view: View, person: User, token: str) -> Response:
    link, view.form = view.link_of(token), Form(language=view.language)
    with view.reading() as session:
        return view.page("people.html", people=projects.people(session, view.actor), link=link, person=person)


@routes.post("/people/{user_id}/link")
def new_link(view: ViewOf) -> Response:
    """Another one-time link: older links and sessions of the person end, and with its use the old password."""
    with view.writing() as session:
        person = projects.person(session, view.actor, view.param("user_id"))
        token = sign_in.make_link(session, view.actor, person)
    return _with_link(view, person, token)


@routes.post("/people/{user_id}")
def change_person(view: ViewOf) -> Response:
    """Whether a person may sign in, and administers the studio."""
    with view.writing() as session:
        person = projects.person(session, view.actor, view.param("user_id"))
        projects.set_person(session, view.actor, person, view.form["active"] == "yes", view.form["admin"] == "yes")
    return view.go("/people", N_("Saved."))


@routes.get("/people/{user_id}/erase")
def erase_page(view: ViewOf) -> Response:
    """What is erased with a person, and the form that asks for the name."""
    with view.reading() as session:
        return view.page("person_erase.html", person=projects.person(session, view.actor, view.param("user_id")))


@routes.post("/people/{user_id}/erase")
def erase_person(view: ViewOf) -> Response:
    """Forget a person who works here."""
    try:
        with view.writing() as session:
            erasure.erase_user(session, view.actor, view.param("user_id"), view.form["name"])
    except Problem as problem:
        with view.reading() as session:
            return view.wrong("person_erase.html", problem, person=projects.person(session, view.actor, view.param("user_id")))
    return view.go("/people", N_("The person was erased."))


@routes.get("/certificate")
def certificate_page(view: ViewOf) -> Response:
    """Whose certificate signs exports, and until when."""
    certificate = certificates.present(view.studio.settings.certificates)
    view.form = Form(organization=certificate.organization if certificate else "")
    return view.page("certificate.html", certificate=certificate)


@routes.post("/certificate")
def new_certificate(view: ViewOf) -> Response:
    """A new certificate in place of the present one."""
    try:
        with view.writing() as session:
            certificates.establish(session, view.actor, view.form["organization"])
    except Problem as problem:
        return view.wrong("certificate.html", problem, certificate=certificates.present(view.studio.settings.certificates))
    return view.go("/certificate", N_("Exports are signed with the new certificate from now on."))


@routes.get("/audit")
def audit_page(view: ViewOf) -> Response:
    """The audit log, the newest line first."""
    with view.reading() as session:
        lines = audit.listed(session, view.actor, view.query("after"))
        people = {line.actor for line in lines.items}
        return view.page("audit.html", lines=lines, names=projects.names(session, people))


@routes.get("/notices")
def notices_page(view: ViewOf) -> Response:
    """What one has to know, the newest first."""
    with view.reading() as session:
        found = notices.mine(session, view.actor, view.query("after"))
        acted = projects.names(session, {each.values.get("by") for each in found.items})
        names = {key: i18n.person(view.language, name) for key, name in acted.items()}
        values = [{**each.values, "name": names.get(each.values.get("by", ""), each.values.get("name"))} for each in found.items]
        shown = [
            (each, *(view.say(text, **of) for text in notices.WORDS[each.code]))
            for each, of in zip(found.items, values, strict=True)
        ]
        prompts = notices.prompts(session, view.actor, found.items)
        return view.page("notices.html", notices=found, shown=shown, prompts=prompts)


@routes.post("/notices/read")
def read_notices(view: ViewOf) -> Response:
    """One has seen them."""
    with view.writing() as session:
        notices.read_all(session, view.actor)
    return view.go("/notices")


@routes.get("/account")
def account_page(view: ViewOf) -> Response:
    """One's own name, password and tokens of the API."""
    with view.reading() as session:
        return _account(view, session)


def _account(view: View, session: Session, problem: Problem | None = None, token: str = "") -> Response:
    values = {"tokens": sign_in.tokens(session, view.actor), "token": token}
    return view.wrong("account.html", problem, **values) if problem else view.page("account.html", **values)


@routes.post("/account")
def change_password(view: ViewOf) -> Response:
    """Another password; other sessions end."""
    form = view.form
    try:
        with view.reading() as session:
            sign_in.check_password(session, view.request.app.state.guard, view.actor, form["old"])
        if form["password"] != form["again"]:
            raise Problem("The two passwords are not the same.", "again")
        hashed = sign_in.hash_password(form["password"])
    except Problem as problem:
        with view.reading() as session:
            return _account(view, session, problem)
    with view.writing() as session:
        sign_in.change_password(session, view.actor, hashed, view.token)
    return view.go("/account", N_("The password was changed. Other sessions were ended."))


@routes.post("/account/tokens")
def new_token(view: ViewOf) -> Response:
    """A token of the API, shown once."""
    try:
        with view.writing() as session:
            token = sign_in.make_token(session, view.actor, view.form["token_name"])
    except Problem as problem:
        with view.reading() as session:
            return _account(view, session, problem)
    view.form = Form()
    with view.reading() as session:
        return _account(view, session, token=token)


@routes.post("/account/tokens/{sha256}/end")
def end_token(view: ViewOf) -> Response:
    """Revoke a token."""
    with view.writing() as session:
        sign_in.end_token(session, view.actor, view.param("sha256"))
    return view.go("/account", N_("The token was revoked."))
