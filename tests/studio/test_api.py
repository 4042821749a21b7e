"""The API: the whole way of a video by tokens, and no request that ends in a fault of ours."""

import io
import os
import re
import shutil
import subprocess

import pytest
from PIL import Image
from sqlalchemy import select

from phantom_s2v.studio import access, certificates, examining, notices, sign_in, verify
from phantom_s2v.studio.policies import CHECKLIST
from phantom_s2v.studio.schema import Right, Role, Subject
from studio.rows import add_subject, add_video, frames_of, give_role, mp4, set_policy

CONTENT = mp4(frames_of("1f431", 3))
SCHEMATHESIS = os.environ.get("PHANTOM_SCHEMATHESIS") or shutil.which("schemathesis")


@pytest.fixture
def api(app, studio, actor_of):
    """api("maker") calls the API with a token of the maker's: (method, path, body) -> answer."""
    from fastapi.testclient import TestClient

    client = TestClient(app, base_url="http://127.0.0.1:8765")

    def of(name):
        with studio.writing() as session:
            token = sign_in.make_token(session, actor_of(name), "test")

        def call(method, path, body=None, **options):
            headers = {"Authorization": f"Bearer {token}"}
            base = (
                "/api/v1"
                if path.startswith(("/verify", "/people", "/certificate", "/notices"))
                else f"/api/v1/projects/{studio.project_id}"
            )
            return client.request(method, base + path, json=body, headers=headers, **options)

        return call

    yield of
    client.close()


@pytest.fixture
def film(studio):
    set_policy(studio)
    return add_video(studio, CONTENT, subjects=[add_subject(studio)], score={"verdicts": []})


def test_a_video_from_hand_in_to_export(studio, api, film, monkeypatch):
    monkeypatch.setattr(verify, "_examine_apart", lambda folder, asked: examining.examine(folder, **asked))
    certificates.make(studio.settings.folder / "certificate", "A company")
    maker, reviewer, approver = api("maker"), api("reviewer"), api("approver")
    one = f"/videos/{film}"
    assert reviewer("POST", f"{one}/submit").status_code == 403
    assert maker("POST", f"{one}/submit").status_code == 204
    said = reviewer("POST", f"{one}/comments", {"text": "Look.", "frame": 3, "x": 0.5, "y": 0.25}).json()
    assert maker("POST", f"{one}/comments/{said['id']}/resolve").json()["resolved_at"]
    video, stand = approver("GET", one).json(), approver("GET", f"{one}/sign-off").json()
    decision = {"approve": True, "sha256": video["sha256"], "policy_version": stand["policy_version"]}
    refused = approver("POST", f"{one}/sign-off", {**decision, "checklist": {"face": "yes"}})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "check-expression")
    decision["checklist"] = dict.fromkeys(stand["checklist"], "yes")
    assert set(decision["checklist"]) == set(CHECKLIST)
    assert approver("POST", f"{one}/sign-off", decision).json()["approved"]
    made = maker("POST", f"{one}/exports", {}).json()
    content = maker("GET", f"{one}/exports/{made['id']}/file").content
    answer = maker("POST", "/verify", files={"file": ("x", content)})
    assert (answer.json()["verdict"], answer.json()["sha256"]) == ("unchanged", made["sha256"])
    assert [each["id"] for each in maker("GET", "/videos?state=approved").json()["items"]] == [film]


