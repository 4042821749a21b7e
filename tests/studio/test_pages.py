"""Every page with everything in it: five statements, texts as they were typed, and forms that lose nothing."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.evaluation.kpi import parse_kpis
from phantom_s2v.studio import access, policies, rights, subjects
from phantom_s2v.studio.schema import Member, Notice, Project, Right, Role, Subject, User, now
from phantom_s2v.studio.web.view import SESSION
from studio.conftest import copied, make_studio, person

NASTY = (
    "../../etc/passwd", "/etc/passwd\u0000", "=cmd|' /C calc'!A0 @SUM(A1)",
    "<script>alert(1)</script>\"><img src=x onerror=alert(1)>",
    "'; drop table users; -- {{ 7*7 }} %(name)s %d {0} ${7*7} 狐の動画🦊",
)  # fmt: skip


def picture(color=(200, 90, 20)) -> bytes:
    """A photograph's stand-in: 300 x 300 pixels of noise on one color."""
    rng = np.random.default_rng(0)
    pixels = np.full((300, 300, 3), 255, np.uint8)
    pixels[60:240, 60:240] = np.clip(rng.normal(color, 40, (180, 180, 3)), 0, 255)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


@pytest.fixture(scope="module")
def module_decoder():
    from phantom_s2v.studio.uploads import Decoder

    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture
def app(app, module_decoder):
    """The application with one decoder for all tests of this file."""
    app.state.decoder = module_decoder
    return app


@pytest.fixture(scope="module")
def full_folder(template_folder, module_decoder, tmp_path_factory) -> Path:
    """A studio's folder whose project has a policy, a subject with an image and two rights, and notices."""
    folder = tmp_path_factory.mktemp("full") / "studio"
    with copied(template_folder, folder) as studio:
        maker = person(studio, "maker")
        with ExitStack() as stack:
            decoded = stack.enter_context(module_decoder.decoded(io.BytesIO(picture())))
            files = [stack.enter_context(studio.storage.staged(path.read_bytes())) for path in (decoded.image, decoded.thumbnail)]
            session = stack.enter_context(studio.writing())
            policies.put(session, person(studio, "admin"), studio.project_id, policies.TEMPLATES["japan"])
            subject = subjects.create(session, maker, studio.project_id, "Fox", "product")
            subjects.add_image(session, maker, subject, decoded, tuple(files))
            for days in (None, 20):
                until = now() + timedelta(days=days) if days else None
                record = rights.Record("Fox", "Us", "own", ["website"], ["JP"], now() - timedelta(days=1), until)
                with studio.storage.staged(b"%PDF-1.7 contract") as staged:
                    rights.add(session, maker, subject, record, (staged, "contract.pdf", "application/pdf"))
            assert rights.sweep(session) == 1
    return folder


@pytest.fixture
def studio(full_folder, tmp_path) -> Iterator:
    """A copy of it."""
    with copied(full_folder, tmp_path / "studio") as made:
        yield made


@pytest.fixture
def full(studio) -> dict[str, str]:
    """Ids of what is in it, by the names that addresses give them."""
    with studio.reading() as session:
        subject = session.query(Subject).one()
        return {"subject_id": subject.id, "image_id": subject.images[0].id, "right_id": subject.rights[0].id}


def pages(studio, full):
    """Addresses of all pages that are read, of routes that need nothing but a project and this file's subject."""
    for rule in access.RULES:
        method, _, path = rule.partition(" ")
        names = set(re.findall(r"\{(\w+)", path))
        if method == "GET" and names <= {"project_id", *full} and not path.startswith(("/metrics", "/ready")):
            yield path.format(project_id=studio.project_id, **full)


def test_every_page_is_at_most_five_statements(studio, browser, full, statements):
    client = browser("admin")
    with studio.writing() as session:
        session.get_one(User, studio.people["admin"]).admin = True
        session.add(Member(project_id=studio.project_id, user_id=studio.people["admin"], role=Role.MAKER))
    seen = {}
    for address in pages(studio, full):
        statements.texts.clear()
        answer = client.get(address)
        assert answer.status_code == 200, (address, answer.text)
        seen[address] = len(statements.texts)
    assert {address: count for address, count in seen.items() if count > 5} == {}
    assert len(seen) > 20


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_page_is_well_formed(studio, browser, full, language):
    client = browser("boss", language)
    for address in pages(studio, full):
        answer = client.get(address)
        if "text/html" not in answer.headers["content-type"]:
            continue
        text = answer.text
        assert f'<html lang="{language}">' in text
        assert text.count("<h1") == 1, address
        assert not re.search(r"\son\w+=|<style|style=|javascript:", text), address
        ids = re.findall(r'\sid="([^"]+)"', text)
        assert len(ids) == len(set(ids)), address
        for field in re.findall(r'<(?:input|select|textarea)\s[^>]*?id="([^"]+)"', text):
            assert f'for="{field}"' in text, (address, field)
        for name in re.findall(r'aria-(?:describedby|labelledby)="([^"]+)"', text):
            assert set(name.split()) <= set(ids), (address, name)


