"""The queue: who is served next, leases that run out, and that a worker without its lease writes nothing."""

from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from phantom_s2v.studio import access, audit, projects, queue, waiting
from phantom_s2v.studio.problems import Conflict, Problem
from phantom_s2v.studio.queue import CancelledError, LeaseLostError, Ticket
from phantom_s2v.studio.schema import AuditLine, Blob, Job, JobState, JobSubject, Project, Right, Subject, User, now

from .queued import make_job, make_worker, offers, video_of

START = now()


def at(seconds):
    return START + timedelta(seconds=seconds)


def two_projects(session, studio):
    return studio.project_id, projects.create(session, access.SYSTEM, "Other").id


def take(session, worker, moment):
    job = queue.take(session, worker, moment)
    return job and (job, Ticket(job.id, job.lease))


def test_projects_then_people_are_served_in_turn(studio):
    """The first project's ten jobs of one person do not keep the others waiting; of one person the oldest comes first."""
    with studio.writing() as session:
        one, two = two_projects(session, studio)
        a, b, c = (studio.people[name] for name in ("maker", "reviewer", "approver"))
        worker = make_worker(session, at(0))
        for i, (project, person) in enumerate([(one, a)] * 4 + [(one, b), (two, c), (two, c)]):
            make_job(session, project, person, at(i))
        expected = []
        for _ in range(7):
            order = waiting.line(session, at=at(20)).places
            job, ticket = take(session, worker, at(20 + len(expected)))
            assert min(order, key=lambda key: order[key].number) == job.id  # the place that a page shows
            expected.append((job.project_id == one, job.user_id))
            queue.end(session, ticket, JobState.FAILED, "", at(20 + len(expected)))
        assert expected == [(True, a), (False, c), (True, b), (False, c), (True, a), (True, a), (True, a)]
        assert take(session, worker, at(40)) is None


def test_one_person_runs_a_few_jobs_at_once_and_queues_some(studio, monkeypatch):
    monkeypatch.setattr(queue, "QUEUED_EACH", 4)
    with studio.writing() as session:
        workers = [make_worker(session, at(0)) for _ in range(3)]
        for i in range(4):
            make_job(session, studio.project_id, studio.people["maker"], at(i))
        with pytest.raises(Problem, match="At most 4 of your jobs"):
            make_job(session, studio.project_id, studio.people["maker"])
        other = make_job(session, studio.project_id, studio.people["reviewer"], at(9))
        taken = [queue.take(session, worker, at(10)) for worker in workers]
        assert [job.user_id == other.user_id for job in taken] == [False, True, False]
        assert queue.take(session, make_worker(session, at(10)), at(10)) is None


def test_another_worker_takes_over_when_the_lease_ends_and_the_first_writes_nothing(studio):
    with studio.writing() as session:
        first, second = make_worker(session, at(0)), make_worker(session, at(0))
        job = make_job(session, studio.project_id, studio.people["maker"], at(0))
        _, old = take(session, first, at(0))
        queue.renew(session, old, 1, at(5))
        assert take(session, second, at(12.9)) is None
        taken, new = take(session, second, at(13.1))
        assert (taken.id, taken.deaths, taken.worker_id) == (job.id, 1, second.id)
        for write in (
            lambda: queue.renew(session, old),
            lambda: queue.save_step(session, old, 2, None),
            lambda: queue.save_preview(session, old, None),
            lambda: queue.made(session, old, video_of(session, job)),
            lambda: queue.advance(session, old),
            lambda: queue.end(session, old, JobState.FAILED, "slow"),
            lambda: queue.give_back(session, old),
            lambda: queue.check(session, old),
        ):
            with pytest.raises(LeaseLostError):
                write()
        queue.made(session, new, video_of(session, job))
        assert queue.advance(session, new, at(20))
        assert (job.state, job.worker_id, round(job.seconds, 1)) == (
            JobState.DONE,
            None,
            11.9,
        )  # 5 of the first, 6.9 of the second


