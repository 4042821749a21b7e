"""The raters' page: who votes is known by a secret link, other pages cannot vote, and headers do not tell the systems apart."""

import os
import sqlite3
import stat

import numpy as np
import pytest
from fastapi.testclient import TestClient

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation import rating, votes
from phantom_s2v.evaluation.pairs import find_pairs
from phantom_s2v.evaluation.votes import open_votes, results
from phantom_s2v.media import images

HOME = "http://127.0.0.1:8765"
FORM = {"better": "left"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    for number, system in enumerate(("a", "b")):
        (folder / system).mkdir()
        for case in ("one", "two"):
            path = folder / system / f"{case}.mp4"
            images.write_video(path, np.full((4, 16, 16, 3), 100 * number, np.uint8), 8)
            os.utime(path, (1e9 * (1 + number / 10),) * 2)
    return find_pairs([folder / "a", folder / "b"], {})


@pytest.fixture
def served(pairs, tmp_path):
    file = tmp_path / "votes.sqlite"
    client = TestClient(rating.application(pairs, file), base_url=HOME)
    links = {name: f"/rate/{secret}" for name, secret in votes.links(file, ["Ann", "Bo"]).items()}
    return client, links, file


def votes_of(file):
    return sqlite3.connect(file).execute("select rater, choice from votes where question = 'better'").fetchall()


def test_nobody_votes_as_another(served, pairs):
    client, links, file = served
    for name, answer in (("Ann", "left"), ("Bo", "right")):
        form = {"better": answer, "rater": "Ann"}
        assert (
            client.post(f"{links[name]}/vote/0", data=form, headers={"Origin": HOME}, follow_redirects=False).status_code == 303
        )
    side = {name: pairs[0].sides(name)[answer] for name, answer in (("Ann", 0), ("Bo", 1))}
    assert sorted(votes_of(file)) == [("Ann", "ab"[side["Ann"]]), ("Bo", "ab"[side["Bo"]])]
    for place in ("/rate/guessed", "/next?rater=Ann", "/", "/rate/%00", "/rate/Ann"):
        assert client.get(place).status_code == 404
    assert client.post("/rate/guessed/vote/0", data=FORM, headers={"Origin": HOME}).status_code == 404


def test_links_are_long_differ_and_stay_the_same(served):
    _, links, file = served
    assert len({*links.values()}) == 2
    assert all(len(link) >= len("/rate/") + 32 for link in links.values())
    again = votes.links(file, ["Bo", "Carl"])
    assert {name: f"/rate/{secret}" for name, secret in again.items() if name != "Carl"} == links
    for name in ("", "  ", "x" * 81):
        with pytest.raises(InputError, match="must have 1 to 80"):
            votes.links(file, [name])


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:9", "http://127.0.0.1:8765.evil.example"]
)
def test_a_vote_comes_from_the_page_itself(served, origin):
    client, links, file = served
    headers = {} if origin is None else {"Origin": origin}
    assert client.post(f"{links['Ann']}/vote/0", data=FORM, headers=headers).status_code == 403
    assert votes_of(file) == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200), ("localhost:9000", 200), ("[::1]:8765", 200), ("10.0.0.7", 200),
        ("evil.example", 421), ("evil.example:8765", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("a]:1", 421),
    ],
)  # fmt: skip
def test_another_name_for_this_machine_is_refused(served, host, status):
    """A page of evil.example can point its own name at the loopback, and read and vote from there."""
    client, links, _ = served
    assert client.get(links["Ann"], headers={"Host": host}).status_code == status


def test_no_header_tells_the_systems_apart(served):
    client, links, _ = served
    seen = []
    for headers in ({}, {"Range": "bytes=0-99"}):
        for side in (0, 1):
            answer = client.get(f"{links['Ann']}/video/0/{side}", headers=headers)
            assert answer.status_code == (206 if headers else 200)
            seen.append({k: v for k, v in answer.headers.items() if k not in ("content-length", "content-range")})
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert not {"last-modified", "etag"} & set(seen[0])
    assert seen[0]["cache-control"] == "no-store"
    assert "default-src 'none'" in client.get(links["Ann"]).headers["content-security-policy"]


def test_a_large_body_is_not_read(served):
    client, links, _ = served
    origin = {"Origin": HOME}
    assert client.post(f"{links['Ann']}/vote/0", data={"better": "x" * 100_000}, headers=origin).status_code == 413
    endless = (b"x" * 100 for _ in range(3))  # sent in chunks, without a length
    assert client.post(f"{links['Ann']}/vote/0", content=endless, headers=origin).status_code == 413


def test_a_link_is_no_file_of_votes(tmp_path):
    link, target = tmp_path / "v.sqlite", tmp_path / "other.sqlite"
    link.symlink_to(target)
    with pytest.raises(InputError, match=r"v\.sqlite is a symbolic link"):
        open_votes(link)
    assert not target.exists()
    open_votes(target).close()
    target.chmod(0o644)
    with pytest.raises(InputError, match=r"v\.sqlite is a symbolic link"):
        open_votes(link)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_votes_are_their_owners(served, tmp_path, monkeypatch):
    _, _, file = served
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    old = tmp_path / "old.sqlite"
    open_votes(old).close()
    old.chmod(0o644)
    open_votes(old).close()
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


def test_counting_writes_nothing_into_another_file(tmp_path):
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as base:
        base.execute("create table notes (text)")
    before = foreign.read_bytes()
    with pytest.raises(InputError, match="is not a valid votes file"):
        results(foreign)
    assert foreign.read_bytes() == before


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_other_machines_need_to_be_allowed(call_phantom, pairs, tmp_path, host):
    folders = [pairs[0].videos[i].parent for i in (0, 1)]
    code, said = call_phantom("evaluate", "rate", *folders, "--votes", tmp_path / "v.sqlite", "--host", host)
    assert code == 2
    assert "--allow-remote" in said.err
    assert "not encrypted" in said.err
    assert not (tmp_path / "v.sqlite").exists()


def test_the_command_prints_a_link_for_each_rater(call_phantom, pairs, tmp_path, monkeypatch):
    import uvicorn

    served = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: served.append(options["host"]))
    folders = [pairs[0].videos[i].parent for i in (0, 1)]
    asked = ("evaluate", "rate", *folders, "--votes", tmp_path / "v.sqlite", "--rater", "Ann", "--rater", "B\x1b[2Jo")
    for more in ((), ("--host", "0.0.0.0", "--allow-remote"), ("--host", "::1")):
        code, said = call_phantom(*asked, *more)
        assert code == 0, said.err
        assert said.out.count("/rate/") == 2
        assert "\x1b" not in said.out
    assert served == ["127.0.0.1", "0.0.0.0", "::1"]