def test_texts_come_back_as_texts(studio, browser, full):
    """In every field of every form, what was typed is shown as it was typed or refused, and is no path, formula or markup."""
    maker, boss = browser("maker"), browser("boss")
    here = f"/projects/{studio.project_id}"
    subject = f"{here}/subjects/{full['subject_id']}"
    before = {path.relative_to(studio.settings.folder) for path in studio.settings.folder.rglob("*") if "files" not in path.parts}
    for text in NASTY:
        typed = ("name", "email", "shown", "owner", "note", "label_text", "reason", "kind", "model", "token_name", "valid_from")
        names = dict.fromkeys((*typed, "document_name", "parked", "next", "currency", "language", "roles", "basis"), text)
        for client, address in (
            (maker, f"{here}/subjects"), (maker, subject), (maker, f"{subject}/rights"), (boss, "/projects"), (boss, "/people"),
            (boss, f"{here}/settings"), (boss, f"{here}/policy"), (boss, "/account/tokens"), (boss, f"{here}/members"),
            (boss, f"{subject}/rights/{full['right_id']}/revoke"), (maker, "/language"),
        ):  # fmt: skip
            for changed in ({}, {"kind": "product", "email": "a@b.example", "language": "en"}):
                answer = client.submit(address, {**names, **changed})
                assert answer.status_code in (200, 409, 422, *([404] if address == "/language" else [])), (
                    address,
                    text,
                    answer.status_code,
                    answer.text[:500],
                )
                assert "<script>alert" not in answer.text
                assert "<img src=x" not in answer.text
                assert ">49<" not in answer.text
        upload = maker.submit(f"{subject}/images", files={"images": (text, b"no image")})
        assert upload.status_code == 422
        assert "<script>alert" not in upload.text
    after = {path.relative_to(studio.settings.folder) for path in studio.settings.folder.rglob("*") if "files" not in path.parts}
    assert after == before  # no name became a path
    with studio.reading() as session:
        kept = {subject.name for subject in session.query(Subject)}
        assert set(NASTY) - {NASTY[1]} <= kept  # all but the one that no text may be
    shown = html.unescape(maker.get(f"{here}/subjects").text)
    assert "{{ 7*7 }}" in shown


def test_nothing_typed_is_lost(studio, browser, full):
    maker, here = browser("maker"), f"/projects/{studio.project_id}/subjects/{full['subject_id']}"
    typed = {"shown": "A & B", "owner": "Owner Ltd", "basis": "license", "uses": ["website"], "territories": ["JP", "FR"]}
    typed |= {"valid_from": "2026-02-03", "valid_until": "yesterday"}
    answer = maker.submit(f"{here}/rights", typed, files={"document": ("契約.pdf", b"%PDF-1.7 new")})
    assert answer.status_code == 422
    assert "Please enter a date as year-month-day" in answer.text
    for text in (
        "A &amp; B",
        "Owner Ltd",
        'value="2026-02-03"',
        'value="yesterday"',
        'value="FR" checked',
        'value="license" selected',
    ):
        assert text in answer.text, text
    parked = re.search(r'name="parked" value="(\w{64})"', answer.text)[1]
    answer = maker.submit(f"{here}/rights", {**typed, "valid_until": "2027-02-03", "parked": parked, "document_name": "契約.pdf"})
    assert answer.status_code == 200
    with studio.reading() as session:
        right = session.query(Right).where(Right.basis == "license").one()
        assert studio.storage.read(right.document) == b"%PDF-1.7 new"
        assert right.document_name == "契約.pdf"
        assert right.valid_until.isoformat() == "2027-02-04T00:00:00+00:00"  # the day itself is included