def test_a_job_whose_worker_dies_three_times_without_a_new_step_is_set_aside(studio):
    with studio.writing() as session:
        worker = make_worker(session, at(0))
        session.add(Blob(sha256="a" * 64, size=1, media_type="application/octet-stream"))
        job = make_job(session, studio.project_id, studio.people["maker"], at(0))
        for turn in range(2):
            take(session, worker, at(20 * turn))
        _, ticket = take(session, worker, at(40))
        assert job.deaths == 2
        queue.save_step(session, ticket, 1, "a" * 64)  # which begins the count anew
        assert job.deaths == 0
        for turn in range(3, 6):
            assert job.state == JobState.RUNNING
            taken = take(session, worker, at(20 * turn))
        assert taken is None
        assert (job.state, job.step, job.saved_state) == (JobState.SET_ASIDE, 1, "a" * 64)
        assert job.reason == "its worker died 3 times at candidate 1, after step 1 of 4"
        queue.resume(session, studio.people["maker"], job)
        assert take(session, worker, at(200))[0].step == 1
        with pytest.raises(Conflict):
            queue.resume(session, studio.people["maker"], job)


def test_a_slow_worker_without_another_keeps_its_job(studio):
    """The web process waits longer than a worker that would go on with it."""
    with studio.writing() as session:
        worker = make_worker(session, at(0))
        job = make_job(session, studio.project_id, studio.people["maker"], at(0))
        _, ticket = take(session, worker, at(0))
        late = queue.LEASE.total_seconds() + 30
        queue.sweep(session, at(late), queue.ABSENT)
        queue.renew(session, ticket, 1, at(late))  # its lease is the one that it had
        assert (job.state, job.deaths, job.progress) == (JobState.RUNNING, 0, 1)
        gone = 2 * late + queue.ABSENT.total_seconds()
        queue.sweep(session, at(gone), queue.ABSENT)
        assert (job.state, job.deaths) == (JobState.QUEUED, 1)


def test_a_worker_leaves_what_it_cannot_make_alike_and_says_so(studio):
    with studio.writing() as session:
        one = make_job(session, studio.project_id, studio.people["maker"], threads=2)
        other = {"machine": "x86_64 AVX512", "kernels": "others", "gpu": "none"}
        for offered, lacking in (
            ({"most": 1}, "threads"), ({"weights": "w2"}, "weights"), ({"model": "wan"}, "model"),
            ({"platform": other}, "processor"),
        ):  # fmt: skip
            worker = make_worker(session, **offered)
            assert queue.take(session, worker) is None
            assert queue.left(session, worker) == [(one.id, lacking)]
            assert queue.lacking(one.requires, offers(**offered)) == lacking
        assert waiting.blocked(waiting.line(session), one) == "threads"  # what the nearest of them lacks
        assert waiting.blocked(waiting.line(session, at=at(10**6)), one) == "none"
        able = make_worker(session)
        assert waiting.blocked(waiting.line(session), one) == ""
        assert queue.left(session, able) == []
        assert queue.take(session, able) is one


def test_cancel_waits_for_no_dead_worker(studio):
    with studio.writing() as session:
        me, worker = studio.people["maker"], make_worker(session, at(0))
        waits, runs, dead = (make_job(session, studio.project_id, me, at(i)) for i in range(3))
        queue.cancel(session, me, waits, at(1))
        assert waits.state == JobState.CANCELLED
        _, ticket = take(session, worker, at(1))
        take(session, worker, at(1))
        queue.cancel(session, me, runs, at(2))
        queue.cancel(session, me, runs, at(2))  # asking twice is no error
        assert runs.state == JobState.CANCELLING
        with pytest.raises(CancelledError):
            queue.check(session, ticket)
        queue.end(session, ticket, JobState.CANCELLED, "", at(3))
        queue.cancel(session, me, dead, at(30))
        assert [job.state for job in (waits, runs, dead)] == [JobState.CANCELLED] * 3
        with pytest.raises(Conflict, match="ended already"):
            queue.cancel(session, me, runs)
        make_job(session, studio.project_id, me, at(40))
        job, _ = take(session, worker, at(40))
        queue.cancel(session, me, job, at(41))
        queue.sweep(session, at(60))  # its worker died before it saw that
        assert job.state == JobState.CANCELLED


