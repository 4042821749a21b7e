"""Rights records: who or what is shown, with whose permission, for what, where and until when; and what follows when they end."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session, selectinload

from phantom_s2v.studio import audit, queue, webhooks
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.context import studio_of
from phantom_s2v.studio.database import Page, paged
from phantom_s2v.studio.notices import tell
from phantom_s2v.studio.problems import N_, Conflict, Forbidden, NotFound, Problem, collecting, raise_all
from phantom_s2v.studio.schema import Job, JobSubject, Member, Project, Right, Role, Subject, Video, now
from phantom_s2v.studio.storage import Staged
from phantom_s2v.studio.territories import TERRITORIES, uncovered
from phantom_s2v.studio.texts import line, text

if TYPE_CHECKING:
    from phantom_s2v.studio.policies import Rules

BASES = (N_("own"), N_("license"), N_("consent"))
WARNINGS = (90, 30, 14)  # days before a right ends
CHECKERS = (Role.REVIEWER, Role.APPROVER, Role.ADMIN)
REVOKED, EXPIRED = N_("a right behind it was revoked"), N_("a right behind it has expired")
PDF, PNG, JPEG, ZIP = b"%PDF-", b"\x89PNG\r\n", b"\xff\xd8\xff", b"PK\x03\x04"
DOCUMENTS = {PDF: "application/pdf", PNG: "image/png", JPEG: "image/jpeg", ZIP: "application/zip"}
DOCUMENT_BYTES = 20 << 20


@dataclass(frozen=True)
class Record:
    """What a person types of a right."""

    shown: str
    owner: str
    basis: str
    uses: Sequence[str]
    territories: Sequence[str]
    valid_from: datetime
    valid_until: datetime | None = None  # None: without end


def state(right: Right, at: datetime | None = None) -> str:
    """How a right stands: revoked, expired, unchecked, "not yet", ending (within 90 days) or valid."""
    at = at or now()
    if right.revoked_at is not None:
        return "revoked"
    if right.valid_until is not None and right.valid_until <= at:
        return "expired"
    if right.checked_at is None:
        return "unchecked"
    if right.valid_from > at:
        return "not yet"
    return "ending" if right.valid_until is not None and right.valid_until - at <= timedelta(days=WARNINGS[0]) else "valid"


def is_valid(right: Right, at: datetime | None = None) -> bool:
    """Whether a right holds now, or at a moment."""
    return state(right, at) in ("valid", "ending")


def days_left(right: Right, at: datetime | None = None) -> int | None:
    """Whole days until a right ends; None where it does not."""
    return None if right.valid_until is None else max(0, (right.valid_until - (at or now())).days)


def chosen(subject: Subject, rules: "Rules", purpose: str, territories: Collection[str]) -> Right | None:
    """The right under which a subject may be shown for a purpose in territories; of several the one that holds longest."""
    fitting = [right for right in subject.rights if is_valid(right) and not _short(right, subject, rules, purpose, territories)]
    return max(fitting, key=lambda right: (right.valid_until is None, right.valid_until or now()), default=None)


def _short(right: Right, subject: Subject, rules: "Rules", purpose: str, territories: Collection[str]) -> bool:
    """Whether a right does not reach as far as is wanted, or is not of the form that the policy asks for."""
    formal = (rules.document and right.document is None) or (subject.kind in rules.consent and right.basis != "consent")
    return formal or purpose not in right.uses or bool(uncovered(territories, right.territories))


def lacking(subject: Subject, rules: "Rules", purpose: str, territories: Collection[str]) -> Problem:
    """Why no right of a subject will do, in one sentence: of the record that comes nearest."""
    valid = [right for right in subject.rights if is_valid(right)]
    name = subject.name
    if not subject.rights:
        return Problem("%(name)s has no rights record yet.", "subjects", name=name)
    if not valid:
        return Problem(_WHY_NOT[state(subject.rights[-1])], "subjects", name=name)
    right = valid[-1]
    if rules.document and right.document is None:
        return Problem("The rights record of %(name)s has no document, which the policy asks for.", "subjects", name=name)
    if subject.kind in rules.consent and right.basis != "consent":
        return Problem(
            "The policy asks for the consent of %(name)s; the rights record is of another kind.", "subjects", name=name
        )
    if purpose not in right.uses:
        return Problem("The rights of %(name)s do not cover this purpose.", "subjects", name=name)
    names = uncovered(territories, right.territories)
    return Problem("The rights of %(name)s do not cover these territories: %(names)s.", "subjects", name=name, names=names)


_WHY_NOT = {
    "revoked": N_("The rights of %(name)s were revoked."),
    "expired": N_("The rights of %(name)s have expired."),
    "unchecked": N_("Nobody has checked the rights record of %(name)s yet."),
    "not yet": N_("The rights of %(name)s have not begun yet."),
}


def document_type(head: bytes) -> str:
    """Media type of a document by its first bytes. Raises Problem for what is none of those taken."""
    for mark, kind in DOCUMENTS.items():
        if head.startswith(mark):
            return kind
    raise Problem("The document must be a PDF, PNG, JPEG or Word (.docx) file.", "document")


def add(
    session: Session, actor: Actor, subject: Subject, record: Record, document: tuple[Staged, str, str] | None = None
) -> Right:
    """Add a rights record to a subject; another person checks it. `document`: staged file, its name, its media type.

    Nothing of a record is ever changed: what is wrong is revoked and entered anew.
    """
    actor.must(subject.project_id, Role.MAKER, *CHECKERS)
    raise_all(wrong(session, subject, record, document is not None))
    values = checked(record)
    right = Right(project_id=subject.project_id, subject_id=subject.id, created_by=actor.must_be_person(), **values)
    if document is not None:
        staged, name, kind = document
        right.document = studio_of(session).storage.keep(session, staged, kind)
        right.document_name = line(name or "document", "document", 255)
    session.add(right)
    session.flush()
    audit.append(
        session, actor.id, "right added", right.id, subject=subject.id, basis=right.basis, uses=right.uses,
        territories=right.territories, until=right.valid_until.isoformat() if right.valid_until else None,
        document=audit.of_file(session, right.document) if right.document else None,
    )  # fmt: skip
    return right


def wrong(session: Session, subject: Subject, record: Record, document: bool) -> list[Problem]:
    """What is wrong with a record, with a document or without: also what the policy in force asks for and it lacks, as it could
    never be used, and nothing of it can be changed.
    """
    from phantom_s2v.studio.policies import current

    found = list[Problem]()
    with collecting(found):
        checked(record)
    rules = current(session, session.get_one(Project, subject.project_id))
    if rules and rules.document and not document:
        found.append(Problem("The policy of this project asks for the document.", "document"))
    if rules and subject.kind in rules.consent and record.basis != "consent":
        found.append(Problem("The policy of this project asks for the written consent of who is shown.", "basis"))
    return found


def checked(record: Record) -> dict[str, object]:
    """The values of a record, each list in its order. Raises Problems beside the fields."""
    from phantom_s2v.studio.policies import PURPOSES

    found: list[Problem] = []
    values: dict[str, object] = {"basis": record.basis, "valid_from": record.valid_from, "valid_until": record.valid_until}
    for name in ("shown", "owner"):
        with collecting(found):
            values[name] = text(getattr(record, name), name, 1000)
    if record.basis not in BASES:
        found.append(Problem("Please choose one of the list.", "basis"))
    for name, allowed in (("uses", PURPOSES), ("territories", TERRITORIES)):
        given = getattr(record, name)
        if not given or set(given) - set(allowed):
            found.append(Problem("Please choose at least one.", name))
        values[name] = [each for each in allowed if each in given]
    if record.valid_until is not None and record.valid_until <= record.valid_from:
        found.append(Problem("The end must be after the beginning.", "valid_until"))
    raise_all(found)
    return values


def check(session: Session, actor: Actor, right: Right, project_id: str) -> None:
    """Say that one has seen the document and that the record is true. Nobody checks what they entered themselves."""
    actor.must(project_id, *CHECKERS)
    if right.created_by == actor.must_be_person():
        raise Forbidden("You entered this record, so another person has to check it.")
    if right.checked_at is not None or right.revoked_at is not None:
        raise Conflict("This record was checked or revoked already.")
    right.checked_by, right.checked_at = actor.id, now()
    audit.append(session, actor.id, "right checked", right.id)
    _emit(session, "right.checked", right, project_id)


def revoke(session: Session, actor: Actor, right: Right, project_id: str, reason: str) -> None:
    """End a right now. Its jobs stop, queued and running ones, and every video made under it is marked."""
    actor.must(project_id, *CHECKERS)
    if right.revoked_at is not None:
        raise Conflict("This record was revoked already.")
    right.revoke_reason = text(reason, "reason", 1000)
    right.revoked_by, right.revoked_at = actor.must_be_person(), now()
    audit.append(session, actor.id, "right revoked", right.id)
    _end(session, right, project_id, REVOKED)


def _end(session: Session, right: Right, project_id: str, why: str) -> None:
    """Stop the jobs under a right and mark their videos; makers and administrators are notified."""
    under = select(JobSubject.job_id).where(JobSubject.right_id == right.id)
    jobs = queue.stop(session, [right.id], why)
    marked = session.execute(update(Video).where(Video.job_id.in_(under), Video.marked == "").values(marked=why))
    videos = getattr(marked, "rowcount", 0)
    audit.append(session, None, "videos marked", right.id, count=videos)
    _emit(session, "right.revoked" if why == REVOKED else "right.expired", right, project_id, jobs=len(jobs), videos=videos)
    makers = set(session.scalars(select(Video.user_id).where(Video.job_id.in_(under)).distinct())) | {job.user_id for job in jobs}
    code = "right revoked" if why == REVOKED else "right expired"
    name = session.scalar(select(Subject.name).where(Subject.id == right.subject_id)) or ""
    values = {"project": project_id, "subject": right.subject_id, "name": name, "jobs": len(jobs), "videos": videos}
    tell(session, makers | _admins(session, project_id), code, **values)


def _emit(session: Session, event: str, right: Right, project_id: str, **values: object) -> None:
    webhooks.emit(session, project_id, event, right=right.id, subject=right.subject_id, **values)


def _admins(session: Session, project_id: str) -> set[str]:
    query = select(Member.user_id).where(Member.project_id == project_id, Member.role == Role.ADMIN)
    return set(session.scalars(query))


def sweep(session: Session, at: datetime | None = None) -> int:
    """Warn of rights that end within 90, 30 and 14 days, once each, and see to those that have ended; how many.

    A right that has ended while another one covers the same jobs hands them over, so that renewing in time stops nothing.
    """
    at = at or now()
    reached = [
        and_(Right.valid_until <= at + timedelta(days=days), or_(Right.warned_days.is_(None), Right.warned_days > days))
        for days in (*WARNINGS, 0)
    ]
    query = select(Right, Subject).join(Subject, Right.subject_id == Subject.id).where(Right.revoked_at.is_(None), or_(*reached))
    query = query.order_by(Right.valid_until).limit(1000)
    seen = 0
    for right, subject in session.execute(query).all():
        due = _due(right, at)
        right.warned_days, seen = due, seen + 1
        if due == 0:
            audit.append(session, None, "right expired", right.id)
            _hand_over(session, right, subject)
            _end(session, right, subject.project_id, EXPIRED)
        else:
            people = {right.created_by} | _admins(session, subject.project_id)
            values = {"project": subject.project_id, "subject": subject.id, "name": subject.name, "days": days_left(right, at)}
            tell(session, people, "right ends", **values)
            _emit(session, "right.expiring", right, subject.project_id, days=values["days"])
    return seen


def _due(right: Right, at: datetime) -> int:
    """The warning that is due, the least that was reached: 90, 30 or 14 days, 0 once the right has ended."""
    assert right.valid_until is not None
    left = right.valid_until - at
    return min(days for days in (*WARNINGS, 0) if left <= timedelta(days=days))


def _hand_over(session: Session, right: Right, subject: Subject) -> None:
    """Jobs under a right that has ended go over to another of the subject that covers them."""
    from phantom_s2v.studio.policies import of_version

    others = [other for other in subject.rights if other.id != right.id and is_valid(other)]
    if not others:
        return
    for link, job in session.execute(
        select(JobSubject, Job).join(Job, JobSubject.job_id == Job.id).where(JobSubject.right_id == right.id)
    ):
        rules = of_version(session, job.project_id, job.policy_version)
        heir = chosen(subject, rules, job.purpose, job.territories)
        if heir is not None:
            link.right_id = heir.id
            audit.append(session, None, "job under another right", job.id, right=heir.id)
    session.flush()


def ending(session: Session, actor: Actor, project_id: str, after: str | None = None) -> Page[Right]:
    """Rights of a project that have an end, the nearest first, revoked ones apart."""
    actor.must(project_id)
    query = select(Right).where(Right.project_id == project_id, Right.valid_until.is_not(None), Right.revoked_at.is_(None))
    return paged(session, query, [Right.valid_until, Right.id], after, descending=False)


def find(subject: Subject, right_id: str) -> Right:
    """A right of a subject. Raises NotFound for any other."""
    found = next((right for right in subject.rights if right.id == right_id), None)
    if found is None:
        raise NotFound
    return found


def document(session: Session, actor: Actor, project_id: str, subject_id: str, right_id: str) -> Right:
    """A right of a project's subject that has a document, in one query. Raises NotFound for any other."""
    actor.must(project_id)
    query = select(Right).join(Subject, Right.subject_id == Subject.id)
    query = query.where(Right.id == right_id, Subject.id == subject_id, Subject.project_id == project_id)
    found = session.scalar(query.where(Right.document.is_not(None)))
    if found is None:
        raise NotFound
    return found


def consequences(session: Session, right: Right) -> tuple[int, int]:
    """How many jobs would stop and how many videos be marked if a right ended now."""
    under = select(JobSubject.job_id).where(JobSubject.right_id == right.id)
    jobs = select(func.count()).select_from(Job).where(Job.id.in_(under), Job.state.in_(queue.OPEN)).scalar_subquery()
    videos = select(func.count()).select_from(Video).where(Video.job_id.in_(under)).scalar_subquery()
    found = session.execute(select(jobs, videos)).one()
    return found[0], found[1]


def with_rights(session: Session, project_id: str, keys: Iterable[str]) -> list[Subject]:
    """Subjects of a project by id, with images and rights, in the order of the ids; those that are gone are left out."""
    keys = list(keys)
    query = select(Subject).where(Subject.project_id == project_id, Subject.id.in_(keys))
    found = {
        subject.id: subject
        for subject in session.scalars(query.options(selectinload(Subject.images), selectinload(Subject.rights)))
    }
    return [found[key] for key in keys if key in found]
