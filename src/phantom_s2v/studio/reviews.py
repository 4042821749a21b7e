"""Review and sign-off: comments on frames, the checklist, approval by other people than the maker, and sending back.

An approval holds for one file and one version of the project's policy: another file or a new policy needs a new one. Signatures
count since the video was last submitted, so that what was sent back is looked at anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from phantom_s2v.files.untrusted import typed
from phantom_s2v.studio import audit, gate, policies, webhooks
from phantom_s2v.studio.access import SYSTEM, Actor, find
from phantom_s2v.studio.database import Page, paged
from phantom_s2v.studio.notices import tell
from phantom_s2v.studio.policies import Rules
from phantom_s2v.studio.problems import N_, Conflict, Forbidden, NotFound, Problem, collecting, raise_all
from phantom_s2v.studio.schema import (
    Comment,
    Job,
    JobSubject,
    Member,
    Policy,
    Project,
    Review,
    Role,
    Subject,
    User,
    Video,
    VideoState,
    now,
)
from phantom_s2v.studio.texts import text

YES, NO, NOT_APPLICABLE = N_("yes"), N_("no"), N_("does not apply")
ANSWERS = (YES, NO, NOT_APPLICABLE)
REAL = ("person", "product", "logo", "animal", "place")  # kinds of subjects whose videos always carry the label
MAX_COMMENTS = 500  # of a video, all of which its page shows
BESIDE = 24  # videos that one can be held against


@dataclass(frozen=True)
class SignOff:
    """How far the sign-off of a video has come."""

    rules: Rules | None  # of the policy in force; None: there is none
    policy_version: int
    reviews: Sequence[Review]  # all there were, the newest first
    signatures: Sequence[Review]  # approvals that hold: for this file, this policy, and since it was last submitted
    names: Mapping[str, str]  # of those who decided, by id
    real: bool  # whether real people or objects are shown

    @property
    def approved(self) -> bool:
        """Whether as many people have signed as the policy asks for."""
        return self.rules is not None and len(self.signatures) >= self.rules.signatures

    @property
    def outdated(self) -> bool:
        """Whether it was approved, but under an earlier policy."""
        return not self.approved and any(
            each.approved and each.policy_version != self.policy_version for each in self.reviews[:1]
        )

    @property
    def must_be_labelled(self) -> bool:
        """Whether no reason can leave the label out: the policy asks for it, and real people or objects are shown."""
        return self.rules is None or (self.rules.label and self.real)


def opened(session: Session, actor: Actor, project_id: str, video_id: str) -> tuple[Video, SignOff]:
    """A video of a project and how far its sign-off has come, by two queries. Raises NotFound for any other video."""
    actor.must(project_id)
    real = (
        select(JobSubject.job_id)
        .join(Subject, Subject.id == JobSubject.subject_id)
        .where(JobSubject.job_id == Video.job_id, Subject.kind.in_(REAL))
        .exists()
    )
    in_force = and_(Policy.project_id == Project.id, Policy.version == Project.policy_version)
    query = select(Video, Project.policy_version, Policy, real).join(Project, Project.id == Video.project_id)
    row = session.execute(query.outerjoin(Policy, in_force).where(Video.id == video_id, Video.project_id == project_id)).first()
    if row is None:
        raise NotFound
    video, version, policy, shows_real = row
    decided = select(Review, User.name).join(User, User.id == Review.user_id).where(Review.video_id == video_id)
    found = session.execute(decided.order_by(Review.created_at.desc(), Review.id.desc()).limit(100)).all()
    holding: dict[str, Review] = {}
    for each, _ in found:
        if not each.approved:
            break
        if (each.sha256, each.policy_version) == (video.blob, version) and each.user_id != video.user_id:
            holding.setdefault(each.user_id, each)
    rules = typed(Rules, policy.rules) if policy else None
    names = {each.user_id: name for each, name in found}
    return video, SignOff(rules, version, [each for each, _ in found], list(holding.values()), names, bool(shows_real))


def sign_off(session: Session, video: Video) -> SignOff:
    """How far the sign-off of a video has come."""
    return opened(session, SYSTEM, video.project_id, video.id)[1]


def submit(session: Session, actor: Actor, video: Video) -> None:
    """Hand in a video for review, as its maker: it has passed the gate, or somebody let it pass. Raises Problem."""
    actor.must(video.project_id, Role.MAKER)
    if actor.must_be_person() != video.user_id:
        raise Forbidden("Only the person who made a video submits it.")
    if video.state not in (VideoState.MADE, VideoState.SENT_BACK):
        raise Conflict("This video was submitted already.")
    gate.check_submittable(video)
    raise_all(_policy_problems(session, video))
    video.state = VideoState.SUBMITTED
    audit.append(session, actor.id, "video submitted", video.id, file=audit.of_file(session, video.blob))
    _announce(session, actor, video, "video submitted", _people(session, video.project_id, Role.REVIEWER, Role.APPROVER))


def comment(
    session: Session,
    actor: Actor,
    video: Video,
    words: str,
    frame: int | None = None,
    place: tuple[float, float] | None = None,
) -> Comment:
    """Say something of a video: of a frame, of a place in it (shares from the top left), or of all of it."""
    actor.must(video.project_id)
    found: list[Problem] = []
    if frame is not None and not 0 <= frame < video.num_frames:
        found.append(Problem("The frame must be from %(low)d to %(high)d.", "frame", low=0, high=video.num_frames - 1))
    if place is not None and (frame is None or not all(0 <= each <= 1 for each in place)):
        found.append(Problem("The place must lie within a frame.", "place"))
    with collecting(found):
        words = text(words, "text", 2000)
    raise_all(found)
    if (session.scalar(select(func.count()).select_from(Comment).where(Comment.video_id == video.id)) or 0) >= MAX_COMMENTS:
        raise Conflict("This video has as many comments as one may have.")
    x, y = place or (None, None)
    made = Comment(video_id=video.id, user_id=actor.must_be_person(), frame=frame, x=x, y=y, text=words)
    session.add(made)
    session.flush()
    audit.append(session, actor.id, "comment added", video.id, comment=made.id, frame=frame)
    _announce(session, actor, video, "video commented", {video.user_id})
    return made


def resolve(session: Session, actor: Actor, video: Video, comment_id: str) -> Comment:
    """Mark a comment as dealt with, or open it again."""
    actor.must(video.project_id)
    found = session.get(Comment, comment_id)
    if found is None or found.video_id != video.id:
        raise NotFound
    found.resolved_at = None if found.resolved_at else now()
    action = N_("comment resolved") if found.resolved_at else N_("comment reopened")
    audit.append(session, actor.id, action, video.id, comment=found.id)
    return found


def comments(session: Session, actor: Actor, video: Video) -> Sequence[tuple[Comment, str]]:
    """What was said of a video, and by whom, in the order of its frames; what is of all of it comes first."""
    actor.must(video.project_id)
    query = select(Comment, User.name).join(User, User.id == Comment.user_id).where(Comment.video_id == video.id)
    rows = session.execute(query.order_by(func.coalesce(Comment.frame, -1), Comment.created_at, Comment.id).limit(MAX_COMMENTS))
    return [(each, name) for each, name in rows]


def approve(
    session: Session,
    actor: Actor,
    video: Video,
    answers: Mapping[str, tuple[str, str]],
    sha256: str,
    policy_version: int,
    note: str = "",
) -> SignOff:
    """Sign a video, as an approver who did not make it, for the file and the policy that the person had before them.

    `answers`: item of the policy's checklist -> (answer, note). Raises Problem where one is missing or no, or where file, policy
    or a right has changed in the meantime.
    """
    actor.must(video.project_id, Role.APPROVER)
    stand = _open_for(session, actor, video)
    if (sha256, policy_version) != (video.blob, stand.policy_version):
        raise Conflict("The video or the policy has changed since you opened this page. Please look at it again.")
    if any(each.user_id == actor.id for each in stand.signatures):
        raise Conflict("You have signed this video already; another person has to sign too.")
    raise_all([*_marked(video), *_policy_problems(session, video)])
    assert stand.rules
    kept = _answered(stand.rules.checklist, answers)
    _add(session, actor, video, True, kept, note, policy_version)
    stand = sign_off(session, video)
    audit.append(
        session,
        actor.id,
        "video signed",
        video.id,
        file=audit.of_file(session, video.blob),
        policy=policy_version,
        complete=stand.approved,
    )
    if stand.approved:
        video.state = VideoState.APPROVED
        _announce(session, actor, video, "video approved", {video.user_id})
    return stand


def send_back(session: Session, actor: Actor, video: Video, note: str) -> None:
    """Send a video back to its maker, as a reviewer or approver, and say what is to be done."""
    actor.must(video.project_id, Role.REVIEWER, Role.APPROVER)
    stand = _open_for(session, actor, video)
    _add(session, actor, video, False, {}, text(note, "note", 2000), stand.policy_version)
    video.state = VideoState.SENT_BACK
    audit.append(session, actor.id, "video sent back", video.id, file=audit.of_file(session, video.blob))
    _announce(session, actor, video, "video sent back", {video.user_id})


def listed(
    session: Session, actor: Actor, project_id: str, state: VideoState | None = None, after: str | None = None
) -> Page[Video]:
    """Videos of a project, the newest first, of one state or all."""
    actor.must(project_id)
    query = select(Video).where(Video.project_id == project_id)
    query = query.where(Video.state == state) if state else query
    return paged(session, query, [Video.created_at, Video.id], after)


def others(session: Session, actor: Actor, video: Video) -> Sequence[Video]:
    """What a video can be held against: candidates of its job first, then the project's newest videos."""
    actor.must(video.project_id)
    newest = select(Video.id).where(Video.project_id == video.project_id)
    newest = newest.order_by(Video.created_at.desc(), Video.id.desc()).limit(BESIDE + 1)
    wanted = or_(Video.job_id == video.job_id, Video.id.in_(newest))
    query = select(Video).where(wanted, Video.id != video.id)  # all of the project, and by keys alone
    order = ((Video.job_id == video.job_id).desc(), Video.created_at.desc(), Video.id.desc())
    return session.scalars(query.order_by(*order).limit(BESIDE)).all()