def test_images_are_kept_without_metadata_and_only_members_see_them(studio, browser, full):
    here = f"/projects/{studio.project_id}/subjects/{full['subject_id']}"
    photo = Image.new("RGB", (400, 300), (90, 120, 30))
    exif = photo.getexif()
    exif[0x010E], exif[0x0112] = "secret place", 6
    target = io.BytesIO()
    photo.save(target, "JPEG", exif=exif)
    assert b"secret place" in target.getvalue()
    browser("maker").submit(f"{here}/images", files={"images": ("photo.jpg", target.getvalue())})
    with studio.reading() as session:
        image = session.get_one(Subject, full["subject_id"]).images[-1]
        kept = studio.storage.read(image.blob)
    assert b"secret" not in kept
    assert (image.width, image.height) == (300, 400)  # upright
    for name, status in (("reviewer", 200), ("outsider", 404)):
        for address in (f"{here}/images/{image.id}", f"{here}/images/{image.id}/thumbnail"):
            answer = browser(name).get(address)
            assert answer.status_code == status
    assert "sandbox" in browser("reviewer").get(f"{here}/images/{image.id}").headers["content-security-policy"]
    document = browser("reviewer").get(f"{here}/rights/{full['right_id']}/document")
    assert document.headers["content-disposition"].startswith("attachment")


def taken_by(described, method: str, path: str, values: dict) -> dict:
    """Of values those that an address of the API takes."""
    body = described["paths"].get(path, {}).get(method.lower(), {}).get("requestBody", {}).get("content", {})
    shape = body.get("application/json", {}).get("schema", {})
    named = described["components"]["schemas"].get(shape.get("$ref", "").rpartition("/")[2], {})
    return {name: value for name, value in values.items() if name in named.get("properties", {})}


def test_an_object_of_another_project_is_not_there(app, studio, browser, full):
    """Whoever is a member of one project reaches nothing of another through it."""
    with studio.writing() as session:
        other = Project(name="Other")
        session.add(other)
        session.flush()
        from phantom_s2v.studio.schema import Member, Role

        session.add_all(Member(project_id=other.id, user_id=studio.people["outsider"], role=role) for role in Role)
    client = browser("outsider")
    for rule in access.RULES:
        method, _, path = rule.partition(" ")
        names = set(re.findall(r"\{(\w+)", path))
        if "project_id" in names and len(names) > 1 and names <= {"project_id", *full}:
            address = path.format(project_id=other.id, **full)
            body = {"reason": "x", "name": "x", "kind": "product", "shown": "x", "owner": "x", "basis": "own"}
            body |= {"uses": ["website"], "territories": ["JP"], "valid_from": "2026-01-01T00:00:00Z"}
            kind = {"json": taken_by(app.openapi(), method, path, body)} if address.startswith("/api/") else {}
            kind = kind or {"data": body if method == "POST" else None}
            answer = client.request(method, address, headers={"X-CSRF-Token": client.csrf}, **kind)
            assert answer.status_code == 404, address


def test_a_right_is_checked_and_revoked_in_the_browser(studio, browser, full):
    here = f"/projects/{studio.project_id}/subjects/{full['subject_id']}"
    right = f"{here}/rights/{full['right_id']}"
    assert "I have checked it" not in browser("maker").get(here).text
    reviewer = browser("reviewer")
    assert "The record was checked." in reviewer.submit(f"{right}/check").text
    assert reviewer.submit(f"{right}/check").status_code == 409
    answer = reviewer.submit(f"{right}/revoke", {"reason": " "})
    assert answer.status_code == 422
    assert "rights revoked" in reviewer.submit(f"{right}/revoke", {"reason": "withdrawn"}).text


def test_notices_are_counted_until_they_are_read(studio, browser, full):
    admin = browser("admin")
    assert '<span class="count">1</span>' in admin.get("/").text
    assert "The rights of Fox end soon (days left: " in admin.get("/notices").text
    assert '<span class="count">' not in admin.submit("/notices/read").text
    with studio.reading() as session:
        assert session.query(Notice).count() == 2  # the one who entered it, and the project's administrator


def test_the_first_start_makes_an_administrator(tmp_path):
    from fastapi.testclient import TestClient

    from phantom_s2v.studio.serving import first_link
    from phantom_s2v.studio.web.app import create_app

    studio = make_studio(tmp_path / "new")
    link = first_link(studio)
    assert link != first_link(studio)  # each start makes another, until one was used
    link = first_link(studio)
    with TestClient(create_app(studio), base_url="http://127.0.0.1:8765") as client:
        page = client.get(link)
        assert "Choose a password" in page.text
        values = {"password": "a long enough one", "again": "a long enough one", "name": "田中", "email": "tanaka@example.jp"}
        assert "Please fill this in." in client.post(link, data=values).text
        values["organization"] = "見本"
        assert client.post(link, data={**values, "again": "another"}).status_code == 422
        page = client.post(link, data=values, headers={"accept-language": "ja"})
        assert "新規プロジェクト" in page.text
        assert client.get(link).status_code == 404
        assert client.cookies[SESSION]
    assert first_link(studio) is None
    studio.engine.dispose()


