"""Webhooks: signed, tried again, and never into private networks."""

import asyncio
import re
import time
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import select

from phantom_s2v.studio import queue, rights, webhooks
from phantom_s2v.studio.problems import Forbidden, Problem, Problems
from phantom_s2v.studio.queue import Ticket
from phantom_s2v.studio.schema import Delivery, JobState, JobSubject, now
from studio.queued import add_subject, later, make_job, make_worker, video_of

PUBLIC = "93.184.216.34"


@pytest.fixture
def hook(studio, actor_of):
    with studio.writing() as session:
        made = webhooks.add(session, actor_of("admin"), studio.project_id, "https://hooks.example.com/in?a=1", ["video.approved"])
        session.flush()
        session.expunge(made)
    return made


def emit(studio, event="video.approved"):
    with studio.writing() as session:
        webhooks.emit(session, studio.project_id, event, video="v" * 32)


def sending(answers, seen):
    """Receivers that answer with these states."""

    def answer(request):
        seen.append(request)
        return httpx.Response(answers.pop(0))

    return httpx.MockTransport(answer)


def rows(studio):
    with studio.reading() as session:
        found = session.scalars(select(Delivery)).all()
        session.expunge_all()
        return found


def test_an_event_is_signed_and_sent_once(studio, hook):
    emit(studio)
    emit(studio, "video.submitted")  # not asked for
    seen = []
    receiver = sending([204], seen)
    assert webhooks.deliver(studio, receiver, lambda *_: [PUBLIC]) == 1
    assert webhooks.deliver(studio, receiver, lambda *_: [PUBLIC], now() + timedelta(days=1)) == 0
    request = seen[0]
    assert (request.url.host, request.url.path, request.headers["host"]) == (PUBLIC, "/in", "hooks.example.com")
    assert request.extensions["sni_hostname"] == "hooks.example.com"
    seconds, signed = (part.partition("=")[2] for part in request.headers["x-phantom-signature"].split(","))
    assert signed == webhooks.signature(hook.secret, seconds, request.content)
    assert b"video.approved" in request.content
    assert rows(studio)[0].outcome == "delivered"


def test_failures_are_tried_again_with_growing_pauses(studio, hook):
    emit(studio)
    seen, at, pauses = [], now(), []
    receiver = sending([500] * 20, seen)
    for _ in range(len(webhooks.PAUSES) + 3):
        if webhooks.deliver(studio, receiver, lambda *_: [PUBLIC], at):
            row = rows(studio)[0]
            pauses.append((row.next_at - now()).total_seconds() if row.next_at else None)
        at += timedelta(days=2)
    assert [pause and round(pause, -1) for pause in pauses] == [*webhooks.PAUSES, None]
    assert rows(studio)[0].outcome == "answered 500"


