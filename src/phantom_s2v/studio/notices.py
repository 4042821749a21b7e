"""What people have to know. A notice keeps a code and values; pages say it in the reader's language.

Who acted is kept by id, so that notices know nothing of a person who was erased.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.orm import Session

from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.database import Page, paged
from phantom_s2v.studio.problems import N_
from phantom_s2v.studio.schema import Member, Notice, Video, now

READ_DAYS, UNREAD_DAYS = 90, 365  # that a notice is kept after it was read, and unread

# Code -> (sentence, address). Values in the address are ids.
WORDS: dict[str, tuple[str, str]] = {
    "right ends": (
        N_("The rights of %(name)s end soon (days left: %(days)d). Renew them in time, or jobs will stop."),
        "/projects/%(project)s/subjects/%(subject)s",
    ),
    "right expired": (
        N_("The rights of %(name)s have expired. Jobs stopped: %(jobs)d; videos marked: %(videos)d."),
        "/projects/%(project)s/subjects/%(subject)s",
    ),
    "right revoked": (
        N_("The rights of %(name)s were revoked. Jobs stopped: %(jobs)d; videos marked: %(videos)d."),
        "/projects/%(project)s/subjects/%(subject)s",
    ),
    "video submitted": (N_("%(name)s submitted a video for review."), "/projects/%(project)s/videos/%(video)s/review"),
    "video commented": (N_("%(name)s commented on your video."), "/projects/%(project)s/videos/%(video)s/review"),
    "video sent back": (N_("%(name)s sent your video back."), "/projects/%(project)s/videos/%(video)s/review"),
    "video approved": (N_("%(name)s approved your video. It can be exported."), "/projects/%(project)s/videos/%(video)s/export"),
}


def tell(session: Session, people: Iterable[str], code: str, **values: Any) -> None:
    """Tell people something. `code` is one of WORDS, `values` those of its sentence and address, `by` who acted."""
    session.add_all(Notice(user_id=user, code=code, values=values) for user in sorted(set(people)))


def mine(session: Session, actor: Actor, after: str | None = None) -> Page[Notice]:
    """A person's notices, the newest first."""
    query = select(Notice).where(Notice.user_id == actor.must_be_person())
    return paged(session, query, [Notice.created_at, Notice.id], after)


def prompts(session: Session, actor: Actor, notices: Iterable[Notice]) -> dict[str, str]:
    """Prompts of the videos that notices are about, by id, of projects that the person still works in."""
    query = select(Video).where(Video.id.in_({each.values["video"] for each in notices if "video" in each.values}))
    works = exists().where(Member.project_id == Video.project_id, Member.user_id == actor.must_be_person())
    return {video.id: video.prompt for video in session.scalars(query.where(works))}


def read_all(session: Session, actor: Actor) -> None:
    """A person has seen their notices."""
    query = update(Notice).where(Notice.user_id == actor.must_be_person(), Notice.read_at.is_(None))
    session.execute(query.values(read_at=now()))


def remove_old(session: Session, at: datetime) -> None:
    """Remove notices that were read, or left unread, long before `at`."""
    read, written = at - timedelta(days=READ_DAYS), at - timedelta(days=UNREAD_DAYS)
    session.execute(delete(Notice).where(or_(Notice.read_at <= read, Notice.created_at <= written)))