def test_settings_are_kept_and_wrong_ones_named(studio, browser):
    admin, address = browser("admin"), f"/projects/{studio.project_id}/settings"
    values = {"name": "Winter", "model": "phantom-mini", "currency": "JPY", "price_per_hour": "120", "budget": "50000"}
    kpis = '[similarity]\nmin = 0.6\nreason = "below it our team no longer knew the bottle"'
    for wrong, sentence in (
        ({"kpis": "[unknown]\nmin = 1"}, "unknown metric unknown"),
        ({"kpis": "no toml"}, "not a valid TOML"),
        ({"budget": "much"}, "Please enter an amount"),
        ({"price_per_hour": "1.5"}, "Please enter an amount"),  # yen have no cents
    ):
        answer = admin.submit(address, {**values, "kpis": kpis, **wrong})
        assert answer.status_code == 422
        assert sentence in html.unescape(answer.text)
    assert "Saved." in admin.submit(address, {**values, "kpis": kpis}).text
    with studio.reading() as session:
        project = session.get_one(Project, studio.project_id)
        assert (project.price_per_hour, project.budget, project.kpis) == (120, 50_000, kpis)


def test_thresholds_are_set_in_rows_or_in_the_file(studio, browser):
    admin, address = browser("admin"), f"/projects/{studio.project_id}/settings"
    values = {"name": "Winter", "model": "phantom-mini", "currency": "EUR", "price_per_hour": "", "budget": ""}
    file = '[blur]\nmax = 12\nreason = "ours"\n\n[seen]\nmin = 0.5\nreason = "half"\nnetwork = "n"\n'
    assert "Saved." in admin.submit(address, {**values, "kpis": file}).text

    def kept() -> str:
        with studio.reading() as session:
            return session.get_one(Project, studio.project_id).kpis

    assert 'name="kpi-seen" value="0.5"' in admin.get(address).text
    rows = {"kpi-seen": "0.5", "kpi-seen-reason": "half"}
    assert "Saved." in admin.submit(address, {**values, "kpis": kept(), **rows}).text
    assert kept() == file.strip()  # what nobody changed stays as it was written
    answer = admin.submit(address, {**values, "kpis": kept(), **rows, "kpi-flicker": "many", "kpi-similarity": "0,6"})
    assert (answer.status_code, 'value="many"' in answer.text, 'id="kpi-flicker-wrong"' in answer.text) == (422, True, True)
    assert 'id="kpi-similarity-reason-wrong"' in answer.text
    rows = {"kpi-seen": "0.7", "kpi-seen-reason": "more", "kpi-face_min": "0,5", "kpi-face_min-reason": '"her" 顔'}
    assert "Saved." in admin.submit(address, {**values, "kpis": kept(), **rows}).text
    found = {kpi.metric: kpi for kpi in parse_kpis(kept(), "x", "x")}
    assert (found["blur"].max, found["seen"].min, found["seen"].network, found["seen"].reason) == (12, 0.7, "n", "more")
    assert (found["face_min"].min, found["face_min"].reason, found["face_min"].optional) == (0.5, '"her" 顔', True)
    assert "Saved." in admin.submit(address, {**values, "kpis": file, **rows}).text
    assert kept() == file.strip()  # the file was changed, so it is taken


def test_an_account_is_made_where_it_is_needed(studio, browser):
    boss, admin, address = browser("boss"), browser("admin"), f"/projects/{studio.project_id}/members"
    new = {"email": "new@example.com", "roles": ["maker", "approver"]}
    assert "There is nobody with this e-mail address" in admin.submit(address, new).text
    page = boss.submit(address, new)
    assert (page.status_code, page.text.count(" checked"), 'value="new@example.com"' in page.text) == (422, 2, True)
    assert "Enter their name" in page.text
    page = boss.submit(address, {**new, "name": "Nora New"})
    link = re.search(r"/link/[\w-]+", page.text)
    assert link
    assert "Nora New" in browser(None).get(link[0]).text
    changed = re.search(r"change=(\w+)#roles-of\">Change<[^>]+> Nora New", page.text)
    assert changed
    assert boss.get(f"{address}?change={changed[1]}").text.count(" checked") == 2


