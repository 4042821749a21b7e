"""Forgetting: a person who is shown asks for it, or a project's time of retention has passed.

What was made of a subject goes with it: images, documents, drafts, jobs with their latents and previews, videos with comments,
approvals, exports and fingerprints. The audit log keeps ids and keyed hashes: who has a file can show that it was erased here.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from phantom_s2v.studio import audit, policies, projects, queue
from phantom_s2v.studio.access import Actor, find
from phantom_s2v.studio.context import studio_of
from phantom_s2v.studio.problems import Conflict, Problem
from phantom_s2v.studio.schema import (
    Comment,
    Credential,
    Draft,
    Export,
    Fingerprint,
    FingerprintBand,
    Job,
    JobFile,
    JobSubject,
    Member,
    Notice,
    Project,
    Review,
    Role,
    Subject,
    SubjectImage,
    Video,
    VideoState,
    now,
)

BATCH = 200  # videos or drafts that one sweep removes


def consequences(session: Session, actor: Actor, project_id: str, subject_id: str) -> tuple[int, int]:
    """How many videos and exported files would be erased with a subject."""
    actor.must(project_id, Role.ADMIN)
    subject = find(session, Subject, subject_id, project_id)
    videos = select(Video.id).where(Video.job_id.in_(_jobs_of(subject)))
    count = select(func.count()).select_from(Video).where(Video.id.in_(videos)).scalar_subquery()
    exported = select(func.count()).select_from(Export).where(Export.video_id.in_(videos)).scalar_subquery()
    found = session.execute(select(count, exported)).one()
    return found[0], found[1]


def erase_subject(session: Session, actor: Actor, project_id: str, subject_id: str, name: str) -> None:
    """Forget who or what a subject shows, as the project's administrator; `name` is typed once more: nothing brings it back."""
    actor.must(project_id, Role.ADMIN)
    subject = find(session, Subject, subject_id, project_id)
    if subject.erased_at is not None:
        raise Conflict("This subject was erased already.")
    _check_typed(name, subject.name)
    hashes = [image.blob for image in subject.images]
    blobs = [blob for image in subject.images for blob in (image.blob, image.thumbnail)]
    drafts = select(Draft).where(Draft.project_id == project_id).execution_options(yield_per=500)
    mine = [draft for draft in session.scalars(drafts) if subject.id in draft.subjects]
    blobs += _remove_drafts(session, mine)
    blobs += _remove_jobs(session, session.scalars(_jobs_of(subject)).all())
    session.execute(delete(SubjectImage).where(SubjectImage.subject_id == subject.id))
    for right in subject.rights:
        blobs += [right.document] if right.document else []
        right.shown = right.owner = right.document_name = right.revoke_reason = ""
        right.document = None
        if right.revoked_at is None:
            right.revoked_at, right.revoked_by = now(), actor.id
    _remove_notices(session, subject.id)
    subject.name, subject.erased_at = "", now()
    session.flush()
    studio = studio_of(session)
    studio.storage.forget(session, blobs)
    session.info["erased"] = True
    kept = sorted({audit.of_file(session, blob) for blob in hashes})
    audit.append(session, actor.id, "subject erased", subject.id, images=kept)


def _check_typed(typed: str, name: str) -> None:
    if typed.strip() != name:
        raise Problem("Please type the name exactly as it is shown.", "name")


def _jobs_of(subject: Subject) -> Any:
    return select(JobSubject.job_id).where(JobSubject.subject_id == subject.id)


def _remove_notices(session: Session, subject_id: str) -> None:
    """Notices carry the subject's name."""
    session.execute(delete(Notice).where(Notice.values["subject"].as_string() == subject_id))


def _remove_drafts(session: Session, drafts: Iterable[Draft]) -> list[str]:
    blobs = []
    for draft in drafts:
        blobs += [draft.first_frame] if draft.first_frame else []
        session.delete(draft)
    session.flush()
    return blobs


