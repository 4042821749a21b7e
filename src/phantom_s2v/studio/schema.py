"""Tables of the studio. Every other table and file of a job, a video or a person is reached from here.

Ids are random and say nothing, so that they may stand in public files. Times are UTC. Files lie under their SHA-256 (`storage`).
What is written here is written by the functions of the studio's modules alone, each of which appends to the audit log in the same
transaction.
"""

import enum
import secrets
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, DateTime, Enum, ForeignKey, Index, LargeBinary, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator


class Utc(TypeDecorator[datetime]):
    """A time in UTC. SQLite keeps no zone, so it is taken off on the way in and put back on the way out."""

    impl = DateTime
    cache_ok = True

    @property
    def python_type(self) -> type[datetime]:
        """What a column holds; a decorator does not say it by itself, and `database.paged` asks."""
        return datetime

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Without its zone. Raises ValueError for a time that has none."""
        if value is not None and value.tzinfo is None:
            raise ValueError("times must have a zone")
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """With the zone UTC."""
        return value.replace(tzinfo=UTC) if value else None


class Role(enum.StrEnum):
    """What a person may do in a project. One person may have several, and nobody approves their own video."""

    MAKER = "maker"
    REVIEWER = "reviewer"
    APPROVER = "approver"
    ADMIN = "admin"


class JobState(enum.StrEnum):
    """Of a job. The last five are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"  # asked for; the worker ends it at its next step
    DONE = "done"  # every candidate's file and its hash exist
    CANCELLED = "cancelled"
    FAILED = "failed"
    STOPPED = "stopped"  # a right behind it was revoked or has expired
    SET_ASIDE = "set aside"  # its worker died three times without a newly saved step


class VideoState(enum.StrEnum):
    """Of a video on its way to sign-off."""

    MADE = "made"
    SUBMITTED = "submitted"
    SENT_BACK = "sent back"
    APPROVED = "approved"


def now() -> datetime:
    """The present time, UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """128 random bits in hex."""
    return secrets.token_hex(16)


class Base(DeclarativeBase):
    """Names of constraints are fixed, since Alembic needs them on SQLite."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: Utc,
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[Any]: JSON,
        **{
            kind: Enum(kind, native_enum=False, length=16, values_callable=lambda members: [m.value for m in members])
            for kind in (Role, JobState, VideoState)
        },
    }


Id = String(32)
Sha256 = String(64)


def _id() -> Mapped[str]:
    return mapped_column(Id, primary_key=True, default=new_id)


def _to(column: str, **options: Any) -> Mapped[Any]:
    return mapped_column(Id, ForeignKey(column), index=True, **options)


class Blob(Base):
    """A file under its SHA-256; rows go before files, so a file without a row is what a crash left and may be removed."""

    __tablename__ = "blobs"
    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True)
    size: Mapped[int]  # bytes
    media_type: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(default=now)


def _blob(**options: Any) -> Mapped[Any]:
    return mapped_column(Sha256, ForeignKey("blobs.sha256"), **options)


class User(Base):
    """A person who signs in. Without a password they have not yet followed their one-time link."""

    __tablename__ = "users"
    id: Mapped[str] = _id()
    email: Mapped[str] = mapped_column(String(254), unique=True)  # lower case
    name: Mapped[str] = mapped_column(String(200))
    password_hash: Mapped[str | None] = mapped_column(String(200))
    language: Mapped[str] = mapped_column(String(8), default="en")
    admin: Mapped[bool] = mapped_column(default=False)  # of the whole studio
    active: Mapped[bool] = mapped_column(default=True)
    served_at: Mapped[datetime | None]  # when a job of theirs last began, as of a project
    created_at: Mapped[datetime] = mapped_column(default=now)


class Credential(Base):
    """A secret of a person, kept as its SHA-256: a session, a one-time link, or a token of the API."""

    __tablename__ = "credentials"
    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True)
    user_id: Mapped[str] = _to("users.id")
    kind: Mapped[str] = mapped_column(String(16))  # session, link or token
    name: Mapped[str] = mapped_column(String(200), default="")
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]
    user: Mapped[User] = relationship(lazy="joined")
    __table_args__ = (Index(None, "user_id", "kind", "created_at"),)


