"""What somebody might try: forms of other sites, guessing at once, ids of other projects, secrets in logs, and clashes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from phantom_s2v.studio import sign_in
from studio.conftest import PASSWORD


def at_once(count: int, work):
    """What `work(number)` gives in as many threads, which begin together."""
    ready = threading.Barrier(count)

    def begun(number):
        ready.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begun, range(count)))


@pytest.mark.parametrize("authorization", ["Basic YTpi", "x", "Bearer"])
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