def test_a_right_that_is_gone_stops_what_waits_and_what_runs(studio):
    with studio.writing() as session:
        me, worker = studio.people["maker"], make_worker(session)
        subject = Subject(project_id=studio.project_id, name="Anna", kind="person", created_by=me)
        session.add(subject)
        session.flush()
        gone, other = (
            Right(
                project_id=studio.project_id, subject_id=subject.id, shown="Anna", owner="Anna", basis="consent", uses=["ads"],
                territories=["DE"], valid_from=now(), created_by=me,
            )
            for _ in range(2)
        )  # fmt: skip
        session.add_all([gone, other])
        session.flush()
        jobs = [make_job(session, studio.project_id, me, at(i)) for i in range(3)]
        for job, right in zip(jobs, (gone, gone, other), strict=True):
            session.add(JobSubject(job_id=job.id, subject_id=subject.id, right_id=right.id))
        runs = queue.take(session, worker)
        ticket = Ticket(runs.id, runs.lease)
        assert {job.id for job in queue.stop(session, [gone.id], "revoked")} == {jobs[0].id, jobs[1].id}
        assert [job.state for job in jobs] == [JobState.STOPPED, JobState.STOPPED, JobState.QUEUED]
        with pytest.raises(LeaseLostError):
            queue.check(session, ticket)


def test_running_is_paid_and_the_budget_knows_it(studio):
    with studio.writing() as session:
        project = session.get_one(Project, studio.project_id)
        project.price_per_hour = 3600
        worker = make_worker(session, at(0))
        job = make_job(session, studio.project_id, studio.people["maker"], at(0))
        _, ticket = take(session, worker, at(100))  # waiting is free
        queue.renew(session, ticket, None, at(104))
        queue.end(session, ticket, JobState.FAILED, "no", at(106.5))
        assert (job.seconds, job.cost, project.spent) == (6.5, 7, 7)
        queue.resume(session, studio.people["maker"], job)
        _, ticket = take(session, worker, at(200))
        queue.end(session, ticket, JobState.FAILED, "no", at(201))
        assert (job.seconds, job.cost, project.spent) == (7.5, 8, 8)
        lost, _ = take(session, worker, at(210)) or (None, None)
        assert lost is None


def test_done_means_that_every_candidate_has_its_video(studio):
    with studio.writing() as session:
        worker = make_worker(session)
        job = make_job(session, studio.project_id, studio.people["maker"], candidates=2)
        _, ticket = take(session, worker, now())
        queue.made(session, ticket, video_of(session, job, 0))
        assert not queue.advance(session, ticket)
        with pytest.raises(ValueError, match="1 videos for 2 candidates"):
            queue.advance(session, ticket)


def test_a_video_is_refused_a_second_time_by_the_table_itself(studio):
    with pytest.raises(IntegrityError), studio.writing() as session:  # noqa: PT012
        job = make_job(session, studio.project_id, studio.people["maker"])
        session.add_all([video_of(session, job), video_of(session, job)])
        session.flush()


def test_waits_stand_apart_from_running(studio):
    """Two workers, one busy for 60 s more: the third waiting job starts when the second of those before it is done."""
    with studio.writing() as session:
        one, two = two_projects(session, studio)
        busy, _ = make_worker(session, at(100)), make_worker(session, at(100))
        make_job(session, one, studio.people["maker"], at(0), seconds=60)
        take(session, busy, at(100))
        jobs = [make_job(session, one, studio.people[name], at(i), seconds=20) for i, name in enumerate(("maker", "reviewer"), 1)]
        project = session.get_one(Project, two)
        line = waiting.snapshot(session, at=at(100)).line((project, session.get_one(User, studio.people["approver"]), 5.0))
        assert {key: (p.number, round(p.wait)) for key, p in line.places.items()} == {
            "": (1, 0), jobs[1].id: (2, 5), jobs[0].id: (3, 25),
        }  # fmt: skip
        assert (line.running, len(line.workers)) == (1, 2)
        alone = waiting.line(session, at(300))
        assert {place.wait for place in alone.places.values()} == {None}  # nobody lives who could make them


def test_everything_about_jobs_is_in_the_audit_log(studio):
    with studio.writing() as session:
        me = studio.people["maker"]
        job = make_job(session, studio.project_id, me)
        queue.cancel(session, me, job)
    with studio.reading() as session:
        assert audit.verify(session, studio.head)[1] == []
        lines = session.scalars(select(AuditLine).where(AuditLine.object_id == job.id).order_by(AuditLine.number)).all()
        assert [(line.action, line.actor) for line in lines] == [
            ("job queued", me), ("job cancelled", me), ("job ended", None),
        ]  # fmt: skip
        assert session.get_one(Job, job.id).state == JobState.CANCELLED


def test_a_living_worker_comes_to_a_dead_ones_job_within_ten_seconds():
    from phantom_s2v.studio.worker import POLL

    assert queue.LEASE.total_seconds() + POLL < 9.5
    assert queue.LEASE.total_seconds() > 3 * queue.BEAT  # a late heartbeat or two is no death
