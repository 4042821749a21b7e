"""Pages of review, sign-off, export and verification, as people of each role use them."""

import io
import re

import pytest
from sqlalchemy import func, select

from phantom_s2v.studio import certificates, examining, reviews, verify
from phantom_s2v.studio.policies import CHECKLIST
from phantom_s2v.studio.schema import Comment, Export, Subject, Video, VideoState
from studio.rows import add_subject, add_video, frames_of, mp4, set_policy

FRAMES = frames_of("1f431", 3)
CONTENT = mp4(FRAMES)
NASTY = ('<script>alert(1)</script>"><img src=x>', "'; drop table comments; -- {{ 7*7 }} %(name)s 狐🦊", "=cmd|' /C calc'!A0")


@pytest.fixture
def film(studio):
    set_policy(studio)
    return add_video(studio, CONTENT, subjects=[add_subject(studio)], score={"verdicts": []})


@pytest.fixture
def here(studio, film):
    return f"/projects/{studio.project_id}/videos/{film}"


def row(studio, film):
    with studio.reading() as session:
        return session.get_one(Video, film)


def signed(browser, here):
    """What the approver's form of sign-off carries, everything answered."""
    page = browser.get(f"{here}/sign-off").text
    hidden = dict(re.findall(r'type="hidden" name="(sha256|policy)" value="(\w+)"', page))
    return {**hidden, "decision": "approve", **{f"check-{item}": "yes" for item in CHECKLIST}}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_from_hand_in_to_a_verified_export(studio, browser, film, here, language, monkeypatch):
    monkeypatch.setattr(verify, "_examine_apart", lambda folder, asked: examining.examine(folder, **asked))
    certificates.make(studio.settings.folder / "certificate", "A company")
    maker, reviewer, approver = (browser(name, language) for name in ("maker", "reviewer", "approver"))
    assert maker.submit(f"{here}/submit").status_code == 200
    assert row(studio, film).prompt in approver.get("/notices").text  # which of several videos it is about
    said = {"text": NASTY[0], "where": "place", "frame": "12", "x": "250", "y": "1000"}
    page = reviewer.submit(f"{here}/comments", said)
    assert "&lt;script&gt;alert(1)" in page.text
    assert "<script>alert" not in page.text
    assert 'data-x="0.25" data-y="1.0"' in page.text
    assert approver.submit(f"{here}/sign-off", {**signed(approver, here), "check-logo": ""}).status_code == 422
    assert row(studio, film).state == VideoState.SUBMITTED
    assert approver.submit(f"{here}/sign-off", signed(approver, here)).status_code == 200
    assert row(studio, film).state == VideoState.APPROVED
    assert maker.submit(f"{here}/export", {"label": "yes"}).status_code == 200
    with studio.reading() as session:
        made = session.scalars(select(Export)).one()
    for part, kind in (("video", "video/mp4"), ("poster", "image/jpeg"), ("report", "text/html; charset=utf-8")):
        answer = maker.get(f"{here}/exports/{made.id}/{part}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert "sandbox" in answer.headers["content-security-policy"]
    film_file = maker.get(f"{here}/exports/{made.id}/video").content
    found = maker.post("/verify", data={"csrf": maker.csrf}, files={"file": (NASTY[0], film_file)})
    assert {"en": "unchanged", "ja": "変更されていません"}[language] in found.text
    assert "<script>alert" not in found.text
    assert maker.post("/verify", data={"csrf": maker.csrf}).status_code == 422


def test_nothing_typed_is_lost(browser, studio, film, here):
    reviewer, approver, maker = browser("reviewer"), browser("approver"), browser("maker")
    page = reviewer.submit(f"{here}/comments", {"text": NASTY[1], "where": "frame", "frame": "9999"})
    assert page.status_code == 422
    assert "drop table comments; -- {{ 7*7 }} %(name)s 狐🦊" in page.text
    assert "from 0 to 24" in page.text
    maker.submit(f"{here}/submit")
    form = {**signed(approver, here), "check-face": "no", "note-face": NASTY[2], "note": "Look again."}
    page = approver.submit(f"{here}/sign-off", form)
    assert page.status_code == 422
    assert "calc" in page.text
    assert ">Look again.</textarea>" in page.text
    assert page.text.count("checked") == len(CHECKLIST)
    page = approver.submit(f"{here}/sign-off", {"decision": "send back", "note": ""})
    assert page.status_code == 422
    assert reviewer.submit(f"{here}/sign-off", {"decision": "send back", "note": "Too dark."}).status_code == 200
    assert row(studio, film).state == VideoState.SENT_BACK


def test_numbers_that_are_none_are_refused(browser, studio, film, here):
    client = browser("reviewer")
    for frame in ("", "-1", "1e3", "٣", "9" * 40, "nan"):
        answer = client.submit(f"{here}/comments", {"text": "x", "where": "frame", "frame": frame})
        assert answer.status_code == 422, frame
    answer = client.submit(f"{here}/comments", {"text": "x", "where": "place", "frame": "1", "x": "2000", "y": "0"})
    assert answer.status_code == 422
    with studio.reading() as session:
        assert session.scalar(select(func.count()).select_from(Comment)) == 0


def test_pages_need_five_queries_however_much_there_is(browser, studio, film, here, statements, actor_of):
    subject = add_subject(studio)
    for number in range(30):
        add_video(studio, f"video {number}".encode(), subjects=[subject], score={"verdicts": []})
    with studio.writing() as session:
        for number in range(40):
            reviews.comment(session, actor_of("reviewer"), session.get_one(Video, film), f"{number}", number % 25)
    client = browser("approver")
    for address in (
        f"{here}/review",
        f"{here}/sign-off",
        f"{here}/export",
        f"/projects/{studio.project_id}/reviews?state=all",
        "/verify",
    ):
        statements.texts.clear()
        assert client.get(address).status_code == 200
        assert len(statements.texts) <= 5, (address, statements.texts)


def test_every_page_is_said_in_japanese(browser, studio, film, here):
    client = browser("approver", "ja")
    for address in (f"{here}/review", f"{here}/sign-off", f"{here}/export", f"/projects/{studio.project_id}/reviews", "/verify"):
        page = client.get(address).text
        main = page[page.index("<main") : page.index("</main>")].replace("The cup moves.", "")  # what was typed
        main = re.sub(r"<[^>]+>", " ", main)
        english = [word for word in re.findall(r"[A-Za-z]{4,}", main) if word not in ("SHA", "Approver", "Maker", "KPIs")]
        assert not english, (address, english)


def test_a_video_of_another_project_is_not_there(browser, studio, here):
    assert browser("maker").get(f"/projects/{studio.project_id}/videos/{'0' * 32}/review").status_code == 404
    assert browser("outsider").get(f"{here}/review").status_code == 404


def test_the_file_that_verify_is_given_is_not_kept(browser, studio, film, monkeypatch):
    monkeypatch.setattr(verify, "_examine_apart", lambda folder, asked: examining.examine(folder, **asked))
    client = browser("maker")
    before = {path for path in studio.settings.folder.rglob("*") if path.is_file()}
    page = client.post("/verify", data={"csrf": client.csrf}, files={"file": ("x.mp4", io.BytesIO(b"no video"))})
    assert "Nothing is known of this file" in page.text
    after = {path for path in studio.settings.folder.rglob("*") if path.is_file()}
    assert {path.suffix for path in after ^ before} <= {".sqlite-wal", ".sqlite-shm"}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_subject_is_forgotten_by_typing_its_name(browser, studio, film, language):
    with studio.reading() as session:
        subject = session.scalars(select(Subject.id)).one()
    here = f"/projects/{studio.project_id}/subjects/{subject}/erase"
    admin = browser("admin", language)
    assert "Red cup" in admin.get(here).text
    wrong = admin.submit(here, {"name": "red cup"})
    assert (wrong.status_code, 'value="red cup"' in wrong.text) == (422, True)
    assert browser("maker").submit(here, {"name": "Red cup"}).status_code == 403
    assert admin.submit(here, {"name": "Red cup"}).status_code == 200
    assert admin.get(here).status_code == 404
    with studio.reading() as session:
        assert session.get(Video, film) is None
