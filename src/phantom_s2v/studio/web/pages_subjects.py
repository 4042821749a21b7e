"""Pages of subjects: their list, images and rights."""

from contextlib import ExitStack
from datetime import datetime
from typing import Any, BinaryIO

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from sqlalchemy.orm import Session

from phantom_s2v.studio import i18n, policies, projects, rights, subjects
from phantom_s2v.studio.policies import KINDS, PURPOSES
from phantom_s2v.studio.problems import N_, Problem, collecting, raise_all
from phantom_s2v.studio.schema import Blob, Right, Subject, SubjectImage, now
from phantom_s2v.studio.storage import Staged
from phantom_s2v.studio.web import forms
from phantom_s2v.studio.web.view import Form, View, ViewOf

routes = APIRouter(include_in_schema=False)
LIST, ONE = "/projects/{project_id}/subjects", "/projects/{project_id}/subjects/{subject_id}"
FILE_HEADERS = {"Cache-Control": "private, max-age=3600, immutable", "Content-Security-Policy": "default-src 'none'; sandbox"}


def _subject(view: View, session: Session) -> Subject:
    return subjects.find(session, view.actor, view.project_id, view.param("subject_id"))


def _address(view: View) -> str:
    return f"/projects/{view.project_id}/subjects/{view.param('subject_id')}"


def file_response(view: View, session: Session, sha256: str, name: str | None = None) -> Response:
    """A kept file, shown in place, or under a `name` to be saved. It can run no script and load nothing."""
    kind = session.get_one(Blob, sha256).media_type
    how = "attachment" if name else "inline"
    return FileResponse(
        view.studio.storage.path(sha256), media_type=kind, filename=name, content_disposition_type=how, headers=FILE_HEADERS
    )


@routes.get(LIST)
def list_subjects(view: ViewOf) -> Response:
    """Subjects of a project."""
    with view.reading() as session:
        found = subjects.listed(session, view.actor, view.project_id, view.query("after"))
        return view.page("subjects.html", subjects=found, state=_best_state)


def _best_state(subject: Subject) -> str:
    """How the best of a subject's rights stands, "" without any."""
    order = ("valid", "ending", "unchecked", "not yet", "expired", "revoked")
    return min((rights.state(right) for right in subject.rights), key=order.index, default="")


@routes.get(f"{LIST}/new")
def new_subject_page(view: ViewOf) -> Response:
    """The form of a new subject."""
    return view.page("subject_new.html", kinds=KINDS)


@routes.post(LIST)
def new_subject(view: ViewOf) -> Response:
    """Create a subject; images come next."""
    try:
        with view.writing() as session:
            made = subjects.create(session, view.actor, view.project_id, view.form["name"], view.form["kind"])
    except Problem as problem:
        return view.wrong("subject_new.html", problem, kinds=KINDS)
    return view.go(f"/projects/{view.project_id}/subjects/{made.id}", N_("The subject was created. Now add reference images."))


@routes.get(ONE)
def subject_page(view: ViewOf) -> Response:
    """A subject with its images and rights."""
    with view.reading() as session:
        return _page(view, session)


def _page(view: View, session: Session, problem: Problem | None = None) -> Response:
    subject = _subject(view, session)
    people = {right.created_by for right in subject.rights} | {right.checked_by for right in subject.rights}
    named = projects.names(session, people) if people else {}
    values = {"subject": subject, "kinds": KINDS, "names": named, "state": rights.state, "days_left": rights.days_left}
    values |= {
        "last_day": forms.last_day,
        "zone": view.studio.settings.zone,
        "checkers": rights.CHECKERS,
        "most": subjects.MAX_IMAGES,
    }
    if problem is not None:
        return view.wrong("subject.html", problem, **values)
    view.form = Form(name=subject.name, kind=subject.kind)
    return view.page("subject.html", **values)


