"""Ids of other projects and of other things of one's own project, in every address that names more than a project."""

import re

import pytest

from phantom_s2v.studio import access, certificates, projects
from phantom_s2v.studio.schema import Comment, Member, Role
from phantom_s2v.studio.web.app import ROUTERS
from studio.rows import add_subject, add_video
from studio.test_injection import filled_in

BODY = {
    "reason": "x", "name": "x", "kind": "product", "shown": "x", "owner": "x", "basis": "own", "uses": ["website"], "text": "x",
    "territories": ["JP"], "valid_from": "2026-01-01T00:00:00Z", "where": "video", "decision": "send back", "note": "x",
}  # fmt: skip


@pytest.fixture
def studio(filled):
    return filled


def routes():
    """(method, path, ids in it beside the project) of every route of a project."""
    for router in ROUTERS:
        for route in router.routes:
            names = re.findall(r"\{(\w+)", route.path)
            if "project_id" in names and len(names) > 1:
                for method in route.methods:
                    yield method, route.path, [name for name in names if name not in ("project_id", "number", "part")]


def ask(client, method, path, ids, spec):
    address = re.sub(r"\{(\w+)(:path)?\}", lambda found: ids[found[1]], path)
    if path.startswith("/api/"):
        operation = spec["paths"][path].get(method.lower(), {})
        schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        body = filled_in(schema, spec, "x") if schema else {}
        own = {"document": "", "options": {}}  # these are looked at before anything is looked for
        options = {"json": {**body, **{name: own[name] for name in own.keys() & body.keys()}}} if schema else {}
    else:
        options = {"data": BODY} if method == "POST" else {}
    return client.request(method, address, headers={"X-CSRF-Token": client.csrf}, follow_redirects=False, **options)


def test_nothing_of_a_project_is_reached_through_another(studio, browser, app):
    """By a person who has every role in both: what does not belong to the project of the address is not there."""
    certificates.make(studio.settings.certificates, "A company")
    with studio.writing() as session:
        other = projects.create(session, access.SYSTEM, "Another one")
        session.add_all(Member(project_id=other.id, user_id=studio.people["boss"], role=role) for role in Role)
    client, asked = browser("boss"), 0
    spec = client.get("/api/v1/openapi.json").json()
    for method, path, _ in routes():
        answer = ask(client, method, path, {**studio.ids, "project_id": other.id}, spec)
        assert answer.status_code == 404, (method, path, answer.status_code, answer.text[:300])
        asked += 1
    assert asked > 60
    app.state.decoder.close()


def test_nothing_of_a_thing_is_reached_through_another(studio, browser, app):
    """An image, a right, a comment or an export by the address of another subject or video of the same project."""
    subject = add_subject(studio, "boss")
    film = add_video(studio, b"video", "boss", [subject])
    with studio.writing() as session:
        assert session.get(Comment, studio.ids["comment_id"]).video_id == studio.ids["video_id"]
    client, asked = browser("boss"), 0
    spec = client.get("/api/v1/openapi.json").json()
    ids = {**studio.ids, "subject_id": subject.id, "video_id": film}
    for method, path, names in routes():
        if len(names) > 1:
            answer = ask(client, method, path, ids, spec)
            assert answer.status_code == 404, (method, path, answer.status_code, answer.text[:300])
            asked += 1
    assert asked > 15
    app.state.decoder.close()


def test_a_draft_shows_and_uses_nothing_of_another_project(studio, browser):
    """Ids that are typed into a form or a body are looked for in the project of the address alone."""
    with studio.writing() as session:
        other = projects.create(session, access.SYSTEM, "Another one")
        session.add_all(Member(project_id=other.id, user_id=studio.people["boss"], role=role) for role in Role)
    client = browser("boss")
    base = f"/api/v1/projects/{other.id}/drafts"
    wanted = {"prompt": "The cup moves.", "subjects": [studio.ids["subject_id"]]}
    draft = client.post(base, json=wanted, headers={"X-CSRF-Token": client.csrf}).json()["id"]
    assert "Red cup" not in client.get(f"{base}/{draft}/look").text
    assert "Red cup" not in client.get(f"/projects/{other.id}/generate/{draft}").text
    answer = client.post(f"{base}/{draft}/run", json={}, headers={"X-CSRF-Token": client.csrf})
    assert (answer.status_code, "Red cup" in answer.text) == (422, False)
    beside = add_video(studio, b"video", "boss")
    with studio.writing() as session:
        from phantom_s2v.studio.schema import Video

        session.get_one(Video, beside).project_id = other.id
    shown = client.get(f"/projects/{studio.project_id}/videos/{studio.ids['video_id']}/review?with={beside}").text
    assert f"/videos/{beside}/" not in shown
