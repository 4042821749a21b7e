"""What somebody might try: forms of other sites, guessing at once, ids of other projects, secrets in logs, and clashes."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from phantom_s2v.studio import access, sign_in
from phantom_s2v.studio.schema import Member, Role
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