@routes.post(ONE)
def change_subject(view: ViewOf) -> Response:
    """Another name or kind."""
    try:
        with view.writing() as session:
            subjects.change(session, view.actor, _subject(view, session), view.form["name"], view.form["kind"])
    except Problem as problem:
        with view.reading() as session:
            return _page(view, session, problem)
    return view.go(_address(view), N_("Saved."))


@routes.post(f"{ONE}/images")
def add_images(view: ViewOf) -> Response:
    """Add images. Those that can be read are kept, whatever the others are; each of these has its sentence."""
    with view.reading() as session:
        _subject(view, session)
    given, wrong = view.form.files("images"), list[tuple[str, Problem]]()
    if not given:
        wrong.append(("", Problem("Please choose an image.", "images")))
    for name, source in given:
        try:
            keep_image(view, source)
        except Problem as problem:
            wrong.append((name, problem))
    if wrong:
        sentences = [": ".join(part for part in (name, i18n.sentence(view.language, each)) if part) for name, each in wrong]
        with view.reading() as session:
            subject = _subject(view, session)
            view.form = Form(name=subject.name, kind=subject.kind)
            return _page(view, session, Problem("%(sentences)s", "images", sentences="\n".join(sentences)))
    return view.go(f"{_address(view)}#images", N_("Images added: %(count)d."), count=len(given))


def keep_image(view: View, source: BinaryIO) -> SubjectImage:
    """Decode an uploaded image and add it to the subject of the address. Raises Problem for what is none."""
    storage = view.studio.storage
    with ExitStack() as stack:
        decoded = stack.enter_context(view.request.app.state.decoder.decoded(source))
        files = [stack.enter_context(path.open("rb")) for path in (decoded.image, decoded.thumbnail)]
        image, thumbnail = (stack.enter_context(storage.staged(file)) for file in files)
        with view.writing() as session:
            return subjects.add_image(session, view.actor, _subject(view, session), decoded, (image, thumbnail))


@routes.post(f"{ONE}/images/{{image_id}}/remove")
def remove_image(view: ViewOf) -> Response:
    """Remove an image."""
    with view.writing() as session:
        subjects.remove_image(session, view.actor, _subject(view, session), view.param("image_id"))
    return view.go(f"{_address(view)}#images", N_("The image was removed."))


def _image(view: View, session: Session) -> SubjectImage:
    return subjects.image(session, view.actor, view.project_id, view.param("subject_id"), view.param("image_id"))


@routes.get(f"{ONE}/images/{{image_id}}")
def image_file(view: ViewOf) -> Response:
    """An image."""
    with view.reading() as session:
        return file_response(view, session, _image(view, session).blob)


@routes.get(f"{ONE}/images/{{image_id}}/thumbnail")
def thumbnail_file(view: ViewOf) -> Response:
    """An image, small."""
    with view.reading() as session:
        return file_response(view, session, _image(view, session).thumbnail)


@routes.get(f"{ONE}/rights/new")
def new_right_page(view: ViewOf) -> Response:
    """The form of a new rights record."""
    with view.reading() as session:
        subject = _subject(view, session)
        today = now().astimezone(view.studio.settings.zone).date().isoformat()
        basis = "consent" if subject.kind == "person" else "own"
        view.form = Form(shown=subject.name, basis=basis, valid_from=today)
        return view.page("right_new.html", **_right_form(view, session, subject))


def _right_form(view: View, session: Session, subject: Subject, parked: str = "", document: str = "") -> dict[str, Any]:
    """What the form of a rights record shows; `parked` is a document that waits beside it, `document` its name."""
    rules = policies.current(session, view.project) if view.project else None
    needed = rules is not None and rules.document
    return {"subject": subject, "purposes": PURPOSES, "needed": needed, "parked": parked, "document_name": document}