def test_subjects_rights_and_policy(studio, api):
    maker, approver, admin = api("maker"), api("approver"), api("admin")
    made = maker("POST", "/subjects", {"name": "Fox", "kind": "character"}).json()
    one = f"/subjects/{made['id']}"
    right = {"shown": "Fox", "owner": "Us", "basis": "own", "uses": ["website"], "territories": ["JP"]}
    assert maker("POST", f"{one}/rights", {**right, "valid_from": "2026-01-01"}).status_code == 422
    assert maker("POST", f"{one}/rights", {**right, "valid_from": "0001-01-01T00:00:00+14:00"}).status_code == 422
    right = maker("POST", f"{one}/rights", {**right, "valid_from": "2026-01-01T00:00:00Z"}).json()
    assert right["state"] == "unchecked"
    assert approver("POST", f"{one}/rights/{right['id']}/check").is_success
    assert maker("GET", one).json()["rights"][0]["state"] == "valid"
    assert maker("PUT", "/policy", {}).status_code == 403
    assert admin("PUT", "/policy", {"retention_days": 10**6}).status_code == 422
    assert admin("PUT", "/policy", {"signatures": 2}).json()["version"] == 1
    assert approver("POST", f"{one}/rights/{right['id']}/revoke", {"reason": "over"}).is_success
    with studio.reading() as session:
        assert session.get_one(Right, right["id"]).revoked_at
    assert maker("POST", f"{one}/erase", {"name": "Fox"}).status_code == 403
    assert admin("POST", f"{one}/erase", {"name": "Fox"}).status_code == 204
    assert maker("GET", one).status_code == 404


def test_documents_of_rights(studio, api):
    maker, reviewer, outsider = api("maker"), api("reviewer"), api("outsider")
    one = f"/subjects/{add_subject(studio).id}"
    for content in (b"", b"no document", b"<html>"):
        answer = maker("POST", f"{one}/documents", files={"document": ("x.pdf", content)})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "document")
    assert outsider("POST", f"{one}/documents", files={"document": ("x", b"%PDF-1.7")}).status_code == 404
    parked = maker("POST", f"{one}/documents", files={"document": ("x", b"%PDF-1.7 consent")}).json()["document"]
    right = {"shown": "Fox", "owner": "Us", "basis": "own", "uses": ["website"], "territories": ["JP"]}
    right |= {"valid_from": "2026-01-01T00:00:00Z", "document": parked, "document_name": "../../同意書.pdf"}
    assert maker("POST", f"{one}/rights", {**right, "document": "../secret"}).status_code == 422
    assert maker("POST", f"{one}/rights", {**right, "uses": []}).status_code == 422  # and the document still waits
    made = maker("POST", f"{one}/rights", right).json()
    assert (made["document_name"], "document" in made) == ("../../同意書.pdf", False)
    assert maker("POST", f"{one}/rights", right).status_code == 422  # it belongs to the first
    assert [each["id"] for each in reviewer("GET", f"{one}/rights").json()][-1] == made["id"]
    found = reviewer("GET", f"{one}/rights/{made['id']}/document")
    assert found.content == b"%PDF-1.7 consent"
    assert found.headers["content-disposition"].startswith("attachment")
    assert outsider("GET", f"{one}/rights/{made['id']}/document").status_code == 404


def test_a_person_is_forgotten(studio, api, film):
    boss = api("boss")
    assert api("admin")("GET", "/people").status_code == 403
    people = {each["name"]: each["id"] for each in boss("GET", "/people").json()["items"]}
    assert boss("POST", f"/people/{'0' * 32}/erase", {"name": "x"}).status_code == 404
    assert boss("POST", f"/people/{people['Boss']}/erase", {"name": "Boss"}).status_code == 409
    maker = api("maker")
    assert boss("POST", f"/people/{people['Maker']}/erase", {"name": "maker"}).status_code == 422
    assert maker("GET", "/videos").status_code == 200
    assert boss("POST", f"/people/{people['Maker']}/erase", {"name": "Maker"}).status_code == 204
    assert maker("GET", "/videos").status_code == 401
    assert boss("POST", f"/people/{people['Maker']}/erase", {"name": ""}).status_code == 404
    assert people["Maker"] not in boss("GET", "/people").text


BROWSERS = ("/sign-in", "/sign-out", "/link/{token}", "/language", "/account", "/account/tokens", "/account/tokens/{sha256}/end")


