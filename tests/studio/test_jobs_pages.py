"""Pages of generating, jobs and the gate, on rows as a worker writes them."""

import io
from typing import get_args

import pytest
from PIL import Image
from sqlalchemy import select

from phantom_s2v.models.registry import load_preset, model_folder
from phantom_s2v.studio import drafts, queue
from phantom_s2v.studio.queue import Ticket
from phantom_s2v.studio.schema import Draft, Job, JobState, Project, Subject, Video, Worker, now
from phantom_s2v.studio.web.api_jobs import Option

from .queued import add_subject, make_worker, profiled, scored, set_policy


@pytest.fixture
def app(app):
    """The application, whose decoder ends with the test."""
    yield app
    app.state.decoder.close()


@pytest.fixture
def ready(studio):
    """A project with a policy, a subject with rights, and a worker that offers phantom-mini."""
    with studio.writing() as session:
        set_policy(session, studio)
        studio.subject_id = add_subject(session, studio, "fox").id
        worker = make_worker(session)
        mini = worker.offers["models"]["phantom-mini"] | profiled(load_preset(model_folder("phantom-mini")))
        worker.offers = {**worker.offers, "models": {"phantom-mini": mini}}
        session.get_one(Project, studio.project_id).price_per_hour = 36_00
        studio.base = f"/projects/{studio.project_id}"
    return studio


def begin(client, studio, **typed):
    """A draft with what was typed; its address."""
    page = client.submit(f"{studio.base}/generate")
    address = page.url.path
    fields = {"prompt": "The fox moves up.", "subjects": studio.subject_id, "purpose": "internal trial", "territories": "DE"}
    client.submit(f"{address}/save", {**fields, **typed})
    return address


def typed_in(studio):
    with studio.reading() as session:
        return session.scalars(select(Draft.prompt)).one()


def test_what_is_typed_is_kept_and_checked_and_estimated(ready, browser):
    client = browser("maker")
    address = begin(client, ready)
    said = client.submit(f"{address}/save", {"prompt": "It moves up", "subjects": ready.subject_id, "num_frames": "x"})
    assert said.status_code == 200
    assert "The prompt mentions no subject. Say what fox does." in said.text
    assert "understands English alone" not in said.text
    assert "Please enter a whole number from " in said.text
    assert typed_in(ready) == "It moves up"
    again = client.get(address)
    assert "It moves up" in again.text
    assert 'value="x"' not in again.text  # no such length is offered, and the sentence stands there
    japanese = client.submit(f"{address}/save", {"prompt": "the subject は右へ動く", "subjects": ready.subject_id})
    assert "understands English alone" in japanese.text
    good = {"prompt": "The fox moves up", "subjects": ready.subject_id, "num_frames": "9", "candidates": "2"}
    good |= {"purpose": "internal trial", "territories": "DE"}
    said = client.submit(f"{address}/save", good)
    assert "Every subject is described" in said.text
    assert "Run: " in said.text
    assert "€" in said.text


def test_the_first_estimate_has_scoring(ready, browser):
    """Of frames that networks look at and of pixels, for each subject and candidate."""
    address = begin(browser("maker"), ready, num_frames="25", size="64x64", candidates="3")
    look = f"/api/v1{address.replace('/generate/', '/drafts/')}/look"
    before = browser("maker").get(look).json()["cost"]["seconds"]
    with ready.writing() as session:
        worker = session.scalars(select(Worker)).one()
        mini = {**worker.offers["models"]["phantom-mini"], "scoring": {"frame": 2.0, "pixel": 1e-4}}
        worker.offers = {**worker.offers, "models": {"phantom-mini": mini}}
    after = browser("maker").get(look).json()["cost"]["seconds"]
    assert after - before == pytest.approx(3 * (10 * 2.0 + 25 * 64 * 64 * 1e-4))


def test_a_draft_is_its_makers_alone(ready, browser, studio):
    address = begin(browser("maker"), ready)
    with studio.writing() as session:
        from phantom_s2v.studio import access, projects
        from phantom_s2v.studio.schema import Role

        projects.set_roles(session, access.SYSTEM, studio.project_id, "reviewer@example.com", [Role.MAKER])
    assert browser("reviewer").get(address).status_code == 404


