"""Strings that mean something to paths, spreadsheets, markup, templates and SQL, in every field of every form and of the API."""

import json
import re
from pathlib import Path

import pytest

from phantom_s2v.studio.web import app as web
from phantom_s2v.studio.web.app import ROUTERS

PAGES = Path(web.__file__).parent
MARKUP = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
NASTY = (
    f"../../etc/passwd {MARKUP} {{{{ 70003*70009 }}}} %(name)s %d ${{70003*70009}}",
    f"=cmd|' /C calc'!A0 @SUM(A1) '; drop table users; -- {MARKUP} 狐🦊",
    f"/etc/passwd\u0000{MARKUP}",
)  # fmt: skip
TURNS = [NASTY[:1], pytest.param(NASTY[1:], marks=pytest.mark.long)]
FIELDS = re.compile(r'form(?:\[|\.all\(|\.files\()f?"([\w-]+)')
LAST = ("/remove", "/erase", "/end", "/sign-out", "/link", "/cancel", "/people/{user_id}")  # what ends something goes last


@pytest.fixture
def studio(filled):
    return filled


@pytest.fixture
def client(browser, app):
    yield browser("boss")
    app.state.decoder.close()


def routes(method):
    found = [route for router in ROUTERS for route in router.routes if method in route.methods]
    return sorted(found, key=lambda route: (route.path.endswith(LAST), route.path))


def fields():
    """Every field that a page reads, by its name in the source; check-ITEM and note-ITEM by one item."""
    found = {name for file in PAGES.glob("*.py") for name in FIELDS.findall(file.read_text())}
    return {f"{name}face" if name.endswith("-") else name for name in found} - {"csrf"}


def address_of(path, ids):
    return re.sub(r"\{(\w+)(:path)?\}", lambda found: ids[found[1]], path)


def outside(studio):
    """Files of the studio's folder that no hash names, and of the folder around it."""
    found = studio.settings.folder.parent.rglob("*")
    return {path for path in found if "files" not in path.parts and not path.name.startswith("studio.sq")}


def shows(text):
    """What of a string would be active in an answer."""
    return [each for each in ("<script>alert", "<img src=x", "4900840027") if each in text]


@pytest.mark.parametrize("texts", TURNS)
def test_every_field_of_every_form(studio, client, texts):
    before, asked, names = outside(studio), 0, fields()
    assert len(names) > 30
    for text in texts:
        for route in routes("POST"):
            if route.path.startswith("/api/") or route.path.endswith(("/sign-out", "/rephrase")):
                continue
            typed = dict.fromkeys(names - {"images", "image", "document", "file"}, text)
            for some in ({}, {"kind": "product", "basis": "own", "where": "video", "email": "a@b.example"}):
                answer = client.submit(address_of(route.path, studio.ids), {**typed, **some})
                assert answer.status_code < 500, (route.path, answer.text[:300])
                assert shows(answer.text) == [], route.path
                asked += 1
    assert asked > 50 * len(texts)
    for route in routes("GET"):
        if route.path.startswith(("/static", "/metrics")):
            continue
        answer = client.get(address_of(route.path, studio.ids))
        assert answer.status_code < 500, route.path
        if "text/html" in answer.headers.get("content-type", ""):
            assert shows(answer.text) == [], route.path
    assert outside(studio) == before


def filled_in(schema, spec, text):
    """A body as a schema of OpenAPI has it, with a string wherever one may stand."""
    while "$ref" in schema:
        schema = spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if options := schema.get("anyOf"):
        return filled_in(next((each for each in options if each.get("type") == "string"), options[0]), spec, text)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        own = {name: filled_in(each, spec, text) for name, each in schema.get("properties", {}).items()}
        more = schema.get("additionalProperties")
        names = schema.get("propertyNames", {}).get("enum", [text])
        return own | {name: filled_in(more, spec, text) if isinstance(more, dict) else text for name in names if more}
    if kind == "array":
        return [filled_in(schema["items"], spec, text)]
    if schema.get("format") == "date-time":
        return "2026-01-01T00:00:00Z"
    return {"integer": 1, "number": 0.5, "boolean": True}.get(kind, text)


def strings(value):
    if isinstance(value, dict):
        return [*value, *(each for one in value.values() for each in strings(one))]
    return [each for one in value for each in strings(one)] if isinstance(value, list) else [value] * isinstance(value, str)


@pytest.mark.parametrize("texts", TURNS)
def test_every_field_of_the_api(studio, client, texts):
    before, kept, asked = outside(studio), 0, 0
    spec = client.get("/api/v1/openapi.json").json()
    assert "text/csv" not in json.dumps(spec)  # nothing is exported to spreadsheets
    for text in texts:
        for path, operations in sorted(spec["paths"].items(), key=lambda each: each[0].endswith(LAST)):
            for method, operation in operations.items():
                content = operation.get("requestBody", {}).get("content", {})
                if "application/json" not in content:
                    continue
                body = filled_in(content["application/json"]["schema"], spec, text)
                answer = client.request(method, address_of(path, studio.ids), json=body, headers={"X-CSRF-Token": client.csrf})
                assert answer.status_code < 500, (path, answer.text[:300])
                asked += 1
                if answer.status_code < 300 and answer.content and text in strings(body):
                    kept += text in strings(answer.json())
        for path in spec["paths"]:
            said = spec["paths"][path].get("get", {}).get("responses", {}).get("200", {})
            if "application/json" in said.get("content", {}):
                answer = client.get(address_of(path, studio.ids))
                assert answer.headers["content-type"] == "application/json", path
    assert asked > 14 * len(texts)
    assert kept > 2  # drafts, comments and subjects come back as they were sent
    assert outside(studio) == before
