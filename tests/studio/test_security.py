"""What somebody might try: forms of other sites, guessing at once, ids of other projects, secrets in logs, and clashes."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from phantom_s2v.errors import OutputError
from phantom_s2v.models.registry import load_preset, model_folder
from phantom_s2v.studio import audit, drafts, problems, reviews, rights, sign_in, verify
from phantom_s2v.studio.policies import CHECKLIST
from phantom_s2v.studio.problems import Conflict, Problem
from phantom_s2v.studio.schema import (
    Delivery,
    Draft,
    Job,
    JobState,
    Review,
    Right,
    Role,
    Subject,
    Video,
    VideoState,
    Webhook,
)
from studio import queued
from studio.conftest import PASSWORD, person
from studio.rows import add_subject, add_video, frames_of, give_role, mp4, set_policy


def at_once(count: int, work):
    """What `work(number)` gives in as many threads, which begin together."""
    ready = threading.Barrier(count)

    def begun(number):
        ready.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begun, range(count)))


@pytest.mark.parametrize("authorization", ["Basic YTpi", "x"])
def test_only_a_token_of_the_api_needs_no_token_of_the_form(browser, studio, authorization):
    """A browser adds the password that a proxy has asked for to requests of other sites, too."""
    client = browser("maker")
    answer = client.post("/notices/read", headers={"Authorization": authorization})
    assert answer.status_code in (401, 403)


def test_guesses_at_once_are_no_more_than_one_after_the_other(browser, studio, monkeypatch):
    looked, look = [], sign_in.is_password

    def counted(hashed, password):
        looked.append(password)
        return look(hashed, password)

    monkeypatch.setattr(sign_in, "is_password", counted)
    data = {"email": "maker@example.com", "password": "wrong"}
    clients = [browser(None) for _ in range(3 * sign_in.TRIES)]
    statuses = at_once(len(clients), lambda number: clients[number].submit("/sign-in", data).status_code)
    assert len(looked) == sign_in.TRIES
    assert statuses.count(401) == sign_in.TRIES
    assert statuses.count(429) == 2 * sign_in.TRIES


def test_who_signs_in_often_from_one_address_is_let_in(studio, monkeypatch):
    monkeypatch.setattr(sign_in, "PER_ADDRESS", 3)
    guard = sign_in.Guard()
    with studio.reading() as session:
        for _ in range(5):
            assert sign_in.sign_in(session, guard, "maker@example.com", PASSWORD, "192.0.2.1") == studio.people["maker"]


def test_no_secret_of_an_address_and_no_value_of_a_statement_is_logged(browser, studio, monkeypatch, caplog):
    from sqlalchemy.exc import IntegrityError

    from phantom_s2v.studio.logs import JsonLines
    from phantom_s2v.studio.schema import User

    monkeypatch.setattr(sign_in, "link_user", lambda *_: 1 / 0)
    with caplog.at_level("INFO", "phantom_s2v.studio"):
        assert browser(None).get("/link/a-secret-token").status_code == 500
    said = "\n".join(map(JsonLines().format, caplog.records))
    assert "/link/{token}" in said
    assert "ZeroDivisionError" in said
    assert "a-secret-token" not in said
    with pytest.raises(IntegrityError) as refused, studio.writing() as session:
        session.add(User(email="maker@example.com", name="Somebody", password_hash="$argon2id$hash"))
    assert "argon2id" not in str(refused.value)


def test_a_workers_log_is_json_too():
    import logging

    from phantom_s2v.studio import logs, worker

    kept = [(logger, logger.handlers[:], logger.propagate, logger.level)
            for logger in map(logging.getLogger, ("phantom_s2v.studio", "uvicorn.error"))]  # fmt: skip
    try:
        logs.log_json()
        above, found = worker.log, []
        while above:
            found += above.handlers
            above = above.parent if above.propagate else None
        assert [type(each.formatter) for each in found] == [logs.JsonLines]
    finally:
        for logger, handlers, propagate, level in kept:
            logger.handlers, logger.propagate, logger.level = handlers, propagate, level


def test_two_people_sign_at_once(browser, studio, monkeypatch):
    """Each signature is one, and the second of two that were needed completes the approval; a third finds nothing to decide."""
    set_policy(studio, signatures=2)
    film = add_video(studio, mp4(frames_of("1f431", 1, count=3)), subjects=[add_subject(studio)], score={"verdicts": []},
                     num_frames=3, state=VideoState.SUBMITTED)  # fmt: skip
    people = ("approver", "reviewer", "admin")
    for name in people:
        give_role(studio, name, Role.APPROVER)
    actors = [person(studio, name) for name in people]
    yes = dict.fromkeys(CHECKLIST, ("yes", ""))

    def sign(number):
        try:
            with studio.writing() as session:
                video = session.get_one(Video, film)
                return reviews.approve(session, actors[number], video, yes, video.blob, 1).approved
        except Conflict:
            return None

    assert sorted(at_once(3, sign), key=str) == [False, None, True]
    with studio.reading() as session:
        assert session.scalar(select(func.count()).select_from(Review)) == 2


def test_a_right_is_revoked_while_jobs_are_queued_under_it(studio):
    """Whichever comes first: no job waits under a right that is gone."""
    with studio.writing() as session:
        queued.set_policy(session, studio)
        subject = queued.add_subject(session, studio, "fox")
        right, worker = subject.rights[0].id, queued.make_worker(session)
        mini = worker.offers["models"]["phantom-mini"] | queued.profiled(load_preset(model_folder("phantom-mini")))
        worker.offers = {**worker.offers, "models": {"phantom-mini": mini}}
    maker, approver = person(studio, "maker"), person(studio, "approver")
    with studio.writing() as session:
        drafts_ = [drafts.create(session, maker, studio.project_id, prompt="The fox moves", subjects=[subject.id],
                                 purpose="internal trial", territories=["DE"]).id for _ in range(5)]  # fmt: skip

    def work(number):
        try:
            with studio.writing() as session:
                if number == 5:
                    return rights.revoke(session, approver, session.get_one(Right, right), studio.project_id, "withdrawn")
                return drafts.run(session, maker, session.get_one(Draft, drafts_[number])).id
        except Problem:
            return None

    at_once(6, work)
    with studio.reading() as session:
        states = {job.state for job in session.scalars(select(Job))}
    assert states <= {JobState.STOPPED}


def test_what_another_tab_has_saved_is_not_overwritten_unseen(browser, studio):
    first, second = browser("admin"), browser("admin")
    base = f"/projects/{studio.project_id}"

    def fields(page):
        found = dict(re.findall(r'<input[^>]* name="([\w-]+)"[^>]* value="([^"]*)"', page))
        return {name: value for name, value in found.items() if name != "csrf"}

    for address, changed, number in (
        (f"{base}/settings", "name", "price_per_hour"),
        (f"{base}/policy", "label_text", "retention_days"),
    ):
        opened = f"{address}/new?template=standard" if address.endswith("policy") else address
        typed = [fields(each.get(opened).text) for each in (first, second)]
        more = {"kinds": "product", "purposes": "website", "territories": "WORLD", "checklist": "face", "model": "phantom-mini",
                "currency": "EUR"}  # fmt: skip
        assert first.submit(address, {**more, **typed[0], changed: "One"}).status_code == 200
        clash = second.submit(address, {**more, **typed[1], changed: "Two"})
        assert (clash.status_code, "Somebody else has changed this" in clash.text, 'value="Two"' in clash.text) == (
            409,
            True,
            True,
        )
        wrong = second.submit(address, {**more, **typed[1], number: "many"})
        assert fields(wrong.text)["based_on"] == typed[1]["based_on"]  # another mistake does not hide the clash
        assert second.submit(address, {**more, **fields(clash.text), changed: "Two"}).status_code == 200


def test_a_full_disk_and_a_busy_database_are_said_and_nothing_is_changed(browser, studio, monkeypatch):
    client, address = browser("maker", "ja"), f"/projects/{studio.project_id}/subjects"
    before = audit.last
    for error, words in (
        (OutputError("/srv/x cannot be written"), "ディスクがいっぱい"),
        (locked("database or disk is full"), "ディスクがいっぱい"),
        (locked("database is locked"), "混み合って"),
    ):
        monkeypatch.setattr(audit, "last", lambda session, error=error: (_ for _ in ()).throw(error))
        answer = client.submit(address, {"name": "Fox", "kind": "product"})
        monkeypatch.setattr(audit, "last", before)
        assert (answer.status_code, words in answer.text, "/srv/x" in answer.text) == (503, True, False), answer.text
        assert answer.headers["retry-after"] == "60"
    with studio.reading() as session:
        assert session.scalars(select(Subject)).all() == []


def locked(words):
    return OperationalError("insert", {}, Exception(words))


def test_dear_work_is_done_a_few_at_once(browser, studio, monkeypatch):
    """Files that are looked at: who would wait for long is told so."""
    monkeypatch.setattr(verify, "in_turn", lambda turns: problems.in_turn(turns, 0.05))
    for _ in range(2):
        assert verify.LOOKING.acquire(blocking=False)
    try:
        client = browser("maker")
        answer = client.post("/verify", data={"csrf": client.csrf}, files={"file": ("x", b"x")})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
    finally:
        verify.LOOKING.release(2)


def test_failures_are_counted_by_kind(browser, studio):
    with studio.writing() as session:
        for state in (JobState.FAILED, JobState.SET_ASIDE, JobState.SET_ASIDE, JobState.DONE):
            queued.make_job(session, studio.project_id, studio.people["maker"]).state = state
        hook = Webhook(project_id=studio.project_id, url="https://a.example", secret="x", events=[])
        session.add(hook)
        session.flush()
        sent = [Delivery(webhook_id=hook.id, body={}, outcome=outcome) for outcome in ("delivered", "no answer", "")]
        session.add_all(sent)
        session.flush()
        for each in sent[:2]:
            each.next_at = None
    text = browser("boss").get("/metrics").text
    for kind, count in (("failed", 1), ("set aside", 2), ("stopped", 0), ("webhook given up", 1)):
        assert f'studio_failures{{kind="{kind}"}} {count}\n' in text


def test_nobody_has_more_tokens_than_their_page_shows(studio, monkeypatch):
    monkeypatch.setattr(sign_in, "MAX_TOKENS", 2)
    maker = person(studio, "maker")
    with studio.writing() as session:
        for number in range(2):
            sign_in.make_token(session, maker, f"token {number}")
        with pytest.raises(Conflict, match="2 tokens"):
            sign_in.make_token(session, maker, "one more")