@pytest.mark.parametrize("language", ["en", "ja"])
def test_run_queues_once_and_the_job_is_shown(ready, browser, language):
    client = browser("maker", language)
    address = begin(client, ready)
    fields = {"prompt": "The fox moves up", "subjects": ready.subject_id, "purpose": "internal trial", "territories": "DE"}
    first = client.submit(f"{address}/run", {**fields, "once": "abc", "seed": "7"})
    assert "/jobs/" in first.url.path, first.text
    second = client.submit(f"{address}/run", {**fields, "once": "abc"})  # the answer was lost, the browser sends again
    assert second.url.path == first.url.path
    headers = {"x-csrf-token": client.csrf}
    by_api = client.get(f"/api/v1{ready.base}/drafts").json()["items"]  # without what is kept beside the options
    assert [each["prompt"] for each in by_api] == ["The fox moves up"]
    assert set(by_api[0]["options"]) <= set(drafts.OPTIONS) == set(get_args(Option))
    one = f"/api/v1{ready.base}/drafts/{by_api[0]['id']}"
    assert client.get(one).json() == by_api[0]
    assert client.put(one, json={"options": {"num_frame": "9"}}, headers=headers).status_code == 422
    third = client.submit(f"{address}/run", {**fields, "once": "def"})
    assert third.url.path != first.url.path
    with ready.reading() as session:
        jobs = session.scalars(select(Job).order_by(Job.created_at)).all()
        assert [job.request["seed"] for job in jobs] == [7, 0]
        assert jobs[0].requires["weights"] == "w1"
    assert client.get(f"{ready.base}/jobs").text.count("The fox moves up") == 2
    cancelled = client.submit(f"{first.url.path}/cancel")
    assert cancelled.status_code == 200
    with ready.reading() as session:
        assert session.get_one(Job, first.url.path.rpartition("/")[2]).state == JobState.CANCELLED


def test_what_must_not_run_is_refused_beside_its_field_and_nothing_typed_is_lost(ready, browser):
    client = browser("maker")
    address = begin(client, ready)
    wrong = {"prompt": "", "seed": "-1", "num_inference_steps": "many", "subjects": ready.subject_id, "purpose": "television"}
    answer = client.submit(f"{address}/run", wrong)
    assert answer.status_code == 422
    for sentence in ("Describe what happens", "Please enter a whole number from ", "The policy does not allow this purpose."):
        assert sentence in answer.text
    assert 'value="many"' in answer.text
    assert client.submit(f"{address}/run", {**wrong, "prompt": "fox", "num_inference_steps": ""}).status_code == 422
    with ready.writing() as session:
        project = session.get_one(Project, ready.project_id)
        project.budget, project.spent = 100, 100
    fields = {"prompt": "The fox moves up", "subjects": ready.subject_id, "purpose": "internal trial", "territories": "DE"}
    answer = client.submit(f"{address}/run", fields)
    assert "more than the project&#39;s budget has left" in answer.text
    with ready.reading() as session:
        assert session.scalars(select(Job)).all() == []


def finished(studio, passed=False, seen=True):
    """A job of the maker with one video that was measured; the video's id."""
    with studio.writing() as session:
        worker = session.scalars(select(Worker)).one()
        worker.heartbeat_at = now()
        job = queue.take(session, worker)
        ticket = Ticket(job.id, job.lease)
        blobs = [
            studio.storage.put(session, content, kind) for content, kind in ((b"video", "video/mp4"), (b"still", "image/png"))
        ]
        video = Video(
            project_id=job.project_id, job_id=job.id, user_id=job.user_id, candidate=0, seed=job.request["seed"], blob=blobs[0],
            poster=blobs[1], fps=8, num_frames=9, width=64, height=64, details={},
        )  # fmt: skip
        queue.made(session, ticket, video)
        other = add_subject(session, studio, "<b>wolf</b>")
        video.score, video.passed = scored("fox", other.id, seen), passed
        queue.advance(session, ticket)
        return video.id


