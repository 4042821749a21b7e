"""Every route that is read: at most five statements, each by an index, however long the lists are."""

import inspect
import json
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, insert, select

from phantom_s2v.models.registry import load_preset, model_folder
from phantom_s2v.studio import access, audit, notices, policies, projects, sign_in
from phantom_s2v.studio.schema import (
    Base,
    Comment,
    Delivery,
    Draft,
    Export,
    Job,
    JobState,
    Member,
    Right,
    Role,
    Subject,
    SubjectImage,
    User,
    Video,
    VideoState,
    Webhook,
    Worker,
    now,
)
from phantom_s2v.studio.web.app import ROUTERS
from studio.conftest import copied
from studio.queued import make_job, make_worker, profiled, scored
from studio.rows import add_subject, add_video, frames_of, mp4, set_policy

MOST = 5
MANY = 30  # rows of every list, which is more than a page
QUERIES = {  # what stands behind the question mark where that asks the database for something else
    "/projects/{project_id}/reviews": ("state=all", "state=approved"),
    "/projects/{project_id}/policy/new": ("template=japan",),
    "/api/v1/projects/{project_id}/videos": ("state=approved",),
}
# Whole tables that may be read: of one row for each version of the tables; and what Prometheus asks, about every 15 seconds.
WHOLE = {"/ready": {"alembic_version"}, "/metrics": {"jobs", "videos"}}
COUNTING = ("/metrics", "/projects/{project_id}")  # they say how many there are, by one index
SORTED = {  # sorted without an index, by the beginning of the order: never more rows than stand here
    "jobs.state = ?": "the queue, of which a person has at most queue.QUEUED_EACH jobs",
    "subject_images": "images of the subjects of one page",
    "rights.created_at": "rights of the subjects of one page",
    "coalesce(comments.frame": "comments of one video, at most reviews.MAX_COMMENTS",
    "webhooks.created_at": "webhooks of one project, at most webhooks.MOST",
    "videos.job_id = ?": "candidates of one job, and reviews.BESIDE newest videos",
    "users.name": "people of one project",
}


@dataclass
class Asked:
    """Statements of one request, with the database's plan of each."""

    texts: list[str] = field(default_factory=list)
    plans: list[list[str]] = field(default_factory=list)


def routes():
    return {route.path: route.endpoint for router in ROUTERS for route in router.routes if "GET" in route.methods}


def lists():
    """Routes with pages: those that take `after`."""
    return {path for path, endpoint in routes().items() if re.search(r'"after"|after: str', inspect.getsource(endpoint))}


def fill(studio) -> dict[str, str]:
    """MANY rows of everything, and the ids that addresses name."""
    boss = studio.people["boss"]
    set_policy(studio)
    subjects = [add_subject(studio, "boss", valid_until=now() + timedelta(days=20 + n)) for n in range(MANY)]
    clip = mp4(frames_of("1f431", 1, count=9, size=(32, 32)))
    films = [
        add_video(studio, clip, "boss", [subjects[0]], num_frames=9, score=scored("Red cup", subjects[1].id), passed=False,
                  state=list(VideoState)[n % 4], override_by=boss)
        for n in range(MANY)
    ]  # fmt: skip
    with studio.writing() as session:
        session.add_all(Member(project_id=studio.project_id, user_id=boss, role=role) for role in Role)
        actor = access.load(session, session.get_one(User, boss), studio.project_id)[0]
        for number in range(MANY):
            projects.create(session, access.SYSTEM, f"Project {number}")
            person, _ = projects.add_user(session, access.SYSTEM, f"p{number}@example.com", f"Person {number}")
            session.add(Member(project_id=studio.project_id, user_id=person.id, role=Role.MAKER))
            notices.tell(session, [boss], "video commented", project=studio.project_id, video=films[0], name="x")
            sign_in.make_token(session, actor, f"token {number}")
            policies.put(session, actor, studio.project_id, policies.TEMPLATES["standard"])
            make_job(session, studio.project_id, person.id).request = {"prompt": "The cup moves.", "references": []}
            session.add(Comment(video_id=films[0], user_id=person.id, frame=number % 9, text="Look."))
            audit.append(session, person.id, "tried", None, number=number)
        made = _one_of_each(session, studio, subjects[0], films[0], clip)
        mini = make_worker(session)
        profile = mini.offers["models"]["phantom-mini"] | profiled(load_preset(model_folder("phantom-mini")))
        for _ in range(MANY):
            session.add(Worker(name="b", device="cpu", offers={**mini.offers, "models": {"phantom-mini": profile}},
                               heartbeat_at=now()))  # fmt: skip
        ids = {"project_id": studio.project_id, "subject_id": subjects[0].id, "image_id": subjects[0].images[0].id,
               "right_id": subjects[0].rights[0].id, "video_id": films[0], "number": "0", "part": "report",
               "name": "studio.css", **made}  # fmt: skip
        session.add_all(User(email=f"q{number}@example.com", name="Q") for number in range(100))
        _, token = projects.add_user(session, access.SYSTEM, "new@example.com", "New")
        return {**ids, "token": token}


