"""Rights and policies: what may run, who checks, and what follows when a right ends."""

import time
from datetime import timedelta
from types import SimpleNamespace

import pytest

from phantom_s2v.studio import drafts, policies, queue, rights
from phantom_s2v.studio.policies import TEMPLATES, Rules
from phantom_s2v.studio.problems import Forbidden, Problem
from phantom_s2v.studio.schema import (
    Job,
    JobState,
    JobSubject,
    Notice,
    Project,
    Right,
    Subject,
    SubjectImage,
    Video,
    now,
)  # fmt: skip
from phantom_s2v.studio.territories import EU_MEMBERS, uncovered
from studio.queued import make_worker, offers


@pytest.fixture
def case(studio, actor_of):
    """A project under the standard policy, a product with an image and a checked right, and what a draft asks for."""
    with studio.writing() as session:
        policies.put(session, actor_of("admin"), studio.project_id, TEMPLATES["standard"])
        subject = Subject(project_id=studio.project_id, name="Fox", kind="product", created_by=studio.people["maker"])
        session.add(subject)
        session.flush()
        blob = studio.storage.put(session, b"image", "image/png")
        session.add(SubjectImage(subject_id=subject.id, position=0, blob=blob, thumbnail=blob, width=9, height=9))
        right = add_right(session, studio, actor_of, subject)
    draft = SimpleNamespace(project_id=studio.project_id, purpose="website", territories=["DE", "JP"])
    return SimpleNamespace(subject=subject.id, right=right.id, draft=draft)


def add_right(session, studio, actor_of, subject, checked=True, document=True, **changed):
    values = {"shown": "Fox", "owner": "Us", "basis": "own", "uses": ["website"], "territories": ["EU", "JP"]}
    values |= {"valid_from": now() - timedelta(days=1), "valid_until": now() + timedelta(days=365), **changed}
    with studio.storage.staged(b"%PDF-1.7 contract") as staged:
        given = (staged, "contract.pdf", "application/pdf")
        right = rights.add(session, actor_of("maker"), subject, rights.Record(**values), given)
    if not document:  # as of a record that is older than the policy
        right.document = None
    if checked:
        rights.check(session, actor_of("reviewer"), right, studio.project_id)
    return right


def problems(studio, case, **changed):
    draft = SimpleNamespace(**{**vars(case.draft), **changed})
    with studio.reading() as session:
        subjects = rights.with_rights(session, studio.project_id, [case.subject])
        return [problem.message for problem in policies.check(session, draft, subjects)]


def test_what_is_covered_runs(studio, case):
    assert problems(studio, case) == []


@pytest.mark.parametrize(("changed", "sentence"), [
    ({"purpose": "television"}, "The policy does not allow this purpose."),
    ({"purpose": "social media"}, "The rights of %(name)s do not cover this purpose."),
    ({"territories": ["US"]}, "The rights of %(name)s do not cover these territories: %(names)s."),
    ({"territories": []}, "Please say where the video will be shown."),
])  # fmt: skip
def test_what_goes_beyond_the_right_or_the_policy_does_not(studio, case, changed, sentence):
    assert sentence in problems(studio, case, **changed)


def test_without_a_policy_nothing_runs(studio, case):
    with studio.writing() as session:
        session.get_one(Project, studio.project_id).policy_version = 0
    assert problems(studio, case) == ["This project has no policy yet. An administrator of the project chooses one."]


@pytest.mark.parametrize(("values", "sentence"), [
    ({"checked": False}, "Nobody has checked the rights record of %(name)s yet."),
    ({"valid_from": now() + timedelta(days=3)}, "The rights of %(name)s have not begun yet."),
    ({"document": False}, "The rights record of %(name)s has no document, which the policy asks for."),
])  # fmt: skip
def test_a_right_that_lacks_something(studio, case, actor_of, values, sentence):
    with studio.writing() as session:
        rights.revoke(session, actor_of("admin"), session.get_one(Right, case.right), studio.project_id, "entered wrongly")
        add_right(session, studio, actor_of, session.get_one(Subject, case.subject), **values)
    assert problems(studio, case) == [sentence]


def test_a_person_needs_consent_and_must_be_allowed(studio, case, actor_of):
    with studio.writing() as session:
        session.get_one(Subject, case.subject).kind = "person"
    assert problems(studio, case) == ["The policy asks for the consent of %(name)s; the rights record is of another kind."]
    with studio.writing() as session:
        policies.put(session, actor_of("admin"), studio.project_id, TEMPLATES["trial"])
    assert "The policy does not allow %(name)s to be shown." in problems(studio, case)


