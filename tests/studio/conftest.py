"""A studio in a temporary folder with one project and four people, each of one role, and their browsers."""

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

PASSWORD = "correct horse battery staple"
ROLES = ("maker", "reviewer", "approver", "admin")


class Browser(TestClient):
    """A test client that brings the CSRF token with every form, and follows redirects as browsers do."""

    csrf = ""

    def submit(self, address: str, data: dict | None = None, **options):
        """Send a form."""
        return self.post(address, data={"csrf": self.csrf, **(data or {})}, **options)


def make_studio(folder: Path):
    """A started studio: its tables are made."""
    from phantom_s2v.studio.config import load_settings
    from phantom_s2v.studio.context import Studio

    studio = Studio(load_settings(folder, {}))
    studio.start()
    return studio


@pytest.fixture(scope="session")
def template_folder(tmp_path_factory) -> Path:
    """A studio's folder with the project and its people, copied for each test."""
    from argon2 import PasswordHasher

    from phantom_s2v.studio import access, projects, sign_in
    from phantom_s2v.studio.schema import Role

    sign_in.HASHER = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    sign_in.DUMMY = sign_in.HASHER.hash("nobody's password")
    folder = tmp_path_factory.mktemp("studio") / "studio"
    studio = make_studio(folder)
    with studio.writing() as session:
        project = projects.create(session, access.SYSTEM, "Autumn campaign")
        project.policy_version = 0
        hashed = sign_in.hash_password(PASSWORD)
        for name in (*ROLES, "outsider", "boss"):
            person, _ = projects.add_user(session, access.SYSTEM, f"{name}@example.com", name.title(), admin=name == "boss")
            person.password_hash = hashed
            if name in ROLES:
                projects.set_roles(session, access.SYSTEM, project.id, person.email, [Role(name)])
    studio.engine.dispose()
    return folder


@contextmanager
def copied(template: Path, folder: Path) -> Iterator:
    """A copy of a studio, started. `project_id` is its project, `people` name -> user id."""
    from sqlalchemy import select

    from phantom_s2v.studio.schema import Project, User

    shutil.copytree(template, folder)
    made = make_studio(folder)
    with made.reading() as session:
        made.project_id = session.scalars(select(Project.id).order_by(Project.created_at).limit(1)).one()
        made.people = {user.name.lower(): user.id for user in session.scalars(select(User))}
    yield made
    made.engine.dispose()


@pytest.fixture
def studio(template_folder, tmp_path) -> Iterator:
    """A studio of its own for the test."""
    with copied(template_folder, tmp_path / "studio") as made:
        yield made


def person(studio, name: str):
    """The person of a name with their roles in the studio's project, as services take them."""
    from phantom_s2v.studio import access
    from phantom_s2v.studio.schema import User

    with studio.reading() as session:
        return access.load(session, session.get_one(User, studio.people[name]), studio.project_id)[0]


@pytest.fixture
def actor_of(studio) -> Callable:
    """actor_of("maker"); see `person`."""
    return lambda name: person(studio, name)


@pytest.fixture
def app(studio):
    """The web application."""
    from phantom_s2v.studio.web.app import create_app

    return create_app(studio)


@pytest.fixture
def browser(app, studio) -> Iterator[Callable[..., Browser]]:
    """browser("maker") is one in which the maker has signed in; browser(None) one of nobody. Languages: language="ja"."""
    opened = []

    def open_browser(name: str | None, language: str = "en", application=app) -> Browser:
        client = Browser(application, base_url="http://127.0.0.1:8765", headers={"accept-language": language})
        opened.append(client)
        if name:
            from phantom_s2v.studio import sign_in
            from phantom_s2v.studio.schema import User
            from phantom_s2v.studio.web.view import SESSION, sign_cookie

            with studio.writing() as session:
                session.get_one(User, studio.people[name]).language = language
                token = sign_in.begin_session(session, studio.people[name])
            client.cookies.set(SESSION, sign_cookie(studio.settings, token))
            client.csrf = studio.settings.keyed_hash("csrf", token)
        return client

    yield open_browser
    for client in opened:
        client.close()


@pytest.fixture
def statements(studio) -> Iterator[SimpleNamespace]:
    """Counts what the database is asked: len(statements.texts)."""
    from sqlalchemy import event

    seen = SimpleNamespace(texts=[])

    def note(connection, cursor, statement, *rest):
        if not re.match(r"\s*(begin|commit|rollback|pragma)", statement, re.IGNORECASE):
            seen.texts.append(statement)

    event.listen(studio.engine, "before_cursor_execute", note)
    yield seen
    event.remove(studio.engine, "before_cursor_execute", note)


@pytest.fixture
def served(app) -> Iterator[str]:
    """The address of the studio behind a real server on a free port."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def filled_folder(template_folder, tmp_path_factory) -> Path:
    """A studio's folder with many rows of everything; ids of one of each are in its ids.json."""
    from studio.filled import fill

    folder = tmp_path_factory.mktemp("filled") / "studio"
    with copied(template_folder, folder) as studio:
        ids = fill(studio)
    (folder / "ids.json").write_text(json.dumps(ids))
    return folder


@pytest.fixture
def filled(filled_folder, tmp_path) -> Iterator:
    """A copy of it; `ids` are by the names that addresses give them."""
    with copied(filled_folder, tmp_path / "filled") as made:
        made.ids = json.loads((filled_folder / "ids.json").read_text())
        yield made
