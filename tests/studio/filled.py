"""A studio with MANY rows of everything, and the ids of one of each."""

from datetime import timedelta

from phantom_s2v.models.registry import load_preset, model_folder
from phantom_s2v.studio import access, audit, notices, policies, projects, sign_in
from phantom_s2v.studio.schema import (
    Comment,
    Delivery,
    Draft,
    Export,
    Job,
    Member,
    Right,
    Role,
    SubjectImage,
    User,
    Video,
    VideoState,
    Webhook,
    Worker,
    now,
)
from studio.queued import make_job, make_worker, profiled, scored
from studio.rows import add_subject, add_video, frames_of, mp4, set_policy

MANY = 30  # rows of every list, which is more than a page


def fill(studio) -> dict[str, str]:
    """MANY rows of everything, and the ids that addresses name."""
    boss = studio.people["boss"]
    set_policy(studio)
    subjects = [add_subject(studio, "boss", valid_until=now() + timedelta(days=20 + n)) for n in range(MANY)]
    clip = mp4(frames_of("1f431", 1, count=9, size=(32, 32)))
    films = [
        add_video(studio, clip, "boss", [subjects[0]], num_frames=9, score=scored("Red cup", subjects[1].id), passed=False,
                  state=list(VideoState)[n % 4], override_by=boss)
        for n in range(MANY)
    ]  # fmt: skip
    with studio.writing() as session:
        session.add_all(Member(project_id=studio.project_id, user_id=boss, role=role) for role in Role)
        actor = access.load(session, session.get_one(User, boss), studio.project_id)[0]
        for number in range(MANY):
            projects.create(session, access.SYSTEM, f"Project {number}")
            person, _ = projects.add_user(session, access.SYSTEM, f"p{number}@example.com", f"Person {number}")
            session.add(Member(project_id=studio.project_id, user_id=person.id, role=Role.MAKER))
            notices.tell(session, [boss], "video commented", project=studio.project_id, video=films[0], name="x")
            sign_in.make_token(session, actor, f"token {number}")
            policies.put(session, actor, studio.project_id, policies.TEMPLATES["standard"])
            make_job(session, studio.project_id, person.id).request = {"prompt": "The cup moves.", "references": []}
            session.add(Comment(video_id=films[0], user_id=person.id, frame=number % 9, text="Look."))
            audit.append(session, person.id, "tried", None, number=number)
        comment = Comment(video_id=films[0], user_id=boss, frame=1, text="Look.")
        session.add(comment)
        made = _one_of_each(session, studio, subjects[0], films[0], clip)
        mini = make_worker(session)
        profile = mini.offers["models"]["phantom-mini"] | profiled(load_preset(model_folder("phantom-mini")))
        for _ in range(MANY):
            session.add(Worker(name="b", device="cpu", offers={**mini.offers, "models": {"phantom-mini": profile}},
                               heartbeat_at=now()))  # fmt: skip
        ids = {"project_id": studio.project_id, "subject_id": subjects[0].id, "image_id": subjects[0].images[0].id,
               "right_id": subjects[0].rights[0].id, "video_id": films[0], "number": "0", "part": "report",
               "name": "studio.css", "user_id": studio.people["reviewer"], "comment_id": comment.id,
               "sha256": "0" * 64, **made}  # fmt: skip
        session.add_all(User(email=f"q{number}@example.com", name="Q") for number in range(100))
        _, token = projects.add_user(session, access.SYSTEM, "new@example.com", "New")
        return {**ids, "token": token}


def _one_of_each(session, studio, subject, film, clip) -> dict[str, str]:
    """Drafts with a first frame, jobs with a preview, exports, webhooks with deliveries, documents, images and rights."""
    put, boss = studio.storage.put, studio.people["boss"]
    png = put(session, studio.storage.read(subject.images[0].blob) + b"\0", "image/png")
    document = put(session, b"%PDF-1.7", "application/pdf")
    first = session.get_one(Right, subject.rights[0].id)
    first.document, first.document_name = document, "contract.pdf"
    columns = {c.key: getattr(first, c.key) for c in Right.__table__.columns if c.key != "id"}
    session.add_all(Right(**columns) for _ in range(MANY))
    session.add_all(
        SubjectImage(subject_id=subject.id, position=n, blob=png, thumbnail=png, width=64, height=64) for n in range(1, 12)
    )
    draft = {"prompt": "The cup moves.", "purpose": "website", "territories": ["DE"], "first_frame": png}
    drafts = [Draft(project_id=studio.project_id, user_id=boss, subjects=[subject.id], **draft) for _ in range(MANY)]
    hooks = [Webhook(project_id=studio.project_id, url="https://a.example", secret="x", events=[]) for _ in range(10)]
    exports = [
        Export(video_id=film, user_id=boss, blob=put(session, clip, "video/mp4"), poster=png, report=document, labelled=True)
        for _ in range(MANY)
    ]
    session.add_all([*drafts, *hooks, *exports])
    session.flush()
    session.add_all(
        Delivery(webhook_id=hooks[0].id, body={"event": "video.approved"}, outcome="answered 500") for _ in range(MANY)
    )
    video = session.get_one(Video, film)
    job = session.get_one(Job, video.job_id)
    job.preview, job.request = png, {"prompt": "x", "references": [{"subject": "Red cup", "path": subject.images[0].blob}]}
    job.requires = {"model": "phantom-mini", "computed_seconds": 1.0}
    for column in range(1, MANY):
        values = {c.key: getattr(video, c.key) for c in Video.__table__.columns if c.key not in ("id", "candidate", "created_at")}
        session.add(Video(**{**values, "candidate": column}))
    return {"draft_id": drafts[0].id, "job_id": job.id, "export_id": exports[0].id, "webhook_id": hooks[0].id}