def test_nobody_checks_their_own_record_and_makers_check_none(studio, case, actor_of):
    with studio.writing() as session:
        right = add_right(session, studio, actor_of, session.get_one(Subject, case.subject), checked=False)
        right.created_by = studio.people["reviewer"]
    for name in ("reviewer", "maker"):
        with pytest.raises(Forbidden), studio.writing() as session:
            rights.check(session, actor_of(name), session.get_one(Right, right.id), studio.project_id)


def make_jobs(session, studio, case):
    """A queued, a running and a finished job under the right, the last with a video."""
    made = []
    for state in (JobState.QUEUED, JobState.RUNNING, JobState.DONE):
        job = Job(
            project_id=studio.project_id, user_id=studio.people["maker"], request={}, requires={}, purpose="website",
            territories=["DE"], policy_version=1, candidates=1, state=state, steps=8, estimated_seconds=1.0, lease=4,
        )  # fmt: skip
        session.add(job)
        session.flush()
        session.add(JobSubject(job_id=job.id, subject_id=case.subject, right_id=case.right))
        made.append(job.id)
    blob = studio.storage.put(session, b"video", "video/mp4")
    video = Video(
        project_id=studio.project_id, job_id=made[2], user_id=studio.people["maker"], candidate=0, seed=1, blob=blob, poster=blob,
        fps=8, num_frames=9, width=64, height=64, details={},
    )  # fmt: skip
    session.add(video)
    session.flush()
    return made, video.id


def outcome(studio, jobs, video):
    with studio.reading() as session:
        return [session.get_one(Job, job).state for job in jobs], session.get_one(Video, video).marked


STOPPED = [JobState.STOPPED, JobState.STOPPED, JobState.DONE]


def test_revoking_stops_jobs_and_marks_videos(studio, case, actor_of):
    with studio.writing() as session:
        jobs, video = make_jobs(session, studio, case)
    with studio.writing() as session:
        rights.revoke(session, actor_of("approver"), session.get_one(Right, case.right), studio.project_id, "consent withdrawn")
    assert outcome(studio, jobs, video) == (STOPPED, rights.REVOKED)
    with studio.reading() as session:
        assert session.get_one(Job, jobs[1]).lease == 5  # the worker that holds lease 4 may write nothing more
        told = {notice.user_id: notice.values for notice in session.query(Notice)}
        assert told[studio.people["maker"]]["jobs"] == 2
    assert problems(studio, case) == ["The rights of %(name)s were revoked."]


def test_warnings_come_once_each_and_expiry_stops_jobs(studio, case):
    with studio.writing() as session:
        jobs, video = make_jobs(session, studio, case)
        end = session.get_one(Right, case.right).valid_until
    seen = []
    for days in (100, 90, 89, 31, 30, 29, 14, 13, 1):
        with studio.writing() as session:
            seen.append(rights.sweep(session, end - timedelta(days=days)))
    assert seen == [0, 1, 0, 0, 1, 0, 1, 0, 0]
    assert outcome(studio, jobs, video)[1] == ""
    with studio.writing() as session:
        assert rights.sweep(session, end) == 1
        assert rights.sweep(session, end + timedelta(days=1)) == 0
    assert outcome(studio, jobs, video) == (STOPPED, rights.EXPIRED)


def test_a_right_that_was_renewed_in_time_stops_nothing(studio, case, actor_of):
    with studio.writing() as session:
        jobs, video = make_jobs(session, studio, case)
        end = session.get_one(Right, case.right).valid_until
        newer = add_right(
            session, studio, actor_of, session.get_one(Subject, case.subject), valid_until=end + timedelta(days=365)
        )
    with studio.writing() as session:
        rights.sweep(session, end)
    assert outcome(studio, jobs, video) == ([JobState.QUEUED, JobState.RUNNING, JobState.DONE], "")
    with studio.reading() as session:
        assert session.get_one(JobSubject, (jobs[0], case.subject)).right_id == newer.id


def test_territories():
    assert uncovered(["DE", "EU", "JP"], ["WORLD"]) == []
    assert uncovered(["DE", "EU", "JP"], ["EU"]) == ["JP"]
    assert uncovered(["EU"], EU_MEMBERS) == []
    assert uncovered(["WORLD"], ["EU", "JP"]) == ["WORLD"]


