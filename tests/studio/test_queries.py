"""Every route that is read: at most five statements, each by an index, however long the lists are."""

import inspect
import re
from dataclasses import dataclass, field

import pytest
from sqlalchemy import event, insert, select

from phantom_s2v.studio.schema import (
    Base,
    Job,
    JobState,
    Subject,
    Video,
    VideoState,
    now,
)
from phantom_s2v.studio.web.app import ROUTERS

MOST = 5
QUERIES = {  # what stands behind the question mark where that asks the database for something else
    "/projects/{project_id}/reviews": ("state=all", "state=approved"),
    "/projects/{project_id}/policy/new": ("template=japan",),
    "/api/v1/projects/{project_id}/videos": ("state=approved",),
}
# Whole tables that may be read: of one row for each version of the tables; and what Prometheus asks, about every 15 seconds.
WHOLE = {"/ready": {"alembic_version"}, "/metrics": {"jobs", "videos", "deliveries"}}
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


@pytest.fixture
def studio(filled):
    return filled


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


SLACK = 1000  # instructions: rows of a page that was not full before; to pass over 3,000 rows takes several thousand


def test_pages_of_a_long_project_are_no_more_work(studio, ask):
    """Counted in the database's own instructions, before and after 3,000 more rows in every list."""
    ids = studio.ids
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
    grown = {key: (few[key], many) for key, many in work().items() if many > 1.5 * few[key] + SLACK}
    assert {key: value for key, value in grown.items() if key[0] not in COUNTING} == {}


def test_every_route_is_few_statements_by_index(studio, ask):
    ids = studio.ids
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