def queued(client, studio):
    address = begin(client, studio)
    fields = {"prompt": "The fox moves up", "subjects": studio.subject_id, "purpose": "internal trial", "territories": "DE"}
    return client.submit(f"{address}/run", {**fields, "once": "1", "seed": "5", "negative_prompt": "rain"})


def test_the_gate_says_frame_region_metric_and_nearest_subject_and_a_reviewer_may_override(ready, browser):
    maker, reviewer = browser("maker"), browser("reviewer")
    job = queued(maker, ready)
    address = f"{ready.base}/videos/{finished(ready)}"
    assert "misses KPIs" in maker.get(job.url.path).text
    page = maker.get(f"{address}/gate")
    for words in (
        "similarity to the reference: fox", "Frame 4, where it is worst", "at least 0.9", "our brand team",
        "&lt;b&gt;wolf&lt;/b&gt; (0.70; its own reference: 0.40)", 'class="region" x="6.4"', "Similarity over time: fox",
    ):  # fmt: skip
        assert words in page.text, words
    assert "Let this video pass" not in page.text  # its maker
    assert maker.submit(f"{address}/override", {"reason": "it is fine"}).status_code == 403
    assert reviewer.submit(f"{address}/override", {"reason": " "}).status_code == 422
    assert "it is fine" in reviewer.submit(f"{address}/override", {"reason": "it is fine"}).text
    assert "let pass by a reviewer" in maker.get(job.url.path).text
    assert reviewer.submit(f"{address}/override", {"reason": "again"}).status_code == 409


def test_a_subject_that_is_never_seen_fails_where_it_is_missing(ready, browser):
    queued(browser("maker"), ready)
    page = browser("maker").get(f"{ready.base}/videos/{finished(ready, seen=False)}/gate").text
    assert "not measurable" in page
    assert "It was seen in no frame." in page


@pytest.mark.parametrize(("language", "failed", "unmeasured"), [
    ("en", "The worker could not make this video.", "The measurement failed, not the video"),
    ("ja", "ワーカーはこの動画を生成できませんでした。", "失敗したのは動画ではなく測定"),
])  # fmt: skip
def test_what_went_wrong_is_said_in_the_readers_language_with_the_programs_message(ready, browser, language, failed, unmeasured):
    client = browser("maker", language)
    job = queued(client, ready)
    film = finished(ready)
    with ready.writing() as session:
        session.get_one(Video, film).score = None
    assert client.get(f"{ready.base}/videos/{film}/gate").status_code == 200  # while it is measured
    with ready.writing() as session:
        video, row = session.get_one(Video, film), session.scalars(select(Job)).one()
        video.score, video.passed = {"not_measured_because": "no <frame> is readable"}, None
        row.state, row.reason = JobState.FAILED, "out of <memory>"
        row.notes = [{"code": "restarted", "candidate": 1, "step": 3, "why": "weights was a and is b"}]
    page = client.get(job.url.path).text
    for words in (failed, '<samp lang="en">out of &lt;memory&gt;</samp>', '<samp lang="en">weights was a and is b</samp>'):
        assert words in page, words
    page = client.get(f"{ready.base}/videos/{film}/gate").text
    assert unmeasured in page
    assert '<samp lang="en">no &lt;frame&gt; is readable</samp>' in page


def test_make_again_has_everything_of_the_video(ready, browser):
    client = browser("maker")
    queued(client, ready)
    page = client.submit(f"{ready.base}/videos/{finished(ready, passed=True)}/again")
    with ready.reading() as session:
        draft = session.get_one(Draft, page.url.path.rpartition("/")[2])
        session.expunge(draft)
    assert (draft.prompt, draft.subjects, draft.purpose, draft.territories) == (
        "The fox moves up", [ready.subject_id], "internal trial", ["DE"],
    )  # fmt: skip
    assert (draft.options["seed"], draft.options["negative_prompt"], draft.options["size"]) == ("5", "rain", "64x64")


