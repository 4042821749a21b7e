"""The making of a candidate by phantom-mini: the same pixels however often it is interrupted, and nothing half-done."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from phantom_s2v.files.reuse import as_json
from phantom_s2v.models.registry import load_preset, model_folder
from phantom_s2v.pipeline.request import Reference, with_defaults
from phantom_s2v.studio import making, queue
from phantom_s2v.studio.queue import CancelledError, LeaseLostError, Ticket
from phantom_s2v.studio.schema import Blob, Job, JobState, Video, now

from .queued import make_worker, offers

ROOT = Path(__file__).parents[2]
STEPS = 4


@pytest.fixture(scope="module")
def mini():
    from phantom_s2v.pipeline.generate import load_for

    return load_for([], model_folder("phantom-mini"))


@pytest.fixture(scope="module")
def undisturbed():
    """The hash of the video that nothing interrupts, once it was made: whole(studio, pipe, asked)."""
    made = []

    def whole(studio, pipe, asked):
        if not made:
            made.append(make(studio, pipe, *asked()))
        return made[0]

    return whole


class Killed(BaseException):
    """What stands for SIGKILL: nothing catches it."""


@pytest.fixture
def asked(studio):
    """Queues a job of one video and takes it; the job and its ticket."""
    with studio.writing() as session:
        worker = make_worker(session)
        studio.worker_id = worker.id

    def ask(candidates=1):
        image = np.full((32, 32, 3), (200, 40, 40), np.uint8)
        with studio.writing() as session:
            blob = studio.storage.put(session, making.png(image), "image/png")
            preset = load_preset(model_folder("phantom-mini"))
            request = with_defaults(
                preset, prompt="The subject moves up.", references=(Reference(blob, "square"),), num_frames=5,
                num_inference_steps=STEPS, height=48, width=48,
            )  # fmt: skip
            job = Job(
                project_id=studio.project_id, user_id=studio.people["maker"], request=as_json(asdict(request)),
                requires=queue.requirement(offers(), "phantom-mini"), purpose="test", territories=["DE"], policy_version=1,
                candidates=candidates, steps=STEPS, estimated_seconds=1.0,
            )  # fmt: skip
            queue.enqueue(session, job)
        return taken(studio)

    return ask


def taken(studio, after=0.0):
    from phantom_s2v.studio.schema import Worker

    with studio.writing() as session:
        job = queue.take(session, session.get_one(Worker, studio.worker_id), now() + timedelta(seconds=after))
        return job, Ticket(job.id, job.lease)


def make(studio, pipe, job, ticket, report=lambda done: None):
    """The hash of the video that is made."""
    video = making.Making(studio, job, ticket, pipe, report=report).run()
    with studio.writing() as session:
        queue.advance(session, ticket)
        return session.get_one(Video, video).blob


def killed_at(step):
    def report(done):
        if done == step:
            raise Killed

    return report


def test_a_killed_candidate_goes_on_with_the_same_pixels(studio, asked, mini, undisturbed):
    whole = undisturbed(studio, mini, asked)
    job, ticket = asked()
    with pytest.raises(Killed):
        make(studio, mini, job, ticket, killed_at(3))
    steps = []
    job, new = taken(studio, after=11)
    assert (job.id, job.step, job.deaths) == (ticket.job_id, job.step, 1)
    assert job.step >= 1
    assert make(studio, mini, job, new, steps.append) == whole
    assert steps == list(range(job.step + 1, STEPS + 1))
    with studio.reading() as session:
        kept = {blob.media_type for blob in session.scalars(select(Blob))}
        assert making.TENSORS not in kept  # no state outlives its video
        assert session.get_one(Job, job.id).saved_state is None
    with pytest.raises(LeaseLostError):  # the first worker was only slow, and comes back
        make(studio, mini, job, ticket)


@pytest.mark.parametrize("how", ["code", pytest.param("damage", marks=pytest.mark.long)])
def test_a_state_of_other_code_is_not_used_and_the_job_says_so(studio, asked, mini, monkeypatch, undisturbed, how):
    whole = undisturbed(studio, mini, asked)
    job, ticket = asked()
    with pytest.raises(Killed):
        make(studio, mini, job, ticket, killed_at(3))
    job, ticket = taken(studio, after=11)
    if how == "code":
        monkeypatch.setattr(making, "code_version", lambda *_: {"phantom_s2v": "another"})
    else:
        path = studio.storage.path(job.saved_state)
        path.write_bytes(path.read_bytes()[:100])
    steps = []
    assert make(studio, mini, job, ticket, steps.append) == whole
    assert steps == [1, 2, 3, 4]
    with studio.reading() as session:
        (note,) = session.get_one(Job, job.id).notes
    assert (note["code"], note["candidate"]) == ("restarted", 1)
    assert ("another" if how == "code" else "damaged") in note["why"]


def test_cancel_ends_within_a_step_and_leaves_nothing(studio, asked, mini):
    job, ticket = asked()

    def report(done):
        if done == 2:
            with studio.writing() as session:
                queue.cancel(session, studio.people["maker"], session.get_one(Job, job.id))
        assert done < 3

    with pytest.raises(CancelledError):
        make(studio, mini, job, ticket, report)
    with studio.writing() as session:
        queue.end(session, ticket, JobState.CANCELLED)
    with studio.reading() as session:
        assert session.scalars(select(Video)).all() == []
        assert {blob.media_type for blob in session.scalars(select(Blob))} == {"image/png"}  # the reference
    assert len(list(studio.storage.folder.glob("??/*"))) == 1


@pytest.mark.long
def test_the_state_is_saved_and_the_job_given_back_when_a_worker_has_to_end(studio, asked, mini, undisturbed):
    whole = undisturbed(studio, mini, asked)
    job, ticket = asked()
    running = making.Making(studio, job, ticket, mini)
    running.report = lambda done: setattr(running, "stopping", lambda: done == 2)
    with pytest.raises(making.StoppingError):
        running.run()
    with studio.writing() as session:
        queue.give_back(session, ticket)
    job, ticket = taken(studio)
    assert (job.step, job.deaths) == (2, 0)
    assert make(studio, mini, job, ticket) == whole


def test_saving_and_previews_take_a_share_of_the_time(monkeypatch):
    moment = [0.0]
    monkeypatch.setattr(making.time, "monotonic", lambda: moment[0])
    pace = making.Pace(1 / 20)
    assert pace.due
    with pace.counted():
        moment[0] += 0.5
    moment[0] += 9.9
    assert not pace.due
    moment[0] += 0.2
    assert pace.due


def test_a_worker_that_hangs_while_its_heart_beats_ends_and_costs_one_death(studio, asked, monkeypatch):
    """The thread that computes hangs, in a step or while it measures; the thread that beats goes on."""
    from phantom_s2v.studio import worker

    monkeypatch.setattr(worker, "BEAT", 0.02)
    job, ticket = asked()
    ends = []
    heart = worker.Heart(studio, studio.worker_id, hung=lambda: ends.append(time.monotonic()))
    heart.patience, heart.ticket = 0.5, ticket
    heart.moves(None)
    heart.start()
    for done in (1, 2, 3):  # slow and alive: each step takes less than the patience
        time.sleep(0.3)
        heart.moves(done)
    moved = heart.moved
    assert not ends
    heart.join(20)
    assert ends
    assert ends[0] - moved > 0.5
    with studio.writing() as session:
        before = session.get_one(Job, job.id)
        assert (before.state, before.progress) == (JobState.RUNNING, 3)  # it was renewed as long as something moved
        queue.sweep(session, before.lease_until + timedelta(seconds=1))
        after = session.get_one(Job, job.id)
        assert (after.state, after.deaths) == (JobState.QUEUED, 1)


def test_a_worker_ends_with_the_web_process_that_started_it(studio, monkeypatch):
    from phantom_s2v.studio import worker

    monkeypatch.setattr(worker, "BEAT", 0.02)
    monkeypatch.setenv(worker.BESIDE, "1")
    gone = threading.Event()
    heart = worker.Heart(studio, "0" * 32, orphaned=gone.set)
    monkeypatch.setattr(worker.os, "getppid", lambda: 1)
    heart.start()
    assert gone.wait(20)
    heart.ended.set()
    heart.join()


@pytest.mark.long
def test_three_kills_and_no_job_is_lost(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "studio_kills.py"), "--kills", "3", "--port", "8797"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["kills"], found["lost"], found["doubled"], found["different"]) == (3, 0, 0, 0)


@pytest.mark.long
def test_a_signal_ends_a_worker(studio):
    command = [sys.executable, "-m", "phantom_s2v", "studio", "worker", "--device", "cpu", "--threads", "1"]
    command += ["--folder", str(studio.settings.folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        next(line for line in process.stderr if "offers phantom-mini" in line)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