class Project(Base):
    """What people work in. Money is in the smallest unit of its currency."""

    __tablename__ = "projects"
    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(String(200), unique=True)
    model: Mapped[str] = mapped_column(String(200), default="phantom-mini")
    kpis: Mapped[str] = mapped_column(Text, default="")  # the KPI file, TOML
    currency: Mapped[str] = mapped_column(String(3), default="EUR")
    price_per_hour: Mapped[int] = mapped_column(default=0)
    budget: Mapped[int | None]  # of all jobs together; None: no limit
    spent: Mapped[int] = mapped_column(default=0)
    served_at: Mapped[datetime | None]  # when a job of it last began: the queue serves the longest unserved first
    policy_version: Mapped[int] = mapped_column(default=0)  # the one in force; 0: none yet, nothing runs
    created_at: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (Index(None, "created_at", "id"),)


class Member(Base):
    """A role of a person in a project."""

    __tablename__ = "members"
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("projects.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"), primary_key=True, index=True)
    role: Mapped[Role] = mapped_column(primary_key=True)


class Policy(Base):
    """A version of a project's policy; none is ever changed."""

    __tablename__ = "policies"
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("projects.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    rules: Mapped[dict[str, Any]]  # see policies.Rules
    created_by: Mapped[str] = _to("users.id")
    created_at: Mapped[datetime] = mapped_column(default=now)


class Subject(Base):
    """Who or what is shown, with images and rights. `kind`: person, character, product, logo, animal, place or other."""

    __tablename__ = "subjects"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _to("projects.id")
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(16))
    created_by: Mapped[str] = _to("users.id")
    created_at: Mapped[datetime] = mapped_column(default=now)
    erased_at: Mapped[datetime | None]  # images and name are gone, the row stays for what refers to it
    images: Mapped[list["SubjectImage"]] = relationship(order_by="SubjectImage.position", lazy="selectin")
    rights: Mapped[list["Right"]] = relationship(order_by="Right.created_at", lazy="selectin", foreign_keys="Right.subject_id")
    __table_args__ = (Index(None, "project_id", "created_at", "id"),)


class SubjectImage(Base):
    """A reference image as it was decoded and written anew, without metadata."""

    __tablename__ = "subject_images"
    id: Mapped[str] = _id()
    subject_id: Mapped[str] = _to("subjects.id")
    position: Mapped[int]
    blob: Mapped[str] = _blob()
    thumbnail: Mapped[str] = _blob()
    width: Mapped[int]
    height: Mapped[int]
    warnings: Mapped[list[Any]] = mapped_column(default=list)  # [{"code", values...}], see images.warnings
    __table_args__ = (Index(None, "subject_id", "position"),)


class Right(Base):
    """Why a subject may be shown. It is valid while checked, begun, neither expired nor revoked; see rights.state."""

    __tablename__ = "rights"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _to("projects.id")  # the subject's
    subject_id: Mapped[str] = _to("subjects.id")
    shown: Mapped[str] = mapped_column(Text)
    owner: Mapped[str] = mapped_column(Text)
    basis: Mapped[str] = mapped_column(String(16))  # own, license, consent
    document: Mapped[str | None] = _blob()
    document_name: Mapped[str] = mapped_column(String(255), default="")
    uses: Mapped[list[str]]
    territories: Mapped[list[str]]
    valid_from: Mapped[datetime]
    valid_until: Mapped[datetime | None] = mapped_column(index=True)
    created_by: Mapped[str] = _to("users.id")
    created_at: Mapped[datetime] = mapped_column(default=now)
    checked_by: Mapped[str | None] = _to("users.id")
    checked_at: Mapped[datetime | None]
    revoked_by: Mapped[str | None] = _to("users.id")
    revoked_at: Mapped[datetime | None]
    revoke_reason: Mapped[str] = mapped_column(Text, default="")
    warned_days: Mapped[int | None]  # the last warning sent: 90, 30 or 14 days before; 0: of its expiry
    __table_args__ = (Index(None, "project_id", "valid_until", "id"), Index(None, "subject_id", "created_at"))


class Draft(Base):
    """What a maker is writing, kept with every change. `options` are those of `phantom generate`; see drafts."""

    __tablename__ = "drafts"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _to("projects.id")
    user_id: Mapped[str] = _to("users.id")
    prompt: Mapped[str] = mapped_column(Text, default="")
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    subjects: Mapped[list[str]] = mapped_column(default=list)  # ids, in the order of their places
    first_frame: Mapped[str | None] = _blob()
    purpose: Mapped[str] = mapped_column(String(100), default="")
    territories: Mapped[list[str]] = mapped_column(default=list)
    candidates: Mapped[int] = mapped_column(default=1)
    updated_at: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (Index(None, "project_id", "user_id", "updated_at", "id"),)