def test_pages_need_few_queries_however_long_the_lists_are(ready, browser, statements):
    client = browser("maker")
    job = queued(client, ready).url.path
    video = f"{ready.base}/videos/{finished(ready)}/gate"
    with ready.reading() as session:
        draft = f"{ready.base}/generate/{session.scalars(select(Draft.id)).one()}"
    counts = []
    addresses = (f"{ready.base}/jobs", f"{ready.base}/generate", f"{ready.base}/drafts", draft, job, f"{job}/progress", video)
    for _ in range(2):
        for address in addresses:
            client.get(address)
            statements.texts.clear()
            client.get(address, follow_redirects=False)
            counts.append(len(statements.texts))
        with ready.writing() as session:
            one = session.scalars(select(Job)).first()
            for _ in range(30):
                values = {c.key: getattr(one, c.key) for c in Job.__table__.columns if c.key not in ("id", "created_at")}
                session.add(Job(**values))
    assert counts[: len(addresses)] == counts[len(addresses) :]
    assert max(counts) <= 5


def picture(color=(200, 40, 40)):
    target = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(target, "PNG")
    return target.getvalue()


def test_a_first_frame_is_decoded_kept_and_removed(ready, browser):
    client = browser("maker")
    address = begin(client, ready)
    wrong = client.submit(f"{address}/first-frame", files={"image": ("a.png", b"no image", "image/png")})
    assert wrong.status_code == 422
    assert "not an image that can be read" in wrong.text
    assert "The fox moves up." in wrong.text  # what was typed
    page = client.submit(f"{address}/first-frame", files={"image": ("../../a.png", picture(), "image/png")})
    assert page.url.path == address
    assert client.get(f"{address}/first-frame").content.startswith(b"\x89PNG")
    fields = {"prompt": "The fox moves up", "subjects": ready.subject_id, "purpose": "internal trial", "territories": "DE"}
    client.submit(f"{address}/run", {**fields, "once": "1"})
    client.submit(f"{address}/first-frame")
    assert client.get(f"{address}/first-frame").status_code == 404
    with ready.reading() as session:
        job = session.scalars(select(Job)).one()
        assert ready.storage.path(job.request["first_frame"]).is_file()  # the job keeps it


def test_a_job_keeps_the_images_that_it_was_queued_with(ready, browser):
    client = browser("maker")
    queued(client, ready)
    with ready.writing() as session:
        job = session.scalars(select(Job)).one()
        image = session.get_one(Subject, ready.subject_id).images[0]
        session.delete(image)
        ready.storage.forget(session, [image.blob])
        wanted = job.request["references"][0]["path"]
    assert ready.storage.path(wanted).is_file()


def test_the_api_does_the_same(ready, browser):
    maker, reviewer = browser("maker"), browser("reviewer")
    base = f"/api/v1{ready.base}"

    def send(client, path, method="POST", **body):
        answer = client.request(method, f"{base}/{path}", json=body, headers={"X-CSRF-Token": client.csrf})
        return answer.status_code, answer.json()

    wanted = {"prompt": "The fox moves up", "subjects": [ready.subject_id], "purpose": "internal trial", "territories": ["DE"]}
    status, draft = send(maker, "drafts", **wanted, options={"seed": "3", "num_frames": "nine"})
    assert status == 200
    address = f"drafts/{draft['id']}"
    look = maker.get(f"{base}/{address}/look").json()
    assert [each["field"] for each in look["problems"]] == ["num_frames"]
    assert look["cost"] is None
    status, refused = send(maker, f"{address}/run", once="a")
    assert (status, refused["errors"][0]["field"]) == (422, "num_frames")
    assert send(maker, address, "PUT", **wanted, options={"num_frames": "9"})[0] == 200
    assert maker.get(f"{base}/{address}/look").json()["cost"]["seconds"] > 0
    job, same = (send(maker, f"{address}/run", once="b")[1]["id"] for _ in range(2))
    assert job == same
    assert [each["id"] for each in maker.get(f"{base}/jobs").json()["items"]] == [job]
    assert maker.get(f"{base}/jobs/{job}").json()["place"] == 1
    video = finished(ready)
    assert maker.get(f"{base}/jobs/{job}").json()["videos"] == [video]
    found = maker.get(f"{base}/videos/{video}/gate").json()
    assert (found["verdict"], found["failures"][0]["frame"]) == ("failed", 4)
    assert send(maker, f"videos/{video}/override", reason="fine")[0] == 403
    assert send(reviewer, f"videos/{video}/override", reason="fine")[1]["verdict"] == "overridden"
    assert send(maker, f"jobs/{job}/cancel")[0] == 409


