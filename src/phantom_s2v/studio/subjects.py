"""Subjects: who or what is shown, with reference images."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from phantom_s2v.studio import access, audit
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.context import studio_of
from phantom_s2v.studio.database import Page, paged
from phantom_s2v.studio.policies import KINDS
from phantom_s2v.studio.problems import NotFound, Problem, collecting, raise_all
from phantom_s2v.studio.schema import Role, Subject, SubjectImage
from phantom_s2v.studio.storage import Staged
from phantom_s2v.studio.texts import line
from phantom_s2v.studio.uploads import Decoded

MAX_IMAGES = 12
PNG, JPEG = "image/png", "image/jpeg"


def create(session: Session, actor: Actor, project_id: str, name: str, kind: str) -> Subject:
    """A new subject, without images and rights yet."""
    actor.must(project_id, Role.MAKER, Role.ADMIN)
    subject = Subject(project_id=project_id, created_by=actor.must_be_person(), **_checked(name, kind))
    session.add(subject)
    session.flush()
    audit.append(session, actor.id, "subject created", subject.id, project=project_id, kind=kind)
    return subject


def change(session: Session, actor: Actor, subject: Subject, name: str, kind: str) -> None:
    """Another name or kind."""
    actor.must(subject.project_id, Role.MAKER, Role.ADMIN)
    values = _checked(name, kind)
    subject.name, subject.kind = values["name"], values["kind"]
    audit.append(session, actor.id, "subject changed", subject.id, kind=kind)


def _checked(name: str, kind: str) -> dict[str, str]:
    found: list[Problem] = []
    with collecting(found):
        name = line(name, "name")
    if kind not in KINDS:
        found.append(Problem("Please choose one of the list.", "kind"))
    raise_all(found)
    return {"name": name, "kind": kind}


def listed(session: Session, actor: Actor, project_id: str, after: str | None = None) -> Page[Subject]:
    """Subjects of a project, the newest first, with images and rights."""
    actor.must(project_id)
    query = select(Subject).where(Subject.project_id == project_id, Subject.erased_at.is_(None))
    return paged(session, query, [Subject.created_at, Subject.id], after)


def find(session: Session, actor: Actor, project_id: str, subject_id: str) -> Subject:
    """A subject of a project. Raises NotFound for any other, and for one that was erased."""
    actor.must(project_id)
    subject = access.find(session, Subject, subject_id, project_id, options=[joinedload(Subject.images)])
    if subject.erased_at is not None:
        raise NotFound
    return subject


def image(session: Session, actor: Actor, project_id: str, subject_id: str, image_id: str) -> SubjectImage:
    """An image of a subject of a project, in one query. Raises NotFound for any other."""
    actor.must(project_id)
    query = select(SubjectImage).join(Subject, SubjectImage.subject_id == Subject.id)
    query = query.where(SubjectImage.id == image_id, Subject.id == subject_id, Subject.project_id == project_id)
    found = session.scalar(query)
    if found is None:
        raise NotFound
    return found


def add_image(session: Session, actor: Actor, subject: Subject, decoded: Decoded, staged: tuple[Staged, Staged]) -> SubjectImage:
    """Add an image, decoded, with its staged files: itself and its thumbnail."""
    actor.must(subject.project_id, Role.MAKER, Role.ADMIN)
    if len(subject.images) >= MAX_IMAGES:
        raise Problem("A subject has at most %(most)d images. Remove one first.", "images", most=MAX_IMAGES)
    storage = studio_of(session).storage
    last = session.scalar(select(func.max(SubjectImage.position)).where(SubjectImage.subject_id == subject.id))
    added = SubjectImage(
        subject_id=subject.id, position=0 if last is None else last + 1, width=decoded.width, height=decoded.height,
        blob=storage.keep(session, staged[0], PNG), thumbnail=storage.keep(session, staged[1], JPEG), warnings=decoded.warnings,
    )  # fmt: skip
    subject.images.append(added)
    session.flush()
    audit.append(session, actor.id, "image added", added.id, subject=subject.id, file=audit.of_file(session, added.blob))
    return added


def remove_image(session: Session, actor: Actor, subject: Subject, image_id: str) -> None:
    """Remove an image. Jobs keep the file that they were queued with."""
    actor.must(subject.project_id, Role.MAKER, Role.ADMIN)
    found = image(session, actor, subject.project_id, subject.id, image_id)
    files = {found.blob, found.thumbnail}
    session.delete(found)
    audit.append(session, actor.id, "image removed", image_id, subject=subject.id)
    studio_of(session).storage.forget(session, files)
