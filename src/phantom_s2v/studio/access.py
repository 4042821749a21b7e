"""Who may do what: the person behind a request, and one table from every route to those who may ask for it.

A route without a row is refused, and a test walks the router. What a row allows, the services check again by role
(`Actor.must`), since commands and the API call them too.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.studio.problems import N_, Forbidden, NotFound, NotSignedIn
from phantom_s2v.studio.schema import Member, Project, Role, User

T = TypeVar("T")
NOT_YOURS = N_("Your role in this project does not allow this.")
ANYONE, SIGNED_IN, STUDIO_ADMIN = "anyone", "signed in", "studio admin"
MEMBERS = frozenset(Role)
MAKERS = frozenset({Role.MAKER})
REVIEWERS = frozenset({Role.REVIEWER, Role.APPROVER})
APPROVERS = frozenset({Role.APPROVER})
ADMINS = frozenset({Role.ADMIN})
MAKERS_AND_ADMINS = MAKERS | ADMINS
CHECKERS = frozenset({Role.REVIEWER, Role.APPROVER, Role.ADMIN})  # of rights records
Who = str | frozenset[Role]

RULES: dict[str, Who] = {
    # Health and signing in
    "GET /health": ANYONE,
    "GET /ready": ANYONE,
    "GET /metrics": STUDIO_ADMIN,
    "GET /static/{name:path}": ANYONE,
    "GET /sign-in": ANYONE,
    "POST /sign-in": ANYONE,
    "GET /link/{token}": ANYONE,
    "POST /link/{token}": ANYONE,
    "POST /sign-out": SIGNED_IN,
    "POST /language": ANYONE,
    # Projects
    "GET /": SIGNED_IN,
    "GET /projects/new": STUDIO_ADMIN,
    "POST /projects": STUDIO_ADMIN,
    "GET /projects/{project_id}": MEMBERS,
    "GET /projects/{project_id}/members": MEMBERS,
    "POST /projects/{project_id}/members": ADMINS,
    "GET /projects/{project_id}/settings": ADMINS,
    "POST /projects/{project_id}/settings": ADMINS,
    # Subjects and rights
    "GET /projects/{project_id}/subjects": MEMBERS,
    "GET /projects/{project_id}/subjects/new": MAKERS_AND_ADMINS,
    "POST /projects/{project_id}/subjects": MAKERS_AND_ADMINS,
    "GET /projects/{project_id}/subjects/{subject_id}": MEMBERS,
    "POST /projects/{project_id}/subjects/{subject_id}": MAKERS_AND_ADMINS,
    "POST /projects/{project_id}/subjects/{subject_id}/images": MAKERS_AND_ADMINS,
    "GET /projects/{project_id}/subjects/{subject_id}/images/{image_id}": MEMBERS,
    "GET /projects/{project_id}/subjects/{subject_id}/images/{image_id}/thumbnail": MEMBERS,
    "POST /projects/{project_id}/subjects/{subject_id}/images/{image_id}/remove": MAKERS_AND_ADMINS,
    "GET /projects/{project_id}/subjects/{subject_id}/rights/new": MEMBERS,
    "POST /projects/{project_id}/subjects/{subject_id}/rights": MEMBERS,
    "GET /projects/{project_id}/subjects/{subject_id}/rights/{right_id}/document": MEMBERS,
    "POST /projects/{project_id}/subjects/{subject_id}/rights/{right_id}/check": CHECKERS,
    "GET /projects/{project_id}/subjects/{subject_id}/rights/{right_id}/revoke": CHECKERS,
    "POST /projects/{project_id}/subjects/{subject_id}/rights/{right_id}/revoke": CHECKERS,
    "GET /projects/{project_id}/rights": MEMBERS,
    # Webhooks
    "GET /projects/{project_id}/webhooks": ADMINS,
    "POST /projects/{project_id}/webhooks": ADMINS,
    "GET /projects/{project_id}/webhooks/{webhook_id}": ADMINS,
    "POST /projects/{project_id}/webhooks/{webhook_id}/remove": ADMINS,
    # Policy
    "GET /projects/{project_id}/policy": MEMBERS,
    "GET /projects/{project_id}/policy/new": ADMINS,
    "POST /projects/{project_id}/policy": ADMINS,
    # People, notices, one's own account
    "GET /people": STUDIO_ADMIN,
    "POST /people": STUDIO_ADMIN,
    "POST /people/{user_id}": STUDIO_ADMIN,
    "POST /people/{user_id}/link": STUDIO_ADMIN,
    "GET /people/{user_id}/erase": STUDIO_ADMIN,
    "POST /people/{user_id}/erase": STUDIO_ADMIN,
    "GET /certificate": STUDIO_ADMIN,
    "POST /certificate": STUDIO_ADMIN,
    "GET /audit": STUDIO_ADMIN,
    "GET /notices": SIGNED_IN,
    "POST /notices/read": SIGNED_IN,
    "GET /account": SIGNED_IN,
    "POST /account": SIGNED_IN,
    "POST /account/tokens": SIGNED_IN,
    "POST /account/tokens/{sha256}/end": SIGNED_IN,
    # Generating
    "GET /projects/{project_id}/generate": MAKERS,
    "POST /projects/{project_id}/generate": MAKERS,
    "GET /projects/{project_id}/generate/{draft_id}": MAKERS,
    "GET /projects/{project_id}/generate/{draft_id}/look": MAKERS,
    "POST /projects/{project_id}/generate/{draft_id}/save": MAKERS,
    "POST /projects/{project_id}/generate/{draft_id}/run": MAKERS,
    "POST /projects/{project_id}/generate/{draft_id}/rephrase": MAKERS,
    "POST /projects/{project_id}/generate/{draft_id}/remove": MAKERS,
    "GET /projects/{project_id}/generate/{draft_id}/first-frame": MAKERS,
    "POST /projects/{project_id}/generate/{draft_id}/first-frame": MAKERS,
    "POST /projects/{project_id}/videos/{video_id}/again": MAKERS,
    "GET /projects/{project_id}/drafts": MAKERS,
    # Jobs and what comes of them
    "GET /projects/{project_id}/jobs": MEMBERS,
    "GET /projects/{project_id}/jobs/{job_id}": MEMBERS,
    "GET /projects/{project_id}/jobs/{job_id}/progress": MEMBERS,
    "GET /projects/{project_id}/jobs/{job_id}/preview": MEMBERS,
    "POST /projects/{project_id}/jobs/{job_id}/cancel": MAKERS_AND_ADMINS,
    "POST /projects/{project_id}/jobs/{job_id}/resume": MAKERS_AND_ADMINS,
    "GET /projects/{project_id}/videos/{video_id}/gate": MEMBERS,
    "POST /projects/{project_id}/videos/{video_id}/override": frozenset({Role.REVIEWER}),
    "GET /projects/{project_id}/videos/{video_id}/file": MEMBERS,
    "GET /projects/{project_id}/videos/{video_id}/poster": MEMBERS,
    "GET /projects/{project_id}/videos/{video_id}/frames/{number}": MEMBERS,
    "GET /projects/{project_id}/videos/{video_id}/references/{number}": MEMBERS,
    # Review, sign-off, export, verification
    "GET /projects/{project_id}/reviews": MEMBERS,
    "GET /projects/{project_id}/videos/{video_id}/review": MEMBERS,
    "POST /projects/{project_id}/videos/{video_id}/submit": MAKERS,
    "POST /projects/{project_id}/videos/{video_id}/comments": MEMBERS,
    "POST /projects/{project_id}/videos/{video_id}/comments/{comment_id}/resolve": MEMBERS,
    "GET /projects/{project_id}/videos/{video_id}/sign-off": MEMBERS,
    "POST /projects/{project_id}/videos/{video_id}/sign-off": REVIEWERS,
    "GET /projects/{project_id}/videos/{video_id}/export": MEMBERS,
    "POST /projects/{project_id}/videos/{video_id}/export": MAKERS | APPROVERS | ADMINS,
    "GET /projects/{project_id}/videos/{video_id}/exports/{export_id}/{part}": MEMBERS,
    "GET /projects/{project_id}/subjects/{subject_id}/erase": ADMINS,
    "POST /projects/{project_id}/subjects/{subject_id}/erase": ADMINS,
    "GET /verify": SIGNED_IN,
    "POST /verify": SIGNED_IN,
    # API
    "GET /api/v1/projects/{project_id}/members": MEMBERS,
    "PUT /api/v1/projects/{project_id}/members": ADMINS,
    "PUT /api/v1/projects/{project_id}/settings": ADMINS,
    "PUT /api/v1/projects/{project_id}/subjects/{subject_id}": MAKERS_AND_ADMINS,
    "GET /api/v1/projects/{project_id}/subjects/{subject_id}/images/{image_id}": MEMBERS,
    "DELETE /api/v1/projects/{project_id}/subjects/{subject_id}/images/{image_id}": MAKERS_AND_ADMINS,
    "POST /api/v1/projects/{project_id}/subjects/{subject_id}/erase": ADMINS,
    "GET /api/v1/projects/{project_id}/videos": MEMBERS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}": MEMBERS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/file": MEMBERS,
    "POST /api/v1/projects/{project_id}/videos/{video_id}/submit": MAKERS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/comments": MEMBERS,
    "POST /api/v1/projects/{project_id}/videos/{video_id}/comments": MEMBERS,
    "POST /api/v1/projects/{project_id}/videos/{video_id}/comments/{comment_id}/resolve": MEMBERS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/sign-off": MEMBERS,
    "POST /api/v1/projects/{project_id}/videos/{video_id}/sign-off": REVIEWERS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/exports": MEMBERS,
    "POST /api/v1/projects/{project_id}/videos/{video_id}/exports": MAKERS | APPROVERS | ADMINS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/exports/{export_id}/file": MEMBERS,
    "POST /api/v1/verify": SIGNED_IN,
    "GET /api/v1/projects/{project_id}/webhooks": ADMINS,
    "POST /api/v1/projects/{project_id}/webhooks": ADMINS,
    "DELETE /api/v1/projects/{project_id}/webhooks/{webhook_id}": ADMINS,
    "GET /api/v1/projects/{project_id}/webhooks/{webhook_id}/deliveries": ADMINS,
    "POST /api/v1/projects": STUDIO_ADMIN,
    "GET /api/v1/people": STUDIO_ADMIN,
    "POST /api/v1/people": STUDIO_ADMIN,
    "PUT /api/v1/people/{user_id}": STUDIO_ADMIN,
    "POST /api/v1/people/{user_id}/link": STUDIO_ADMIN,
    "GET /api/v1/notices": SIGNED_IN,
    "POST /api/v1/notices/read": SIGNED_IN,
    "GET /api/v1/certificate": STUDIO_ADMIN,
    "POST /api/v1/certificate": STUDIO_ADMIN,
    "GET /api/v1/projects/{project_id}/settings": ADMINS,
    "GET /api/v1/projects/{project_id}/rights": MEMBERS,
    "GET /api/v1/projects/{project_id}/policy/versions": MEMBERS,
    "GET /api/v1/projects/{project_id}/drafts": MAKERS,
    "DELETE /api/v1/projects/{project_id}/drafts/{draft_id}": MAKERS,
    "POST /api/v1/projects/{project_id}/drafts/{draft_id}/rephrase": MAKERS,
    "GET /api/v1/projects/{project_id}/drafts/{draft_id}/first-frame": MAKERS,
    "PUT /api/v1/projects/{project_id}/drafts/{draft_id}/first-frame": MAKERS,
    "DELETE /api/v1/projects/{project_id}/drafts/{draft_id}/first-frame": MAKERS,
    "POST /api/v1/projects/{project_id}/videos/{video_id}/again": MAKERS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/poster": MEMBERS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/frames/{number}": MEMBERS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/references/{number}": MEMBERS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/exports/{export_id}/{part}": MEMBERS,
    "GET /api/v1/projects/{project_id}/subjects/{subject_id}/images/{image_id}/thumbnail": MEMBERS,
    "GET /api/v1/projects/{project_id}/jobs/{job_id}/preview": MEMBERS,
    "POST /api/v1/people/{user_id}/erase": STUDIO_ADMIN,
    "GET /api/v1/audit": STUDIO_ADMIN,
    "GET /api/v1/openapi.json": SIGNED_IN,
    "GET /api/v1/projects": SIGNED_IN,
    "GET /api/v1/projects/{project_id}": MEMBERS,
    "GET /api/v1/projects/{project_id}/subjects": MEMBERS,
    "POST /api/v1/projects/{project_id}/subjects": MAKERS_AND_ADMINS,
    "GET /api/v1/projects/{project_id}/subjects/{subject_id}": MEMBERS,
    "POST /api/v1/projects/{project_id}/subjects/{subject_id}/images": MAKERS_AND_ADMINS,
    "GET /api/v1/projects/{project_id}/subjects/{subject_id}/rights": MEMBERS,
    "POST /api/v1/projects/{project_id}/subjects/{subject_id}/rights": MEMBERS,
    "POST /api/v1/projects/{project_id}/subjects/{subject_id}/documents": MEMBERS,
    "GET /api/v1/projects/{project_id}/subjects/{subject_id}/rights/{right_id}/document": MEMBERS,
    "POST /api/v1/projects/{project_id}/subjects/{subject_id}/rights/{right_id}/check": CHECKERS,
    "POST /api/v1/projects/{project_id}/subjects/{subject_id}/rights/{right_id}/revoke": CHECKERS,
    "GET /api/v1/projects/{project_id}/policy": MEMBERS,
    "PUT /api/v1/projects/{project_id}/policy": ADMINS,
    "POST /api/v1/projects/{project_id}/drafts": MAKERS,
    "GET /api/v1/projects/{project_id}/drafts/{draft_id}": MAKERS,
    "PUT /api/v1/projects/{project_id}/drafts/{draft_id}": MAKERS,
    "GET /api/v1/projects/{project_id}/drafts/{draft_id}/look": MAKERS,
    "POST /api/v1/projects/{project_id}/drafts/{draft_id}/run": MAKERS,
    "GET /api/v1/projects/{project_id}/jobs": MEMBERS,
    "GET /api/v1/projects/{project_id}/jobs/{job_id}": MEMBERS,
    "POST /api/v1/projects/{project_id}/jobs/{job_id}/cancel": MAKERS_AND_ADMINS,
    "POST /api/v1/projects/{project_id}/jobs/{job_id}/resume": MAKERS_AND_ADMINS,
    "GET /api/v1/projects/{project_id}/videos/{video_id}/gate": MEMBERS,
    "POST /api/v1/projects/{project_id}/videos/{video_id}/override": frozenset({Role.REVIEWER}),
}


@dataclass(frozen=True)
class Actor:
    """Who asks: a person with their roles in the project that the address names, or the studio itself (`SYSTEM`, no id)."""

    id: str | None
    name: str = ""
    language: str = "en"
    admin: bool = False  # of the whole studio, and so of every project
    project_id: str | None = None
    roles: frozenset[Role] = field(default_factory=frozenset)

    def must(self, project_id: str, *roles: Role) -> None:
        """Raise Forbidden unless the person has one of the roles in a project, or any role where none is given."""
        if self.id is None:
            return
        mine = self.roles if project_id == self.project_id else frozenset()
        if not mine & (frozenset(roles) or MEMBERS):
            raise Forbidden(NOT_YOURS)

    def has(self, *roles: Role) -> bool:
        """Whether the person has one of the roles in the project of the address; for what a page offers."""
        return self.id is None or bool(self.roles & frozenset(roles))

    def must_be_admin(self) -> None:
        """Raise Forbidden unless the person is an administrator of the studio."""
        if self.id is not None and not self.admin:
            raise Forbidden("Only an administrator of the studio may do this.")

    def must_be_person(self) -> str:
        """Their id. Raises Forbidden for the studio itself, which signs nothing."""
        if self.id is None:
            raise Forbidden(NOT_YOURS)
        return self.id


SYSTEM = Actor(None, admin=True)


def with_project(query: Any, project_id: str) -> Any:
    """A query of a person with two more columns, and a row for each role: the project, if any, and the role in it."""
    joined = (Member.project_id == Project.id) & (Member.user_id == User.id)
    return query.outerjoin(Project, Project.id == project_id).outerjoin(Member, joined).add_columns(Project, Member.role)


def enlisted(
    user: User, project_id: str | None, found: Iterable[tuple[Project | None, Role | None]]
) -> tuple[Actor, Project | None]:
    """A person with their roles in a project, by the columns of `with_project`, and the project where they have any.

    An administrator of the studio has the role of one in every project, and no other unless they are given it.
    """
    rows = [(project, role) for project, role in found if project is not None]
    roles = {role for _, role in rows if role is not None} | ({Role.ADMIN} if user.admin and rows else set())
    project = rows[0][0] if roles else None
    return Actor(user.id, user.name, user.language, user.admin, project_id, frozenset(roles)), project


def load(session: Session, user: User, project_id: str) -> tuple[Actor, Project | None]:
    """A person with their roles in a project, and the project where they have any."""
    rows: Any = session.execute(with_project(select(User.id).select_from(User).where(User.id == user.id), project_id))
    return enlisted(user, project_id, [(row[1], row[2]) for row in rows])


def check(who: Who | None, actor: Actor | None) -> None:
    """Raise NotSignedIn, NotFound or Forbidden where a row of the table does not allow it. Who is no member may not know that a
    project exists.
    """
    if who == ANYONE:
        return
    if actor is None:
        raise NotSignedIn("Please sign in.")
    if who is None:
        raise NotFound
    if who == STUDIO_ADMIN:
        actor.must_be_admin()
    elif isinstance(who, frozenset):
        if not actor.roles:
            raise NotFound
        if not actor.roles & who:
            raise Forbidden(NOT_YOURS)


def find(session: Session, kind: type[T], key: str, project_id: str, **options: Any) -> T:
    """A row of a table with `project_id`, of that project. Raises NotFound for any other."""
    found: Any = session.get(kind, key, **options)
    if found is None or found.project_id != project_id:
        raise NotFound
    return found


def roles_of(session: Session, project_id: str, user_id: str) -> Collection[Role]:
    """Roles of a person in a project."""
    return set(session.scalars(select(Member.role).where(Member.project_id == project_id, Member.user_id == user_id)))
