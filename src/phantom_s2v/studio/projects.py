"""Projects, their members, and the people of the studio."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from phantom_s2v.studio import audit, certificates
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.database import Page, paged
from phantom_s2v.studio.kpis import check as check_kpis
from phantom_s2v.studio.problems import CHANGED, Conflict, NotFound, Problem, collecting, raise_all
from phantom_s2v.studio.schema import Credential, Member, Project, Right, Role, Subject, SubjectImage, User, Video, VideoState
from phantom_s2v.studio.sign_in import make_link, normal_email
from phantom_s2v.studio.texts import line, text

LANGUAGES = ("en", "ja")
FIRST = "admin@studio.invalid"  # the first administrator, until they have said who they are
LATEST = 6  # videos on a project's overview
MOST = 100  # that a count on it goes up to
CURRENCIES = ("EUR", "JPY", "USD", "GBP", "CHF", "CNY", "KRW", "SGD", "TWD", "AUD", "CAD")


def add_user(
    session: Session, actor: Actor, email: str, name: str, language: str = "en", admin: bool = False
) -> tuple[User, str]:
    """A new person, and the token of the one-time link by which they set their password."""
    actor.must_be_admin()
    email, name = normal_email(email), line(name, "name")
    if language not in LANGUAGES:
        raise Problem("The language must be one of %(languages)s.", "language", languages=", ".join(LANGUAGES))
    if session.scalar(select(User.id).where(User.email == email)):
        raise Conflict("There is a person with this e-mail address already.", "email")
    user = User(email=email, name=name, language=language, admin=admin)
    session.add(user)
    session.flush()
    audit.append(session, actor.id, "user added", user.id, admin=admin)
    return user, make_link(session, actor, user)


def has_account(session: Session, email: str) -> bool:
    """Whether there is a person of this e-mail address. Raises Problem for what is none."""
    return session.scalar(select(User.id).where(User.email == normal_email(email))) is not None


def introduce(session: Session, user: User, email: str, name: str, organization: str) -> None:
    """The first administrator says who they are, and for whom the studio signs; a certificate that is there already stays."""
    found: list[Problem] = []
    with collecting(found):
        user.name = line(name, "name")
    with collecting(found):
        user.email = normal_email(email)
        if user.email.endswith("@studio.invalid"):
            raise Problem("This is not an e-mail address.", "email")
    with collecting(found):
        line(organization, "organization", certificates.LONGEST_NAME)
    raise_all(found)
    audit.append(session, user.id, "administrator introduced", user.id)
    certificates.establish(session, Actor(user.id, user.name, user.language, user.admin), organization, replace=False)


def people(session: Session, actor: Actor, after: str | None = None) -> Page[User]:
    """Everyone in the studio who was not erased, by e-mail address."""
    actor.must_be_admin()
    return paged(session, select(User).where(User.name != ""), [User.email], after, size=100, descending=False)


def create(session: Session, actor: Actor, name: str) -> Project:
    """A new project. Its maker among the administrators adds its members."""
    actor.must_be_admin()
    name = line(name, "name")
    if session.scalar(select(Project.id).where(Project.name == name)):
        raise Conflict("There is a project of this name already.", "name")
    project = Project(name=name)
    session.add(project)
    session.flush()
    audit.append(session, actor.id, "project created", project.id)
    return project


def mine(session: Session, actor: Actor, after: str | None = None) -> Page[Project]:
    """Projects that a person works in, newest first; an administrator of the studio sees all."""
    query = select(Project)
    if not actor.admin:
        query = query.where(Project.id.in_(select(Member.project_id).where(Member.user_id == actor.id)))
    return paged(session, query, [Project.created_at, Project.id], after)


def members(session: Session, actor: Actor, project_id: str, after: str | None = None) -> Page[tuple[User, list[Role]]]:
    """People of a project with their roles, by name."""
    actor.must(project_id)
    mine = select(Member.user_id).where(Member.project_id == project_id)
    page = paged(session, select(User).where(User.id.in_(mine)), [User.name, User.id], after, descending=False)
    query = select(Member).where(Member.project_id == project_id, Member.user_id.in_([user.id for user in page.items]))
    roles: dict[str, list[Role]] = {}
    for member in session.scalars(query):
        roles.setdefault(member.user_id, []).append(member.role)
    return Page([(user, roles[user.id]) for user in page.items], page.following)


def set_roles(session: Session, actor: Actor, project_id: str, email: str, roles: Sequence[Role]) -> User:
    """Give a person of the studio the roles in a project that are listed, and no other; none of them removes the person."""
    actor.must(project_id, Role.ADMIN)
    user = session.scalar(select(User).where(User.email == normal_email(email), User.active))
    if user is None:
        raise NotFound("There is nobody with this e-mail address. An administrator of the studio adds people.", field="email")
    before = {member.role: member for member in _memberships(session, project_id, user.id)}
    for role in before.keys() - set(roles):
        session.delete(before[role])
    session.add_all(Member(project_id=project_id, user_id=user.id, role=role) for role in set(roles) - before.keys())
    session.flush()
    _keep_an_admin(session, project_id, before.keys() - set(roles))
    audit.append(session, actor.id, "roles set", project_id, user=user.id, roles=sorted(roles))
    return user


def _memberships(session: Session, project_id: str, user_id: str) -> Sequence[Member]:
    return session.scalars(select(Member).where(Member.project_id == project_id, Member.user_id == user_id)).all()


def _keep_an_admin(session: Session, project_id: str, removed: set[Role]) -> None:
    """A project that has an administrator keeps one."""
    if Role.ADMIN in removed:
        query = select(func.count()).select_from(Member).where(Member.project_id == project_id, Member.role == Role.ADMIN)
        if not session.scalar(query):
            raise Conflict("A project keeps at least one administrator.", "roles")


def set_language(session: Session, actor: Actor, language: str) -> None:
    """The language that a person reads pages in."""
    user = session.get(User, actor.must_be_person())
    if user is not None and language in LANGUAGES:
        user.language = language
        audit.append(session, actor.id, "language chosen", user.id, language=language)


def person(session: Session, actor: Actor, user_id: str) -> User:
    """A person of the studio. Raises NotFound where there is none, or no longer."""
    actor.must_be_admin()
    user = session.get(User, user_id)
    if user is None or not user.name:
        raise NotFound
    return user


def names(session: Session, people: Collection[str | None]) -> dict[str, str]:
    """Names of people by id; "" of one who was erased."""
    rows = session.execute(select(User.id, User.name).where(User.id.in_(set(people) - {None}))).all()
    return {row.id: row.name for row in rows}


def set_person(session: Session, actor: Actor, user: User, active: bool, admin: bool) -> None:
    """Whether a person may sign in, and administers the studio. Nobody locks themselves out."""
    actor.must_be_admin()
    if user.id == actor.id and not (active and admin):
        raise Conflict("You cannot take your own rights away; another administrator can.")
    if not active:
        session.execute(delete(Credential).where(Credential.user_id == user.id))
    user.active, user.admin = active, admin
    audit.append(session, actor.id, "person changed", user.id, active=active, admin=admin)


@dataclass(frozen=True)
class ProjectSettings:
    """What a project's administrators set. Money is in the smallest unit of the currency; no budget is no limit."""

    name: str
    model: str
    currency: str
    price_per_hour: int
    budget: int | None
    kpis: str  # TOML, as `phantom evaluate score --kpi` reads it; "" for none


