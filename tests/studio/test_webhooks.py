"""Webhooks: signed, tried again, and never into private networks."""

from datetime import timedelta

import httpx
import pytest
from sqlalchemy import select

from phantom_s2v.studio import webhooks
from phantom_s2v.studio.problems import Forbidden, Problem, Problems
from phantom_s2v.studio.schema import Delivery, now

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
    """A client whose receiver answers with these states."""

    def answer(request):
        seen.append(request)
        return httpx.Response(answers.pop(0))

    return httpx.Client(transport=httpx.MockTransport(answer))


def rows(studio):
    with studio.reading() as session:
        found = session.scalars(select(Delivery)).all()
        session.expunge_all()
        return found


def test_an_event_is_signed_and_sent_once(studio, hook):
    emit(studio)
    emit(studio, "video.submitted")  # not asked for
    seen = []
    client = sending([204], seen)
    assert webhooks.deliver(studio, client, lambda *_: [PUBLIC]) == 1
    assert webhooks.deliver(studio, client, lambda *_: [PUBLIC], now() + timedelta(days=1)) == 0
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
    client = sending([500] * 20, seen)
    for _ in range(len(webhooks.PAUSES) + 3):
        if webhooks.deliver(studio, client, lambda *_: [PUBLIC], at):
            row = rows(studio)[0]
            pauses.append((row.next_at - now()).total_seconds() if row.next_at else None)
        at += timedelta(days=2)
    assert [pause and round(pause, -1) for pause in pauses] == [*webhooks.PAUSES, None]
    assert rows(studio)[0].outcome == "answered 500"


PRIVATE = (
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "100.64.0.1",
    "224.0.0.1",
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