def test_rules_that_no_project_may_have(studio, actor_of):
    wrong = Rules(kinds=(), purposes=("spam",), signatures=9, label_text="")
    with pytest.raises(Problem) as refused, studio.writing() as session:
        policies.put(session, actor_of("admin"), studio.project_id, wrong)
    assert {each.field for each in refused.value.each} == {"kinds", "purposes", "signatures", "label_text"}
    with pytest.raises(Forbidden), studio.writing() as session:
        policies.put(session, actor_of("maker"), studio.project_id, Rules())


def failed_job(session, studio, case, **values):
    """A job under the right that failed or was set aside, and can be tried again."""
    job = Job(
        project_id=studio.project_id, user_id=studio.people["maker"], request={}, purpose="website", territories=["DE"],
        requires=queue.requirement(offers(), "phantom-mini"), policy_version=1, candidates=1, state=JobState.SET_ASIDE, steps=8,
        estimated_seconds=3600.0, **values,
    )  # fmt: skip
    session.add(job)
    session.flush()
    session.add(JobSubject(job_id=job.id, subject_id=case.subject, right_id=case.right))
    session.flush()
    return job


@pytest.mark.parametrize("why", ["revoked", "expired", "policy", "budget", ""])
def test_a_job_is_not_tried_again_against_a_right_the_policy_or_the_budget(studio, case, actor_of, why):
    with studio.writing() as session:
        job, right = failed_job(session, studio, case), session.get_one(Right, case.right)
        if why == "revoked":
            rights.revoke(session, actor_of("admin"), right, studio.project_id, "withdrawn")
        elif why == "expired":
            right.valid_until = now() - timedelta(seconds=1)
            rights.sweep(session)
        elif why == "policy":
            policies.put(session, actor_of("admin"), studio.project_id, Rules(purposes=("television",)))
        elif why == "budget":
            project = session.get_one(Project, studio.project_id)
            project.price_per_hour, project.budget = 100, 99
    if not why:
        with studio.writing() as session:
            drafts.resume(session, actor_of("maker"), session.get_one(Job, job.id))
        return
    words = {"policy": "does not allow this purpose", "budget": "budget"}.get(why, "revoked or has expired")
    with pytest.raises(Problem, match=words), studio.writing() as session:
        drafts.resume(session, actor_of("maker"), session.get_one(Job, job.id))
    with studio.reading() as session:
        assert session.get_one(Job, job.id).state == JobState.SET_ASIDE


def test_a_worker_takes_no_job_that_the_policy_in_force_forbids(studio, case, actor_of):
    from phantom_s2v.studio.worker import Models, Service

    with studio.writing() as session:
        first, second = (failed_job(session, studio, case) for _ in range(2))
        for job in (first, second):
            job.state = JobState.QUEUED
        worker = make_worker(session)
        service = Service(studio, Models([], None), 1)
        service.worker = worker
    assert service._take().id == first.id
    with studio.writing() as session:
        policies.put(session, actor_of("admin"), studio.project_id, Rules(purposes=("television",)))
    assert service._take() is None
    with studio.reading() as session:
        job = session.get_one(Job, second.id)
        assert (job.state, "policy" in job.reason) == (JobState.STOPPED, True)


def test_a_right_that_ends_stops_a_running_job_though_the_web_process_is_dead(studio, case, monkeypatch):
    from phantom_s2v.studio import worker

    monkeypatch.setattr(worker, "BEAT", 0.02)
    with studio.writing() as session:
        job = failed_job(session, studio, case)
        job.state, job.lease_until = JobState.RUNNING, now() + timedelta(seconds=10)
        session.get_one(Right, case.right).valid_until = now() + timedelta(seconds=0.2)
        maker = make_worker(session)
    heart = worker.Heart(studio, maker.id, ticket=queue.Ticket(job.id, job.lease))
    heart.moves(None)
    heart.start()
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        with studio.reading() as session:
            state = session.get_one(Job, job.id).state
        if state == JobState.STOPPED:
            break
        time.sleep(0.05)
    heart.ended.set()
    heart.join()
    assert state == JobState.STOPPED


def test_images_that_were_removed_since_keep_no_video_from_review(studio, case):
    with studio.writing() as session:
        job = failed_job(session, studio, case)
        session.delete(session.get_one(Subject, case.subject).images[0])
        session.flush()
        session.expire_all()
        assert policies.obstacles(session, job) == []