class Worker(Base):
    """A process that makes videos. It lives while its heartbeat is younger than the lease."""

    __tablename__ = "workers"
    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(String(32))
    offers: Mapped[dict[str, Any]]  # models, threads, instruction set: what a job may fix
    heartbeat_at: Mapped[datetime] = mapped_column(index=True)


class Job(Base):
    """A request being made into videos. What decides the pixels is fixed when it is queued; a lease says who runs it."""

    __tablename__ = "jobs"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _to("projects.id")
    user_id: Mapped[str] = _to("users.id")
    request: Mapped[dict[str, Any]]  # pipeline.request.Request, its files as hashes of blobs
    requires: Mapped[dict[str, Any]]  # model and hash of its weights, threads, instruction set
    purpose: Mapped[str] = mapped_column(String(100))
    territories: Mapped[list[str]]
    policy_version: Mapped[int]
    candidates: Mapped[int]
    state: Mapped[JobState] = mapped_column(default=JobState.QUEUED)
    reason: Mapped[str] = mapped_column(Text, default="")  # why it failed, stopped or was set aside
    candidate: Mapped[int] = mapped_column(default=0)  # the one being made
    step: Mapped[int] = mapped_column(default=0)  # saved steps of that candidate
    progress: Mapped[int] = mapped_column(default=0)  # steps of that candidate that are done, saved or not
    steps: Mapped[int]
    notes: Mapped[list[Any]] = mapped_column(default=list)  # what its readers must know: [{"code", values...}], see queue.note
    saved_state: Mapped[str | None] = _blob()  # tensors to go on from
    preview: Mapped[str | None] = _blob()
    deaths: Mapped[int] = mapped_column(default=0)  # of workers since the last newly saved step
    worker_id: Mapped[str | None] = _to("workers.id")
    lease: Mapped[int] = mapped_column(default=0)  # counts takings; who holds an older number may write nothing
    lease_until: Mapped[datetime | None]
    estimated_seconds: Mapped[float]
    seconds: Mapped[float] = mapped_column(default=0.0)  # running, waiting apart
    cost: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    user: Mapped[User] = relationship(lazy="raise")
    __table_args__ = (
        Index(None, "state", "lease_until"),
        Index(None, "state", "ended_at"),
        Index(None, "project_id", "state"),
        Index(None, "project_id", "created_at", "id"),
        Index(None, "user_id", "state"),
    )


class JobSubject(Base):
    """A subject of a job and the right that it ran under: what a revocation finds."""

    __tablename__ = "job_subjects"
    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id"), primary_key=True)
    subject_id: Mapped[str] = mapped_column(Id, ForeignKey("subjects.id"), primary_key=True, index=True)
    right_id: Mapped[str] = _to("rights.id")


class JobFile(Base):
    """A file that a job's request names by its hash: it is kept as long as the job, whatever becomes of subject and draft."""

    __tablename__ = "job_files"
    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id"), primary_key=True)
    blob: Mapped[str] = mapped_column(Sha256, ForeignKey("blobs.sha256"), primary_key=True, index=True)


class Video(Base):
    """One candidate of a job, with its score. A job and a candidate have one video, whatever died in between."""

    __tablename__ = "videos"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _to("projects.id")
    job_id: Mapped[str] = _to("jobs.id")
    user_id: Mapped[str] = _to("users.id")  # the maker
    candidate: Mapped[int]
    seed: Mapped[int]
    blob: Mapped[str] = _blob(index=True)
    poster: Mapped[str] = _blob()
    fps: Mapped[int]
    num_frames: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    details: Mapped[dict[str, Any]]  # its metadata.json
    score: Mapped[dict[str, Any] | None]  # None until measured
    passed: Mapped[bool | None]  # every KPI met
    state: Mapped[VideoState] = mapped_column(default=VideoState.MADE)
    override_by: Mapped[str | None] = _to("users.id")
    override_reason: Mapped[str] = mapped_column(Text, default="")
    marked: Mapped[str] = mapped_column(Text, default="")  # why it must not be used: a right revoked or expired
    created_at: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (
        UniqueConstraint("job_id", "candidate"),
        Index(None, "project_id", "created_at", "id"),
        Index(None, "project_id", "state", "created_at", "id"),
    )

    @property
    def prompt(self) -> str:
        """What it was asked for."""
        return self.details.get("request", {}).get("prompt", "")