def test_a_proposal_stands_beside_what_was_typed(ready, browser, monkeypatch):
    from phantom_s2v.pipeline import prompts

    client = browser("maker")
    address = begin(client, ready)
    assert client.submit(f"{address}/rephrase").status_code == 409  # none is set up
    object.__setattr__(ready.settings, "rephrase", "http://127.0.0.1:1/v1#model")
    with ready.writing() as session:  # an image that can be read
        image = session.get_one(Subject, ready.subject_id).images[0]
        image.blob = ready.storage.put(session, picture(), "image/png")
    monkeypatch.setattr(prompts, "rephrase", lambda prompt, images, where: f"<{prompt} of {len(images)}>")
    answer = client.submit(f"{address}/rephrase")
    assert "&lt;The fox moves up. of 1&gt;" in answer.text
    assert typed_in(ready) == "The fox moves up."
    monkeypatch.undo()
    answer = client.submit(f"{address}/rephrase")  # nobody answers there
    assert answer.status_code == 200
    assert 'class="wrong"' in answer.text


def test_a_rephraser_is_an_endpoint(tmp_path):
    from phantom_s2v.errors import InputError
    from phantom_s2v.studio.config import load_settings

    with pytest.raises(InputError, match="PHANTOM_STUDIO_REPHRASE must be URL#MODEL"):
        load_settings(tmp_path, {"PHANTOM_STUDIO_REPHRASE": "/models/vlm"})


def test_the_prompt_is_checked_before_a_worker_has_started_and_never_praised_unseen(ready, browser):
    client = browser("maker")
    with ready.writing() as session:
        session.delete(session.scalars(select(Worker)).one())
    address = begin(client, ready)
    assert "Say what fox does" in client.submit(f"{address}/save", {"prompt": "It moves", "subjects": ready.subject_id}).text
    assert (
        "Every subject is described"
        in client.submit(f"{address}/save", {"prompt": "The fox moves", "subjects": ready.subject_id}).text
    )
    with ready.writing() as session:
        session.get_one(Project, ready.project_id).model = "phantom-wan-elsewhere"
    said = client.submit(f"{address}/save", {"prompt": "It moves", "subjects": ready.subject_id}).text
    assert "Every subject is described" not in said  # nobody knows what that model reads


def test_two_subjects_have_to_be_told_apart(ready, browser):
    client = browser("maker")
    with ready.writing() as session:
        wolf = add_subject(session, ready, "wolf", b"another").id
    address, both = begin(client, ready), {"subjects": [ready.subject_id, wolf]}
    for prompt, told in (
        ("The subject moves to the subject", False), ("The first subject moves to the second subject", True),
        ("The fox moves to the wolf", True), ("The fox moves to the second subject", True), ("The subject and the wolf", False),
    ):  # fmt: skip
        said = client.submit(f"{address}/save", {"prompt": prompt, **both}).text
        assert ("Every subject is described" in said, "Several subjects are chosen" in said) == (told, not told), prompt


def test_make_again_says_which_images_have_changed_since(ready, browser):
    client = browser("maker")
    queued(client, ready)
    film = finished(ready, passed=True)
    with ready.writing() as session:
        image = session.get_one(Subject, ready.subject_id).images[0]
        image.blob = ready.storage.put(session, b"another image", "image/png")
    page = client.submit(f"{ready.base}/videos/{film}/again")
    assert "but for the reference images of fox" in page.text


def test_a_draft_whose_job_was_removed_since_can_run_again(ready, browser):
    from phantom_s2v.studio import erasure

    client = browser("maker")
    job = queued(client, ready).url.path
    with ready.writing() as session:
        erasure._remove_jobs(session, [job.rpartition("/")[2]])
        draft = session.scalars(select(Draft.id)).one()
    fields = {"prompt": "The fox moves up", "subjects": ready.subject_id, "purpose": "internal trial", "territories": "DE"}
    again = client.submit(f"{ready.base}/generate/{draft}/run", {**fields, "once": "1"})
    assert "/jobs/" in again.url.path
    assert again.url.path != job
