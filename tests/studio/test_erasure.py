"""A person who asks to be forgotten: nothing of them is left in rows or files, and the log keeps keyed hashes."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select

from phantom_s2v.studio import audit, certificates, erasure, exports, fingerprints, housekeeping, notices, reviews
from phantom_s2v.studio.policies import CHECKLIST
from phantom_s2v.studio.problems import Forbidden, Problem
from phantom_s2v.studio.schema import (
    AuditLine,
    Base,
    Blob,
    Draft,
    Job,
    JobFile,
    JobState,
    Notice,
    Subject,
    User,
    Video,
    VideoState,
    now,
)
from studio.rows import add_subject, add_video, frames_of, mp4, set_policy

CONTENT = mp4(frames_of("1f431", 3))


@pytest.fixture
def shown(studio, actor_of):
    """A subject with everything that may come of it, exported; and its videos' files."""
    set_policy(studio)
    subject = add_subject(studio)
    film = add_video(studio, CONTENT, subjects=[subject], score={"verdicts": []})
    certificates.make(studio.settings.folder / "certificate", "x")
    with studio.writing() as session:
        video = session.get_one(Video, film)
        job = session.get_one(Job, video.job_id)
        job.saved_state = studio.storage.put(session, b"latents", "application/octet-stream")
        job.preview = studio.storage.put(session, b"preview", "image/jpeg")
        session.add(JobFile(job_id=job.id, blob=subject.images[0].blob))
        session.add(Draft(project_id=studio.project_id, user_id=studio.people["maker"], prompt="Red cup", subjects=[subject.id]))
        notices.tell(session, [studio.people["maker"]], "right ends", project="p", subject=subject.id, name="Red cup", days=3)
        fingerprints.keep(session, film, fingerprints.measure([(0.0, frames_of("1f431", 3)[0])]))
        reviews.comment(session, actor_of("reviewer"), video, "Her eyes.", 3, (0.5, 0.5))
        reviews.submit(session, actor_of("maker"), video)
        reviews.approve(
            session, actor_of("approver"), video, dict.fromkeys(CHECKLIST, ("yes", "")), video.blob, video_policy(session)
        )
    exports.make(studio, actor_of("maker"), studio.project_id, film)
    return subject, film


def video_policy(session):
    return session.scalars(select(reviews.Project.policy_version).where(reviews.Project.policy_version > 0)).one()


def test_nothing_is_left_but_the_log(studio, actor_of, shown):
    subject, film = shown
    with studio.reading() as session:
        before = session.scalars(select(Blob.sha256)).all()
        assert erasure.consequences(session, actor_of("admin"), studio.project_id, subject.id) == (1, 1)
    with studio.writing() as session, pytest.raises(Forbidden):
        erasure.erase_subject(session, actor_of("maker"), studio.project_id, subject.id, "Red cup")
    with studio.writing() as session, pytest.raises(Problem, match="exactly"):
        erasure.erase_subject(session, actor_of("admin"), studio.project_id, subject.id, "red cup")
    with studio.writing() as session:
        erasure.erase_subject(session, actor_of("admin"), studio.project_id, subject.id, "Red cup")
    with studio.reading() as session:
        assert session.scalars(select(Blob)).all() == []
        assert [each for each in before if studio.storage.path(each).exists()] == []
        for table in ("videos", "jobs", "job_files", "job_subjects", "drafts", "comments", "reviews", "exports", "fingerprints",
                      "fingerprint_bands", "subject_images", "notices"):  # fmt: skip
            left = session.execute(select(Base.metadata.tables[table])).all()
            assert [row for row in left if subject.id in map(str, row) or film in map(str, row)] == [], table
        assert session.get_one(Subject, subject.id).name == ""
        lines = session.scalars(select(AuditLine)).all()
        assert not any("Red cup" in str(line.details) for line in lines)
        kept = next(line.details["images"] for line in lines if line.action == "subject erased")
        assert kept == [studio.settings.keyed_hash("file", subject.images[0].blob)]
        assert [line for line in lines for sha256 in before if sha256 in str(line.details)] == []
        assert audit.verify(session, studio.head)[1] == []
    for file in studio.settings.folder.glob("studio.sqlite*"):  # the write-ahead log too, while the studio runs
        assert b"Her eyes." not in file.read_bytes(), file


def test_a_file_of_another_subject_stays(studio, actor_of, shown):
    subject, _ = shown
    other = add_subject(studio)
    kept = add_video(studio, mp4(frames_of("1f984", 4)), subjects=[other])
    with studio.writing() as session:
        erasure.erase_subject(session, actor_of("admin"), studio.project_id, subject.id, "Red cup")
    with studio.reading() as session:
        assert studio.storage.read(session.get_one(Video, kept).blob)
        assert studio.storage.read(session.get_one(Subject, other.id).images[0].blob)


def test_retention_removes_what_was_never_approved(studio, shown):
    old = add_video(studio, mp4(frames_of("1f984", 4)), created_at=now() - timedelta(days=366))
    with studio.writing() as session:
        assert erasure.retain(session) == 1
    with studio.reading() as session:
        assert session.get(Video, old) is None
        assert session.get(Video, shown[1])
    with studio.writing() as session:
        # the draft, and the job of the video that went; the approved video stays with its own
        assert erasure.retain(session, now() + timedelta(days=800)) == 2
        assert session.get(Video, shown[1])


