"""The table of access: every route has a row, and what the row says is what happens, for every kind of person."""

import re

import pytest
from fastapi import APIRouter
from fastapi.responses import Response

from phantom_s2v.studio import access
from phantom_s2v.studio.schema import Role
from phantom_s2v.studio.web import app as web
from phantom_s2v.studio.web.app import ROUTERS, create_app

PEOPLE = (None, "outsider", "maker", "reviewer", "approver", "admin", "boss")  # boss: an administrator of the studio, no member


def routes():
    """Every route of the application, with its method."""
    return [(method, route) for router in ROUTERS for route in router.routes for method in sorted(route.methods)]


def test_every_route_has_a_row_and_every_row_a_route():
    assert {f"{method} {route.path}" for method, route in routes()} == set(access.RULES)


def test_the_application_has_no_other_routes(studio):
    outside = [route for route in create_app(studio).routes if not hasattr(route, "original_router")]
    assert outside == []


@pytest.fixture
def hollow(studio, monkeypatch):
    """The application with nothing behind its checks: what is let through answers 299."""
    inside = APIRouter()
    for method, route in routes():
        inside.add_api_route(route.path, lambda: Response(status_code=299), methods=[method])
    monkeypatch.setattr(web, "ROUTERS", (inside,))
    return create_app(studio)


def allowed(who, name: str | None) -> bool:
    if who == access.ANYONE:
        return True
    if who == access.SIGNED_IN or name is None:
        return name is not None
    if who == access.STUDIO_ADMIN:
        return name == "boss"
    return name in {role.value for role in who} or (name == "boss" and Role.ADMIN in who)


@pytest.mark.parametrize("name", PEOPLE)
def test_the_table_holds_for_every_route(hollow, browser, studio, name):
    client = browser(name, application=hollow)
    wrong = []
    for method, route in routes():
        address = re.sub(r"\{(\w+)(:path)?\}", lambda m: studio.project_id if m[1] == "project_id" else "0" * 32, route.path)
        who = access.RULES[f"{method} {route.path}"]
        answer = client.request(method, address, headers={"X-CSRF-Token": client.csrf}, follow_redirects=False)
        let_through = answer.status_code == 299
        if let_through != allowed(who, name) or (not let_through and answer.status_code not in (303, 401, 403, 404)):
            wrong.append((method, route.path, answer.status_code))
    assert not wrong


def test_nothing_changes_without_the_token_of_the_session(hollow, browser, studio):
    client = browser("boss", application=hollow)
    for method, route in routes():
        if method == "GET":
            continue
        address = re.sub(r"\{(\w+)\}", lambda m: studio.project_id if m[1] == "project_id" else "0" * 32, route.path)
        for headers in ({}, {"X-CSRF-Token": "0" * 64}, {"X-CSRF-Token": client.csrf, "Origin": "http://evil.example"}):
            answer = client.request(method, address, headers=headers, follow_redirects=False)
            assert answer.status_code == 403, (method, route.path)