def stamp(project: Project) -> str:
    """What a project's settings are, in a word: who saves others says which they had before them."""
    values = (project.name, project.model, project.currency, project.price_per_hour, project.budget, project.kpis)
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def change(session: Session, actor: Actor, project_id: str, settings: ProjectSettings, based_on: str = "") -> None:
    """Other settings of a project. Raises Problem beside the field, and Conflict where the settings are no longer those of
    the stamp `based_on`.
    """
    actor.must(project_id, Role.ADMIN)
    project = session.get(Project, project_id)
    if project is None:
        raise NotFound
    if based_on and based_on != stamp(project):
        raise Conflict(CHANGED)
    name, model = line(settings.name, "name"), line(settings.model, "model")
    if session.scalar(select(Project.id).where(Project.name == name, Project.id != project_id)):
        raise Conflict("There is a project of this name already.", "name")
    if project.spent and settings.currency != project.currency:
        raise Conflict("The currency cannot be changed any more, since money was spent in it.", "currency")
    kpis = text(settings.kpis, "kpis", 100_000, needed=False)
    check_kpis(kpis)
    project.name, project.model, project.currency, project.kpis = name, model, settings.currency, kpis
    project.price_per_hour, project.budget = settings.price_per_hour, settings.budget
    said = {"model": model, "price_per_hour": settings.price_per_hour, "budget": settings.budget}
    audit.append(session, actor.id, "project changed", project_id, **said, kpis=hashlib.sha256(kpis.encode()).hexdigest())


@dataclass(frozen=True)
class Progress:
    """What a project has: what its overview says is to be done next."""

    roles: frozenset[Role]
    people: int
    subjects: int
    usable: int  # subjects with an image and a checked right
    unchecked: int  # rights records that nobody has checked
    submitted: int  # videos that wait for a review
    sent_back: int  # videos of the person that were sent back, counted up to MOST
    videos: Sequence[Video]  # the latest


def progress(session: Session, actor: Actor, project_id: str) -> Progress:
    """How far a project is, in three queries."""
    actor.must(project_id)
    rows = session.execute(select(Member.user_id, Member.role).where(Member.project_id == project_id)).all()
    of_project = (Subject.project_id == project_id) & Subject.erased_at.is_(None)
    checked = exists().where(Right.subject_id == Subject.id, Right.checked_at.is_not(None), Right.revoked_at.is_(None))
    pictured = exists().where(SubjectImage.subject_id == Subject.id)
    waiting = select(func.count()).select_from(Right).join(Subject, Right.subject_id == Subject.id)
    waiting = waiting.where(of_project, Right.checked_at.is_(None), Right.revoked_at.is_(None))
    count = select(func.count()).select_from(Subject).where(of_project)
    reviewed = select(func.count()).select_from(Video).where(Video.project_id == project_id, Video.state == VideoState.SUBMITTED)
    back = select(Video.id).where(Video.project_id == project_id, Video.state == VideoState.SENT_BACK, Video.user_id == actor.id)
    back = select(func.count()).select_from(back.limit(MOST).subquery())
    asked = (count, count.where(checked, pictured), waiting, reviewed, back)
    counts: tuple[int, ...] = tuple(session.execute(select(*(each.scalar_subquery() for each in asked))).one())
    subjects, usable, unchecked, submitted, sent_back = counts
    latest = select(Video).where(Video.project_id == project_id).order_by(Video.created_at.desc(), Video.id.desc()).limit(LATEST)
    videos = session.scalars(latest).all()
    roles = frozenset(role for _, role in rows)
    people = len({user for user, _ in rows})
    return Progress(roles, people, subjects, usable, unchecked, submitted, sent_back, videos)