def test_a_person_who_worked_here(studio, actor_of):
    with studio.writing() as session:
        with pytest.raises(Forbidden):
            erasure.erase_user(session, actor_of("admin"), studio.people["maker"], "Maker")
        frame = studio.storage.put(session, b"first frame", "image/png")
        for name in ("maker", "reviewer"):
            session.add(Draft(project_id=studio.project_id, user_id=studio.people[name], prompt="x", first_frame=frame))
        erasure.erase_user(session, actor_of("boss"), studio.people["maker"], "Maker")
        assert session.scalars(select(Draft.user_id)).all() == [studio.people["reviewer"]]  # nobody else sees a draft
        user = session.get_one(User, studio.people["maker"])
        assert (user.name, user.active, user.password_hash) == ("", False, None)
        assert "maker" not in user.email


def test_a_person_is_erased_on_a_page_and_others_of_the_name_keep_theirs(studio, browser, actor_of, shown):
    """The notice of a namesake stays as it was; that of the erased person has no name."""
    boss, maker = browser("boss"), studio.people["maker"]
    with studio.writing() as session:
        session.get_one(User, studio.people["reviewer"]).name = "Maker"
        for name in ("maker", "reviewer"):
            video = session.get_one(Video, shown[1])
            notices.tell(session, [studio.people["boss"]], "video commented", project="p", video=video.id, by=studio.people[name])
    assert boss.get("/notices").text.count("Maker commented on your video.") == 2
    assert f'href="/people/{maker}/erase"' in boss.get("/people").text
    assert browser("admin").get(f"/people/{maker}/erase").status_code == 403
    answer = boss.submit(f"/people/{maker}/erase", {"name": "Makers"})
    assert answer.status_code == 422
    assert "Please type the name exactly as it is shown." in answer.text
    assert 'value="Makers"' in answer.text
    page = boss.submit(f"/people/{maker}/erase", {"name": "Maker"})
    assert page.url.path == "/people"
    assert maker not in page.text
    page = boss.get("/notices").text
    assert (page.count("Maker commented"), page.count("a person who was erased commented")) == (1, 1)
    for address in (f"/projects/{studio.project_id}/videos/{shown[1]}/sign-off", "/audit", f"/projects/{studio.project_id}/jobs"):
        page = browser("boss" if address == "/audit" else "admin").get(address)
        assert page.status_code == 200
    assert boss.get(f"/people/{maker}/erase").status_code == 404


def test_retention_takes_what_was_handed_in_and_jobs_with_their_latents(studio):
    """Whatever was never approved; a job that failed keeps prompt, references and saved state no longer than its project does."""
    set_policy(studio)
    old = now() - timedelta(days=366)
    film = add_video(studio, mp4(frames_of("1f984", 4)), created_at=old, state=VideoState.SUBMITTED)
    with studio.writing() as session:
        job = session.get_one(Job, session.get_one(Video, film).job_id)
        values = {c.key: getattr(job, c.key) for c in Job.__table__.columns if c.key != "id"}
        latents = studio.storage.put(session, b"latents", "application/octet-stream")
        for ended in (old, now()):
            session.add(Job(**{**values, "state": JobState.SET_ASIDE, "saved_state": latents, "ended_at": ended}))
        job.ended_at = old
        running = Job(**{**values, "state": JobState.QUEUED, "created_at": old, "ended_at": None})
        session.add(running)
    with studio.writing() as session:
        assert erasure.retain(session) == 3  # the video, its job, and the one that was set aside long ago
    with studio.reading() as session:
        assert session.get(Video, film) is None
        assert sorted(each.state for each in session.scalars(select(Job))) == [JobState.QUEUED, JobState.SET_ASIDE]
        assert studio.storage.path(latents).exists()  # of the one that is left


def test_notices_go_when_they_were_read_long_ago_or_are_a_year_old(studio):
    person, day = studio.people["maker"], timedelta(days=1)
    ages = {"read": (91, 91), "read late": (360, 89), "unread": (364, None), "left": (366, None)}
    with studio.writing() as session:
        for code, (written, read) in ages.items():
            read_at = None if read is None else now() - read * day
            session.add(Notice(user_id=person, code=code, values={}, created_at=now() - written * day, read_at=read_at))
    housekeeping.remove_old(studio)
    with studio.reading() as session:
        assert set(session.scalars(select(Notice.code))) == {"read late", "unread"}


def test_what_policies_no_longer_keep_goes_by_itself(studio, monkeypatch):
    """As the web process runs it, and not only where a test calls it; what fails before does not keep it from running."""
    set_policy(studio)
    film = add_video(studio, mp4(frames_of("1f984", 4)), created_at=now() - timedelta(days=366))
    ended = threading.Event()
    monkeypatch.setattr(housekeeping.queue, "sweep", lambda session, patience: 1 / 0)
    ended.set()
    housekeeping.run(studio, ended)  # one round
    with studio.reading() as session:
        assert session.get(Video, film) is None
