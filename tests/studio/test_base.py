"""The frame: migrations, access, sessions, forms, files, languages."""

import subprocess
import sys

import pytest
from sqlalchemy import text


def test_the_web_process_loads_no_torch():
    code = "import phantom_s2v.studio.web.app, phantom_s2v.studio.serving, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_migrations_give_the_schema(studio):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from phantom_s2v.studio.schema import Base

    with studio.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_log_is_append_only(studio):
    from sqlalchemy.exc import IntegrityError

    for statement in ("update audit set action = 'x'", "delete from audit"):
        with (
            pytest.raises(IntegrityError, match="append-only"),
            studio.engine.execution_options(writes=True).begin() as connection,
        ):
            connection.execute(text(statement))


def test_signing_in_and_out(browser):
    from studio.conftest import PASSWORD

    client = browser(None)
    page = client.get("/projects/new")
    assert page.url.path == "/sign-in"
    wrong = client.submit("/sign-in", {"email": "maker@example.com", "password": "wrong"})
    assert wrong.status_code == 401
    assert "The e-mail address or the password is wrong." in wrong.text
    assert 'value="maker@example.com"' in wrong.text
    page = client.submit("/sign-in", {"email": "Maker@Example.com", "password": PASSWORD, "next": "//evil.example"})
    assert page.status_code == 200
    assert page.url.path == "/"
    assert "Autumn campaign" in page.text
    assert client.submit("/sign-out").status_code == 403  # a form without the session's token


@pytest.mark.parametrize("name", ["maker", "boss"])
def test_pages_of_a_project(browser, studio, name):
    client = browser(name)
    for address in ("/", f"/projects/{studio.project_id}", f"/projects/{studio.project_id}/members"):
        page = client.get(address)
        assert page.status_code == 200, address
        assert "Autumn campaign" in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]


def test_an_outsider_may_not_know_of_a_project(browser, studio):
    assert browser("outsider").get(f"/projects/{studio.project_id}").status_code == 404