def test_whatever_a_page_changes_the_api_changes_too():
    """A new form without a route of the API fails here; signing in and one's own account are for people."""
    lacking = []
    api = {rule.partition(" /api/v1")[2] for rule in access.RULES if "/api/v1" in rule and not rule.startswith("GET")}
    for rule in access.RULES:
        method, _, path = rule.partition(" ")
        if method == "POST" and not path.startswith("/api/") and path not in BROWSERS:
            path = re.sub("/(save|remove)$", "", path.replace("/generate", "/drafts"))
            path = re.sub("/export$", "/exports", path)
            lacking += [rule] if path not in api else []
    assert lacking == []


def test_the_studio_itself_by_the_api(studio, api):
    boss, maker = api("boss"), api("maker")
    for path in ("/people", "/certificate"):
        assert maker("GET", path).status_code == 403
        assert maker("POST", path, {"name": "N", "email": "n@example.com", "organization": "A"}).status_code == 403
    assert boss("GET", "/certificate").json() is None
    assert boss("POST", "/certificate", {"organization": "A company"}).json()["expired"] is False
    assert boss("GET", "/certificate").json()["organization"] == "A company"
    made = boss("POST", "/people", {"name": "Nora", "email": "nora@example.com", "language": "ja"}).json()
    assert boss("POST", "/people", {"name": "Nora", "email": "nora@example.com"}).status_code == 409
    one = f"/people/{made['person']['id']}"
    assert boss("POST", f"{one}/link").json()["link"] != made["link"]
    assert boss("PUT", one, {"active": False, "admin": False}).status_code == 204
    assert [each["active"] for each in boss("GET", "/people").json()["items"] if each["name"] == "Nora"] == [False]
    with studio.writing() as session:
        notices.tell(session, [studio.people["maker"]], "right ends", project="p", subject="s", name="Fox", days=3)
    assert [each["read_at"] for each in maker("GET", "/notices").json()["items"]] == [None]
    assert maker("POST", "/notices/read").status_code == 204
    assert maker("GET", "/notices").json()["items"][0]["read_at"]
    admin = api("admin")
    read = admin("GET", "/settings").json()
    assert admin("PUT", "/settings", {**read, "name": "Spring"}).status_code == 204
    assert admin("PUT", "/settings", {**read, "name": "Summer"}).status_code == 409  # of what it was before
    assert admin("PUT", "/policy?based_on=0", {}).json()["version"] == 1
    assert admin("PUT", "/policy?based_on=0", {}).status_code == 409
    assert [each["version"] for each in maker("GET", "/policy/versions").json()] == [1]


def test_drafts_and_files_by_the_api(studio, api, film, app):
    maker = api("maker")
    again = maker("POST", f"/videos/{film}/again").json()
    assert (again["draft"]["prompt"], again["changed"]) == ("The cup moves.", [])
    one = f"/drafts/{again['draft']['id']}"
    assert [each["id"] for each in maker("GET", "/drafts").json()["items"]] == [again["draft"]["id"]]
    image = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(image, "PNG")
    assert maker("PUT", f"{one}/first-frame", files={"image": ("x", b"no image")}).status_code == 422
    assert maker("PUT", f"{one}/first-frame", files={"image": ("x", image.getvalue())}).status_code == 204
    assert maker("GET", f"{one}/first-frame").content.startswith(b"\x89PNG")
    assert maker("DELETE", f"{one}/first-frame").status_code == 204
    assert maker("GET", f"{one}/first-frame").status_code == 404
    assert maker("POST", f"{one}/rephrase").status_code == 409  # none is set up
    assert maker("DELETE", one).status_code == 204
    assert maker("GET", one).status_code == 404
    assert maker("GET", f"/videos/{film}/frames/24").content.startswith(b"\x89PNG")
    assert maker("GET", f"/videos/{film}/frames/25").status_code == 404
    assert maker("GET", f"/videos/{film}/poster").status_code == 200
    assert maker("GET", f"/jobs/{'0' * 32}/preview").status_code == 404
    assert api("outsider")("GET", f"/videos/{film}/poster").status_code == 404
    app.state.decoder.close()