class Comment(Base):
    """A remark on a frame of a video, pinned to a place of it (0..1 from the top left), or on all of it."""

    __tablename__ = "comments"
    id: Mapped[str] = _id()
    video_id: Mapped[str] = _to("videos.id")
    user_id: Mapped[str] = _to("users.id")
    frame: Mapped[int | None]
    x: Mapped[float | None]
    y: Mapped[float | None]
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    resolved_at: Mapped[datetime | None]


class Review(Base):
    """What a person decided on a video: approved or sent back, with the checklist, for one file and one policy version."""

    __tablename__ = "reviews"
    id: Mapped[str] = _id()
    video_id: Mapped[str] = _to("videos.id")
    user_id: Mapped[str] = _to("users.id")
    approved: Mapped[bool]
    checklist: Mapped[dict[str, Any]]  # item -> {"answer": yes, no or does not apply, "note"}
    note: Mapped[str] = mapped_column(Text, default="")
    sha256: Mapped[str] = mapped_column(Sha256)  # of the file that was looked at
    policy_version: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (Index(None, "video_id", "created_at", "id"),)


class Export(Base):
    """A file that left the studio, with its credentials."""

    __tablename__ = "exports"
    id: Mapped[str] = _id()
    video_id: Mapped[str] = _to("videos.id")
    user_id: Mapped[str] = _to("users.id")
    blob: Mapped[str] = _blob(index=True)
    poster: Mapped[str] = _blob()
    report: Mapped[str] = _blob()
    labelled: Mapped[bool]
    label_reason: Mapped[str] = mapped_column(Text, default="")  # why there is no label
    created_at: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (Index(None, "video_id", "created_at", "id"),)


class Fingerprint(Base):
    """How a video looks at a moment, by which re-encoded copies are recognized; see fingerprints."""

    __tablename__ = "fingerprints"
    video_id: Mapped[str] = mapped_column(Id, ForeignKey("videos.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    look: Mapped[bytes] = mapped_column(LargeBinary(96))


class FingerprintBand(Base):
    """Bits of a video's looks, by which candidates for a comparison are found without reading all rows."""

    __tablename__ = "fingerprint_bands"
    value: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    video_id: Mapped[str] = mapped_column(Id, ForeignKey("videos.id"), primary_key=True, index=True)
    __table_args__: ClassVar[dict[str, Any]] = {"sqlite_with_rowid": False}


class Notice(Base):
    """What a person has to know: a right that expires, a job that was stopped, a video sent back."""

    __tablename__ = "notices"
    id: Mapped[str] = _id()
    user_id: Mapped[str] = _to("users.id")
    code: Mapped[str] = mapped_column(String(32))
    values: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    read_at: Mapped[datetime | None]
    __table_args__ = (Index(None, "user_id", "read_at"), Index(None, "user_id", "created_at", "id"))


class Webhook(Base):
    """An address that is notified of events, each signed with its secret by HMAC."""

    __tablename__ = "webhooks"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _to("projects.id")
    url: Mapped[str] = mapped_column(Text)
    secret: Mapped[str] = mapped_column(String(64))
    events: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Delivery(Base):
    """An event on its way to a webhook, tried again with growing pauses."""

    __tablename__ = "deliveries"
    id: Mapped[str] = _id()
    webhook_id: Mapped[str] = _to("webhooks.id")
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime | None] = mapped_column(default=now, index=True)  # None: delivered or given up
    outcome: Mapped[str] = mapped_column(Text, default="")
    __table_args__ = (Index(None, "webhook_id", "created_at", "id"),)


class AuditLine(Base):
    """One change, with the hash of the line before. Nothing updates or deletes a line (triggers refuse it)."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[str | None] = mapped_column(Id)  # user id; None: the studio itself
    action: Mapped[str] = mapped_column(String(64))
    object_id: Mapped[str | None] = mapped_column(Id, index=True)
    details: Mapped[dict[str, Any]]
    previous: Mapped[str] = mapped_column(Sha256)
    sha256: Mapped[str] = mapped_column(Sha256)