PRIVATE = (
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "100.64.0.1",
    "224.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::1", "::127.0.0.1",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_networks_are_refused(studio, hook, address):
    emit(studio)
    seen = []
    webhooks.deliver(studio, sending([200], seen), lambda *_: [PUBLIC, address])
    assert seen == []
    assert "private network" in rows(studio)[0].outcome


def test_who_may_add_one_and_what(studio, actor_of):
    with studio.writing() as session, pytest.raises(Forbidden):
        webhooks.add(session, actor_of("maker"), studio.project_id, "https://a.example", ["video.approved"])
    for url in ("ftp://a.example", "javascript:alert(1)", "https://user:pw@a.example", "x", ""):
        with studio.writing() as session, pytest.raises(Problem):
            webhooks.add(session, actor_of("admin"), studio.project_id, url, ["video.approved"])
    with studio.writing() as session, pytest.raises((Problem, Problems)):
        webhooks.add(session, actor_of("admin"), studio.project_id, "https://a.example", ["nothing"])


def test_a_removed_one_takes_its_events_along(studio, actor_of, hook):
    emit(studio)
    with studio.writing() as session:
        webhooks.remove(session, actor_of("admin"), studio.project_id, hook.id)
    assert rows(studio) == []


def test_jobs_and_rights_are_told_of(studio, actor_of):
    """Every event of jobs and rights, each where it happens, with ids and numbers alone."""
    asked = [each for each in webhooks.EVENTS if each.startswith(("job.", "right."))]
    with studio.writing() as session:
        webhooks.add(session, actor_of("admin"), studio.project_id, "https://hooks.example.com", asked)
        me, worker = studio.people["maker"], make_worker(session)
        jobs = [make_job(session, studio.project_id, me) for _ in range(5)]
        queue.cancel(session, me, jobs[4])
        _, failing, aside, stopping = jobs[:4]
        for job in jobs[:4]:
            job.state, job.worker_id, job.lease_until = JobState.RUNNING, worker.id, later(10)
        session.add(video_of(session, jobs[0]))
        assert queue.advance(session, Ticket(jobs[0].id, 0))
        queue.end(session, Ticket(failing.id, 0), JobState.FAILED, "no")
        aside.deaths, aside.lease_until = queue.DEATHS, later(-1)
        queue.sweep(session)
        subject = add_subject(session, studio, "fox")
        right, other = subject.rights[0], add_subject(session, studio, "wolf").rights[0]
        session.add(JobSubject(job_id=stopping.id, subject_id=subject.id, right_id=right.id))
        right.checked_by = right.checked_at = None
        rights.check(session, actor_of("reviewer"), right, studio.project_id)
        rights.revoke(session, actor_of("reviewer"), right, studio.project_id, "withdrawn")
        other.valid_until = later(3600)
        rights.sweep(session)
        rights.sweep(session, later(7200))
    events = [row.body for row in rows(studio)]
    assert {each["event"] for each in events} == set(asked)
    assert not {"fox", "wolf", "withdrawn", "Maker"} & {str(value) for each in events for value in each.values()}
    assert next(each for each in events if each["event"] == "right.revoked")["jobs"] == 1


def test_the_page_shows_the_secret_once_and_what_was_sent(studio, browser, hook):
    admin, address = browser("admin"), f"/projects/{studio.project_id}/webhooks"
    assert browser("maker").get(address).status_code == 403
    wrong = admin.submit(address, {"url": "ftp://a", "events": "job.finished"})
    assert wrong.status_code == 422
    assert 'value="ftp://a"' in wrong.text
    assert 'value="job.finished" checked' in wrong.text
    page = admin.submit(address, {"url": "https://new.example/in", "events": ["job.finished"]}).text
    secret = re.search(r'id="secret" readonly value="(\w{64})"', page)[1]
    assert secret not in admin.get(address).text
    assert hook.secret not in page
    emit(studio)
    one = f"{address}/{hook.id}"
    for answers, words in (([], "waiting"), ([500], "answered with status 500"), ([204], "delivered")):
        if answers:
            webhooks.deliver(studio, sending(answers, []), lambda *_: [PUBLIC], later(3600 * len(words)))
        assert words in admin.get(one).text
    assert admin.submit(f"{one}/remove").url.path == address
    assert admin.get(one).status_code == 404


ADDRESSES = (
    "https://[::1", "https://a.example:99999/", "https://a.example:x/", f"https://{'a' * 64}.example/", "https://a..b/",
    "https://℀.example/", "https://a.example:0/",
)  # fmt: skip


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_that_cannot_be_one_is_refused_and_stops_no_other(studio, actor_of, browser, hook, url):
    admin, address = browser("admin"), f"/projects/{studio.project_id}/webhooks"
    assert admin.submit(address, {"url": url, "events": "job.finished"}).status_code == 422
    with studio.writing() as session:  # one from before they were looked at
        old = webhooks.add(session, actor_of("admin"), studio.project_id, "https://old.example", ["video.approved"])
        old.url, old.created_at = url, now() - timedelta(days=1)
    emit(studio)
    seen = []
    assert webhooks.deliver(studio, sending([204], seen), lambda *_: [PUBLIC]) == 2
    assert len(seen) == 1
    assert sorted(row.outcome for row in rows(studio)) == ["delivered", "the name was not found"]


def test_a_receiver_that_never_ends_its_answer_is_left(studio, hook, monkeypatch):
    """It sends a byte whenever the patience for the next one is nearly over."""
    monkeypatch.setattr(webhooks, "SECONDS", 0.3)

    async def answer(request):
        for _ in range(100):
            await asyncio.sleep(0.1)
        return httpx.Response(200)

    emit(studio)
    began = time.monotonic()
    webhooks.deliver(studio, httpx.MockTransport(answer), lambda *_: [PUBLIC])
    assert time.monotonic() - began < 9
    assert rows(studio)[0].outcome == "no answer"