def test_what_is_no_number_and_no_text_is_refused_in_words(api, film):
    maker = api("maker")
    for body in (
        {"text": "x", "frame": 2**70},
        {"text": "x", "frame": -1},
        {"text": "x", "frame": 1, "x": 0.5},
        {"text": "\x00"},
        {"text": "x" * 30_000},
        {"text": ""},
        [],
    ):
        answer = maker("POST", f"/videos/{film}/comments", body)
        assert answer.status_code == 422, body
        assert answer.json()["errors"][0]["message"]
    for after in ("x", "W10", "%00", "WyIyMDI2IiwgMV0"):
        assert maker("GET", f"/videos?after={after}").status_code == 404


@pytest.mark.long
@pytest.mark.skipif(
    not SCHEMATHESIS, reason="needs schemathesis, in an environment of its own: its pytest plugin slows every run"
)
def test_schemathesis_finds_no_fault(app, served, studio, actor_of, film, tmp_path):
    """By a person with every role, on rows that exist."""
    for role in Role:
        give_role(studio, "boss", role)
    with studio.writing() as session:
        token = sign_in.make_token(session, actor_of("boss"), "test")
        subject = session.scalars(select(Subject.id)).one()
    known = {"project_id": studio.project_id, "video_id": film, "subject_id": subject}
    lines = [f'"path.{name}" = "{value}"' for name, value in known.items()]
    (tmp_path / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines]))
    checked = "--checks not_a_server_error --phases examples,coverage,fuzzing --max-examples 30 --request-timeout 20"
    where = [f"{served}/api/v1/openapi.json", "--header", f"Authorization: Bearer {token}"]
    command = [str(SCHEMATHESIS), "--config-file", str(tmp_path / "schemathesis.toml"), "run", *where, *checked.split()]
    done = subprocess.run([*command, "--generation-deterministic"], capture_output=True, text=True, timeout=1500)
    app.state.decoder.close()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_what_is_misspelled_is_refused_and_the_description_says_how_to_ask(studio, api):
    boss = api("boss")
    answer = api("admin")("PUT", "/settings", {"name": "x", "model": "phantom-mini", "currency": "EUR", "budjet": 5})
    assert {each["field"]: each["message"] for each in answer.json()["errors"]} == {
        "price_per_hour": "Please fill this in.",
        "budjet": "There is no field of this name.",
    }
    invited = boss("POST", "/people", {"email": "eve@example.com", "name": "Eve", "language": "ja"}).json()
    assert "/link/" in invited["link"]
    assert boss("PUT", f"/people/{invited['person']['id']}", {"active": False, "admin": False}).status_code == 204
    assert boss("POST", f"/people/{invited['person']['id']}/link").json()["link"] != invited["link"]
    made = api("maker")("POST", "/drafts", {"prompt": "x"}).json()
    assert [each["id"] for each in api("maker")("GET", "/drafts").json()["items"]] == [made["id"]]
    assert api("maker")("DELETE", f"/drafts/{made['id']}").status_code == 204


def test_the_description_has_the_shape_of_errors_and_how_to_sign_in(browser):
    client = browser("boss")
    found = client.get("/api/v1/openapi.json").json()
    assert found["security"] == [{"token": []}]
    shapes = {next(iter(each["responses"]["4XX"]["content"].values()))["schema"]["$ref"]
              for path in found["paths"].values() for each in path.values()}  # fmt: skip
    assert shapes == {"#/components/schemas/ErrorsOut"}
    assert "HTTPValidationError" not in str(found)
    headers = {"content-type": "application/json", "x-csrf-token": client.csrf}
    answer = client.post("/api/v1/projects", content=b"{bad", headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["message"]) == (422, "The body is not valid JSON.")
    assert client.post("/api/v1/projects", json={"name": "By API"}, headers=headers).json()["name"] == "By API"
