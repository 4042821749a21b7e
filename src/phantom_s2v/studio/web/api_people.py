"""The API of the studio itself: accounts, notices, and the certificate that signs exports."""

from datetime import date, datetime
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field

from phantom_s2v.studio import certificates, erasure, notices, projects, sign_in
from phantom_s2v.studio.schema import User
from phantom_s2v.studio.web.api import Given, PageOut, Row
from phantom_s2v.studio.web.api_project import NameIn, Text
from phantom_s2v.studio.web.view import View, ViewOf

routes = APIRouter(prefix="/api/v1")


class PersonOut(Row):
    """A person of the studio."""

    id: str
    name: str
    email: str
    language: str
    active: bool
    admin: bool


class PersonIn(Given):
    """A new person."""

    name: Text
    email: Text
    language: Annotated[str, Field(max_length=8)] = "en"
    admin: bool = False


class LinkOut(BaseModel):
    """A person, and the one-time link by which they choose a password; it is shown once."""

    person: PersonOut
    link: str


class AccessIn(Given):
    """Whether a person may sign in, and administers the studio."""

    active: bool
    admin: bool


@routes.get("/people")
def list_people(view: ViewOf, after: str | None = None) -> PageOut[PersonOut]:
    """Everyone in the studio, as an administrator of it, by e-mail address."""
    with view.reading() as session:
        found = projects.people(session, view.actor, after)
        return PageOut[PersonOut].model_validate(found)


def _linked(view: View, person: User, token: str) -> LinkOut:
    return LinkOut(person=PersonOut.model_validate(person), link=view.link_of(token))


@routes.post("/people", status_code=201)
def add_person(view: ViewOf, body: PersonIn) -> LinkOut:
    """Add a person; send them the link."""
    with view.writing() as session:
        return _linked(view, *projects.add_user(session, view.actor, body.email, body.name, body.language, body.admin))


@routes.post("/people/{user_id}/link", status_code=201)
def new_link(view: ViewOf, user_id: str) -> LinkOut:
    """Make another one-time link; older ones and the person's sessions end."""
    with view.writing() as session:
        person = projects.person(session, view.actor, user_id)
        return _linked(view, person, sign_in.make_link(session, view.actor, person))


@routes.put("/people/{user_id}", status_code=204)
def change_person(view: ViewOf, user_id: str, body: AccessIn) -> Response:
    """Lock or unlock a person, or give and take the administration of the studio."""
    with view.writing() as session:
        projects.set_person(session, view.actor, projects.person(session, view.actor, user_id), body.active, body.admin)
    return Response(status_code=204)


@routes.post("/people/{user_id}/erase", status_code=204)
def erase_person(view: ViewOf, user_id: str, body: NameIn) -> Response:
    """Forget a person who works here: name, address, roles, sessions and notices. What they did stays under their id.

    The name is given as a confirmation: nothing brings it back.
    """
    with view.writing() as session:
        erasure.erase_user(session, view.actor, user_id, body.name)
    return Response(status_code=204)


class NoticeOut(Row):
    """What one has to know: a code, and its values, which are ids, numbers and names."""

    id: str
    code: str
    values: dict[str, Any]
    created_at: datetime
    read_at: datetime | None


@routes.get("/notices")
def list_notices(view: ViewOf, after: str | None = None) -> PageOut[NoticeOut]:
    """Your notices, the newest first."""
    with view.reading() as session:
        found = notices.mine(session, view.actor, after)
        return PageOut[NoticeOut].model_validate(found)


@routes.post("/notices/read", status_code=204)
def read_notices(view: ViewOf) -> Response:
    """Say that you have seen them."""
    with view.writing() as session:
        notices.read_all(session, view.actor)
    return Response(status_code=204)


class SignerIn(Given):
    """Who signs exports."""

    organization: Text


class CertificateOut(BaseModel):
    """The certificate that signs exports."""

    organization: str
    valid_until: date
    expired: bool


def _certificate(found: certificates.Certificate) -> CertificateOut:
    return CertificateOut(organization=found.organization, valid_until=found.valid_until.date(), expired=found.expired)


@routes.get("/certificate")
def read_certificate(view: ViewOf) -> CertificateOut | None:
    """Whose certificate signs exports, and until when; null where nothing can be exported yet."""
    found = certificates.present(view.studio.settings.certificates)
    return _certificate(found) if found else None


@routes.post("/certificate", status_code=201)
def new_certificate(view: ViewOf, body: SignerIn) -> CertificateOut:
    """Make a new certificate in place of the present one."""
    with view.writing() as session:
        return _certificate(certificates.establish(session, view.actor, body.organization))