def _one_of_each(session, studio, subject, film, clip) -> dict[str, str]:
    """Drafts with a first frame, jobs with a preview, exports, webhooks with deliveries, documents, images and rights."""
    put, boss = studio.storage.put, studio.people["boss"]
    png = put(session, studio.storage.read(subject.images[0].blob) + b"\0", "image/png")
    document = put(session, b"%PDF-1.7", "application/pdf")
    first = session.get_one(Right, subject.rights[0].id)
    first.document, first.document_name = document, "contract.pdf"
    columns = {c.key: getattr(first, c.key) for c in Right.__table__.columns if c.key != "id"}
    session.add_all(Right(**columns) for _ in range(MANY))
    session.add_all(
        SubjectImage(subject_id=subject.id, position=n, blob=png, thumbnail=png, width=64, height=64) for n in range(1, 12)
    )
    draft = {"prompt": "The cup moves.", "purpose": "website", "territories": ["DE"], "first_frame": png}
    drafts = [Draft(project_id=studio.project_id, user_id=boss, subjects=[subject.id], **draft) for _ in range(MANY)]
    hooks = [Webhook(project_id=studio.project_id, url="https://a.example", secret="x", events=[]) for _ in range(10)]
    exports = [
        Export(video_id=film, user_id=boss, blob=put(session, clip, "video/mp4"), poster=png, report=document, labelled=True)
        for _ in range(MANY)
    ]
    session.add_all([*drafts, *hooks, *exports])
    session.flush()
    session.add_all(
        Delivery(webhook_id=hooks[0].id, body={"event": "video.approved"}, outcome="answered 500") for _ in range(MANY)
    )
    video = session.get_one(Video, film)
    job = session.get_one(Job, video.job_id)
    job.preview, job.request = png, {"prompt": "x", "references": [{"subject": "Red cup", "path": subject.images[0].blob}]}
    job.requires = {"model": "phantom-mini", "computed_seconds": 1.0}
    for column in range(1, MANY):
        values = {c.key: getattr(video, c.key) for c in Video.__table__.columns if c.key not in ("id", "candidate", "created_at")}
        session.add(Video(**{**values, "candidate": column}))
    return {"draft_id": drafts[0].id, "job_id": job.id, "export_id": exports[0].id, "webhook_id": hooks[0].id}