def test_who_signs_is_set_in_the_browser(studio, browser):
    boss = browser("boss")
    assert "Nothing can be exported yet" in boss.get("/certificate").text
    for wrong in ("", "x" * 65, "a\x07b"):
        assert boss.submit("/certificate", {"organization": wrong}).status_code == 422
    assert "A company 株式会社" in boss.submit("/certificate", {"organization": "A company 株式会社"}).text
    assert browser("admin").get("/certificate").status_code == 403


def test_what_fails_before_any_page_is_said_on_one(studio, browser, monkeypatch):
    from phantom_s2v.studio import notices

    client = browser("maker", "ja")
    large = client.post("/verify", content=b"x", headers={"content-length": str(1 << 40)})
    assert (large.status_code, "一度に64 MBまでです" in large.text, "サインアウト" in large.text) == (413, True, True)
    monkeypatch.setattr(notices, "mine", lambda *_: 1 / 0)
    failed = client.get("/notices")
    assert (failed.status_code, failed.headers["x-request-id"] in failed.text) == (500, True)
    assert "システムで問題が発生しました" in failed.text
    assert "サインアウト" in client.get("/no-such-page").text  # whoever is signed in stays so
    assert client.get("/api/v1/nothing").json()["errors"][0]["message"]


def test_the_api_does_what_the_pages_do(studio, browser, full):
    from phantom_s2v.studio import sign_in

    with studio.writing() as session:
        tokens = {name: sign_in.make_token(session, person(studio, name), "tried") for name in ("maker", "reviewer", "admin")}
    client, here = browser(None), f"/api/v1/projects/{studio.project_id}"

    def call(name, method, address, **options):
        return client.request(method, f"{here}{address}", headers={"Authorization": f"Bearer {tokens[name]}"}, **options)

    made = call("maker", "POST", "/subjects", json={"name": "Boot", "kind": "product"})
    assert made.status_code == 201
    one = f"/subjects/{made.json()['id']}"
    assert call("maker", "POST", f"{one}/images", files={"image": ("a.png", picture())}).json()["width"] == 300
    refused = call("maker", "POST", f"{one}/images", files={"image": ("a.png", b"none")})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "images"
    right = {"shown": "Boot", "owner": "Us", "basis": "own", "uses": ["website"], "territories": ["JP"]}
    assert call("maker", "POST", f"{one}/rights", json={**right, "valid_from": "2026-01-01T00:00:00"}).status_code == 422
    refused = call("maker", "POST", f"{one}/rights", json={**right, "valid_from": "2026-01-01T00:00:00Z"})
    assert [each["field"] for each in refused.json()["errors"]] == ["document"]  # the policy asks for it
    right["document"] = call("maker", "POST", f"{one}/documents", files={"document": ("x", b"%PDF-1.7")}).json()["document"]
    added = call("maker", "POST", f"{one}/rights", json={**right, "valid_from": "2026-01-01T00:00:00Z"}).json()
    assert call("maker", "POST", f"{one}/rights/{added['id']}/check").status_code == 403
    assert call("reviewer", "POST", f"{one}/rights/{added['id']}/check").json()["state"] == "valid"
    assert call("reviewer", "POST", f"{one}/rights/{added['id']}/revoke", json={"reason": "x"}).json()["state"] == "revoked"
    assert len(call("reviewer", "GET", "/subjects").json()["items"]) == 2
    assert call("admin", "PUT", "/policy", json={"signatures": 3, "purposes": ["website"]}).json()["version"] == 2
    assert call("admin", "PUT", "/policy", json={"signatures": "three"}).status_code == 422
    assert call("maker", "GET", "/policy").json()["signatures"] == 3
    assert call("maker", "GET", "/subjects?after=nonsense").status_code == 404
    assert client.get(here).status_code == 401


def test_a_locked_administrator_comes_back_as_one(browser, studio):
    """By the buttons of the page alone."""
    boss, admin = browser("boss"), studio.people["admin"]

    def press(words):
        page = boss.get("/people").text
        form = next(part for part in page.split("<form")[1:] if f'action="/people/{admin}"' in part and f">{words}<" in part)
        boss.submit(f"/people/{admin}", {name: "yes" for name in ("active", "admin") if f'name="{name}"' in form})
        with studio.reading() as session:
            user = session.get_one(User, admin)
            return user.active, user.admin

    steps = ("Make administrator", "Lock", "Unlock", "Take administration away")
    assert [press(words) for words in steps] == [(True, True), (False, True), (True, True), (True, False)]