def _remove_jobs(session: Session, jobs: Sequence[str]) -> list[str]:
    """Remove jobs with everything that came of them; the files that they had. A worker that still runs one may write no more."""
    videos = session.scalars(select(Video.id).where(Video.job_id.in_(jobs))).all()
    blobs = _remove_videos(session, videos)
    for job in session.scalars(select(Job).where(Job.id.in_(jobs))).all():
        blobs += [blob for blob in (job.saved_state, job.preview) if blob]
        blobs += session.scalars(select(JobFile.blob).where(JobFile.job_id == job.id)).all()
        for table in (JobFile, JobSubject):
            session.execute(delete(table).where(table.job_id == job.id))
        session.delete(job)
        audit.append(session, None, "job removed", job.id)
    session.flush()
    return blobs


def _remove_videos(session: Session, videos: Sequence[str]) -> list[str]:
    """Remove videos with comments, approvals, exports and fingerprints; the files that they had."""
    blobs = []
    for export in session.scalars(select(Export).where(Export.video_id.in_(videos))).all():
        blobs += [export.blob, export.poster, export.report]
        session.delete(export)
    session.flush()
    for table in (Comment, Review, Fingerprint, FingerprintBand):
        session.execute(delete(table).where(table.video_id.in_(videos)))
    for video in session.scalars(select(Video).where(Video.id.in_(videos))).all():
        blobs += [video.blob, video.poster]
        audit.append(session, None, "video removed", video.id, file=audit.of_file(session, video.blob))
        session.delete(video)
    session.flush()
    return blobs


def erase_user(session: Session, actor: Actor, user_id: str, name: str) -> None:
    """Forget a person who works here: name, address, memberships, sessions, notices, and drafts, which nobody else can see. What
    they did stays under their id.

    `name` is typed once more: nothing brings it back.
    """
    user = projects.person(session, actor, user_id)
    if user_id == actor.id:
        raise Conflict("You cannot erase yourself. Another administrator of the studio can.")
    _check_typed(name, user.name)
    for table in (Credential, Member, Notice):
        session.execute(delete(table).where(table.user_id == user_id))
    drafts = session.scalars(select(Draft).where(Draft.user_id == user_id)).all()
    studio_of(session).storage.forget(session, _remove_drafts(session, drafts))
    user.email, user.name, user.password_hash, user.active, user.admin = f"{user.id}@erased.invalid", "", None, False, False
    session.info["erased"] = True
    audit.append(session, actor.id, "person erased", user_id)


def retain(session: Session, at: datetime | None = None) -> int:
    """Remove what policies no longer keep, at most BATCH of each: videos that were never approved, handed in or not, drafts, and
    jobs of which no video is left, with their prompts, references and latents; how many.
    """
    at, removed = at or now(), 0
    for project in session.scalars(select(Project).where(Project.policy_version > 0)).all():
        rules = policies.current(session, project)
        assert rules
        before = at - timedelta(days=rules.retention_days)
        old = select(Video.id).where(
            Video.project_id == project.id, Video.created_at < before, Video.state != VideoState.APPROVED,
            Video.id.not_in(select(Export.video_id)),
        )  # fmt: skip
        videos = session.scalars(old.order_by(Video.created_at).limit(BATCH)).all()
        drafts = select(Draft).where(Draft.project_id == project.id, Draft.updated_at < before).limit(BATCH)
        stale = session.scalars(drafts).all()
        blobs = _remove_videos(session, videos) + _remove_drafts(session, stale)
        left = select(Job.id).where(
            Job.project_id == project.id, Job.state.not_in(queue.OPEN), Job.ended_at < before,
            ~exists().where(Video.job_id == Job.id),
        )  # fmt: skip
        jobs = session.scalars(left.limit(BATCH)).all()
        studio_of(session).storage.forget(session, blobs + _remove_jobs(session, jobs))
        removed += len(videos) + len(stale) + len(jobs)
    return removed