@pytest.fixture(scope="module")
def filled_folder(template_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "studio"
    with copied(template_folder, folder) as studio:
        ids = fill(studio)
    (folder / "ids.json").write_text(json.dumps(ids))
    return folder


@pytest.fixture
def studio(filled_folder, tmp_path):
    with copied(filled_folder.parent / "studio", tmp_path / "studio") as made:
        yield made


@pytest.fixture
def ask(studio, app, browser):
    """ask(address) -> answer and Asked, by a person with every role."""
    client, asked = browser("boss"), Asked()
    raw = studio.engine.raw_connection()  # outside of the pool, so that its plans are no work of a page
    raw.detach()

    def note(connection, cursor, statement, parameters, *rest):
        if not re.match(r"\s*(begin|commit|rollback|pragma|insert)", statement, re.IGNORECASE):
            asked.texts.append(statement)
            plan = raw.cursor().execute(f"explain query plan {statement}", parameters).fetchall()
            asked.plans.append([row[3] for row in plan])

    event.listen(studio.engine, "before_cursor_execute", note)

    def of(address):
        asked.texts, asked.plans = [], []
        return client.get(address, follow_redirects=False), asked

    yield of
    event.remove(studio.engine, "before_cursor_execute", note)
    raw.close()
    app.state.decoder.close()


def addresses(path, ids, ask):
    """A route's addresses: as it is, with what QUERIES adds, and the second page of its list."""
    address = re.sub(r"\{(\w+)(:path)?\}", lambda found: ids[found[1]], path)
    for query in ("", *QUERIES.get(path, ())):
        whole = f"{address}?{query}" if query else address
        yield whole
        answer = ask(whole)[0]
        following = re.search(r'[?;&]after=([\w-]+)"', answer.text) or re.search(r'"following":"([\w-]+)"', answer.text)
        if following:
            yield f"{whole}{'&' if query else '?'}after={following[1]}"


def wrong_steps(path, asked):
    """Steps of plans that grow with a table: all of it is read, where no limit ends that, or sorted."""
    for text, plan in zip(asked.texts, asked.plans, strict=True):
        for step in plan:
            scanned = re.match(r"SCAN (\w+)", step)
            whole = scanned and scanned[1] in Base.metadata.tables and " LIMIT " not in text
            order = re.findall(r"ORDER BY (.*)", text)
            sorted_ = "TEMP B-TREE" in step and not any(each.startswith(tuple(SORTED)) for each in order)
            if (whole and scanned[1] not in WHOLE.get(path, ())) or sorted_:
                yield step, re.search(r"FROM .*", text.replace("\n", " "))[0]


def bulk(studio, count):
    """Rows as many as a project of years has: videos with their jobs, and subjects."""
    with studio.writing() as session:
        for table in (Subject, Job, Video):
            one = session.scalars(select(table).where(table.project_id == studio.project_id).limit(1)).first()
            values = {c.key: getattr(one, c.key) for c in table.__table__.columns}
            rows = [{**values, "id": f"{number:032x}", "created_at": now()} for number in range(count)]
            rows = [{**row, "job_id": row["id"], "candidate": 0} for row in rows] if table is Video else rows
            states = list(VideoState) if table is Video else [JobState.DONE]
            session.execute(insert(table), rows if table is Subject else [
                {**row, "state": states[n % len(states)], "ended_at": now()} if table is Job
                else {**row, "state": states[n % len(states)]} for n, row in enumerate(rows)
            ])  # fmt: skip


def test_pages_of_a_long_project_are_no_more_work(studio, ask):
    """Counted in the database's own instructions, before and after 3,000 more rows in every list."""
    ids = json.loads((studio.settings.folder / "ids.json").read_text())
    every, done = 100, [0]

    def tick():
        done[0] += every

    def watched(connection, *rest):
        connection.set_progress_handler(tick, every)

    event.listen(studio.engine, "checkout", watched)

    def work():
        found = {}
        for path in routes():
            address = re.sub(r"\{(\w+)(:path)?\}", lambda found: ids[found[1]], path)
            for query in ("", *QUERIES.get(path, ())):
                done[0] = 0
                ask(f"{address}?{query}")
                found[path, query] = done[0]
        return found

    few = work()
    bulk(studio, 3000)
    grown = {key: (few[key], many) for key, many in work().items() if many > 1.5 * few[key] + 2 * every}
    assert {key: value for key, value in grown.items() if key[0] not in COUNTING} == {}


def test_every_route_is_few_statements_by_index(studio, ask):
    ids = json.loads((studio.settings.folder / "ids.json").read_text())
    many, slow, paged = {}, {}, set()
    for path in routes():
        for address in addresses(path, ids, ask):
            answer, asked = ask(address)
            assert answer.status_code in (200, 303), (address, answer.text[:500])
            if "after=" in address:
                paged.add(path)
            if len(asked.texts) > MOST:
                many[address] = len(asked.texts), asked.texts
            for step in wrong_steps(path, asked):
                slow.setdefault(path, set()).add(step)
    assert many == {}
    assert slow == {}
    assert lists() <= paged
    assert len(paged) > 14