@routes.post(f"{ONE}/rights")
def new_right(view: ViewOf) -> Response:
    """Add a rights record. Where something is wrong, the document waits beside the form."""
    parked = ""
    try:
        parked = park_document(view)
        record, found = _record(view)
        with view.reading() as session:
            raise_all(found + rights.wrong(session, _subject(view, session), record, bool(parked)))
        with view.studio.storage.parked(parked) as staged, view.writing() as session:
            document = staged_document(staged, _document_name(view))
            rights.add(session, view.actor, _subject(view, session), record, document)
    except Problem as problem:
        with view.reading() as session:
            subject = _subject(view, session)
            name = _document_name(view) if parked else ""
            return view.wrong("right_new.html", problem, **_right_form(view, session, subject, parked, name))
    return view.go(f"{_address(view)}#rights", N_("The rights record was added. Another person has to check it."))


def park_document(view: View) -> str:
    """The document of this form, or of the time before; "" where there is none."""
    for _, source in view.form.files("document"):
        rights.document_type(source.read(8))
        source.seek(0)
        return view.studio.storage.park(source, rights.DOCUMENT_BYTES)
    return view.form["parked"]


def _document_name(view: View) -> str:
    return next((name for name, _ in view.form.files("document")), view.form["document_name"])


def staged_document(staged: Staged | None, name: str) -> tuple[Staged, str, str] | None:
    """A parked document as `rights.add` takes it: with its name and its media type. Raises Problem for another kind of file."""
    if staged is None:
        return None
    with staged.path.open("rb") as file:
        return staged, name, rights.document_type(file.read(8))


def _record(view: View) -> tuple[rights.Record, list[Problem]]:
    """The record as it was typed, and what is wrong with its days."""
    form, zone, found = view.form, view.studio.settings.zone, list[Problem]()
    begin: datetime | None = None
    end: datetime | None = None
    with collecting(found):
        begin = forms.begin_of(form["valid_from"], "valid_from", zone)
    with collecting(found):
        end = forms.end_of(form["valid_until"], "valid_until", zone) if form["valid_until"].strip() else None
    record = rights.Record(
        form["shown"], form["owner"], form["basis"], form.all("uses"), form.all("territories"), begin or now(), end
    )
    return record, found


def _right(view: View, session: Session) -> Right:
    return rights.find(_subject(view, session), view.param("right_id"))


@routes.get(f"{ONE}/rights/{{right_id}}/document")
def document_file(view: ViewOf) -> Response:
    """The document of a right, to be saved: it is shown by nothing of ours."""
    with view.reading() as session:
        right = rights.document(session, view.actor, view.project_id, view.param("subject_id"), view.param("right_id"))
        return file_response(view, session, right.document or "", right.document_name or "document")


@routes.post(f"{ONE}/rights/{{right_id}}/check")
def check_right(view: ViewOf) -> Response:
    """Say that a record is true."""
    with view.writing() as session:
        rights.check(session, view.actor, _right(view, session), view.project_id)
    return view.go(f"{_address(view)}#rights", N_("The record was checked. The subject can be used now."))


@routes.get(f"{ONE}/rights/{{right_id}}/revoke")
def revoke_page(view: ViewOf) -> Response:
    """What a revocation would stop, and the form for its reason."""
    with view.reading() as session:
        return _revoke_page(view, session)


def _revoke_page(view: View, session: Session, problem: Problem | None = None) -> Response:
    subject = _subject(view, session)
    right = rights.find(subject, view.param("right_id"))
    jobs, videos = rights.consequences(session, right)
    values = {"subject": subject, "right": right, "jobs": jobs, "videos": videos}
    return view.wrong("right_revoke.html", problem, **values) if problem else view.page("right_revoke.html", **values)


@routes.post(f"{ONE}/rights/{{right_id}}/revoke")
def revoke_right(view: ViewOf) -> Response:
    """End a right."""
    try:
        with view.writing() as session:
            rights.revoke(session, view.actor, _right(view, session), view.project_id, view.form["reason"])
    except Problem as problem:
        with view.reading() as session:
            return _revoke_page(view, session, problem)
    return view.go(f"{_address(view)}#rights", N_("The right was revoked. Its jobs were stopped and its videos marked."))
