"""The frame: migrations, access, sessions, forms, files, languages."""

import subprocess
import sys

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError


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


def test_an_older_studio_is_upgraded_with_everything_in_it(tmp_path):
    """From each version that was: rows of all of its tables that a right needs, one of them written without its project."""
    from phantom_s2v.studio import database

    ids = {name: f"{number:032x}" for number, name in enumerate(("user", "project", "subject", "right", "job"))}
    rows = """
    insert into users values (:user, 'a@b.example', 'A', null, 'en', 0, 1, null, '2026-01-01 00:00:00.000000');
    insert into projects values (:project, 'P', 'phantom-mini', '', 'EUR', 0, null, 0, null, 0, '2026-01-01 00:00:00.000000');
    insert into subjects values (:subject, :project, 'Fox', 'product', :user, '2026-01-01 00:00:00.000000', null);
    insert into rights (id, subject_id, shown, owner, basis, document_name, uses, territories, valid_from, created_by, created_at,
        revoke_reason, valid_until)
        values (:right, :subject, 'Fox', 'Us', 'own', '', '[]', '[]', '2026-01-01 00:00:00.000000', :user,
        '2026-01-01 00:00:00.000000', '', '2027-01-01 00:00:00.000000');
    insert into jobs (id, project_id, user_id, request, requires, purpose, territories, policy_version, candidates, state, reason,
        candidate, step, progress, steps, notes, deaths, lease, estimated_seconds, seconds, cost, created_at)
        values (:job, :project, :user, '{}', '{}', 'x', '[]', 1, 1, 'done', '', 1, 4, 4, 4, '[]', 0, 1, 1.0, 1.0, 0,
        '2026-01-01 00:00:00.000000');
    insert into job_subjects values (:job, :subject, :right)"""
    for old in ("0003", "0004"):
        engine = database.open_engine(f"sqlite:///{tmp_path / old}.sqlite")
        database.upgrade(engine, old)
        with engine.execution_options(writes=True).begin() as connection:
            for statement in rows.split(";"):
                connection.execute(text(statement), ids)
        database.upgrade(engine)
        with engine.connect() as connection:
            assert connection.execute(text("select project_id from rights")).scalar_one() == ids["project"]
            assert connection.execute(text("select right_id from job_subjects")).scalar_one() == ids["right"]
            assert database.is_current(connection)
            assert connection.exec_driver_sql("pragma foreign_keys").scalar_one() == 1
        for wrong in ("update rights set project_id = null", "delete from rights"):
            with pytest.raises(IntegrityError), engine.execution_options(writes=True).begin() as connection:
                connection.execute(text(wrong))
        engine.dispose()


def test_tables_of_a_later_version_are_refused_in_a_sentence(studio):
    from phantom_s2v.errors import DataError

    with studio.engine.execution_options(writes=True).begin() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(DataError, match="later version"):
        studio.start()


def test_the_log_is_append_only(studio):
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