def video_of(session: Session, actor: Actor, project_id: str, video_id: str) -> Video:
    """A video of a project. Raises NotFound for any other."""
    actor.must(project_id)
    return find(session, Video, video_id, project_id)


def _answered(items: Sequence[str], answers: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Answers as they are kept. Raises Problems with the items that are missing, or that were found wanting."""
    found, kept = [], {}
    for item in items:
        answer, note = answers.get(item, ("", ""))
        if answer not in ANSWERS:
            found.append(Problem("Please answer this before you approve.", f"check-{item}"))
        elif answer == NO:
            found.append(Problem("What is not in order cannot be approved. Send the video back.", f"check-{item}"))
        kept[item] = {"answer": answer, "note": text(note, f"note-{item}", 500, needed=False)}
    raise_all(found)
    return kept


def _open_for(session: Session, actor: Actor, video: Video) -> SignOff:
    """How far sign-off has come. Raises Problem where the person must not, or need not, decide on the video."""
    if actor.must_be_person() == video.user_id:
        raise Forbidden("Nobody decides on their own video.")
    stand = sign_off(session, video)
    again = video.state == VideoState.APPROVED and not stand.approved  # under an earlier policy
    if video.state != VideoState.SUBMITTED and not again:
        raise Conflict("This video is not waiting for a decision.")
    return stand


def _add(
    session: Session, actor: Actor, video: Video, approved: bool, answers: dict[str, Any], note: str, policy_version: int
) -> None:
    kept = text(note, "note", 2000, needed=False)
    session.add(
        Review(
            video_id=video.id, user_id=actor.must_be_person(), approved=approved, checklist=answers, note=kept, sha256=video.blob,
            policy_version=policy_version, created_at=now(),
        )
    )  # fmt: skip
    session.flush()


def _marked(video: Video) -> list[Problem]:
    return [Problem("A right behind this video was revoked or has expired.")] if video.marked else []


def _policy_problems(session: Session, video: Video) -> list[Problem]:
    """What rights and the policy in force, which may be newer than the video, have against it."""
    return [Problem(each.message, "", **each.values) for each in policies.obstacles(session, session.get_one(Job, video.job_id))]


def _people(session: Session, project_id: str, *roles: Role) -> set[str]:
    return set(session.scalars(select(Member.user_id).where(Member.project_id == project_id, Member.role.in_(roles))))


def _announce(session: Session, actor: Actor, video: Video, code: str, people: set[str]) -> None:
    """Tell people other than who acted, and webhooks."""
    tell(session, people - {str(actor.id)}, code, project=video.project_id, video=video.id, by=actor.id)
    webhooks.emit(session, video.project_id, code.replace(" ", "."), video=video.id, state=video.state.value)
