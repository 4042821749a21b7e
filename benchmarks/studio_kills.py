"""Kill the studio's workers and its web process at random moments, fill its disk; is a job lost, or a video changed?

    python benchmarks/studio_kills.py --kills 200

Jobs of 9 frames of 64x64 by phantom-mini are sent to the web process as a browser sends them, and again where no answer came.
Their videos are compared with those of the same requests made undisturbed before. Workers are forked from this process, which
has loaded everything once; each is killed by SIGKILL as a process of its own. The web process is started anew by its command.
With the right to mount, the studio lies on a small tmpfs that is filled now and then; without it no disk is filled, and "full"
is 0.

The last line is JSON: kills, lost (accepted jobs that did not end with all their videos), doubled (two results of one, or two
jobs of one button), different (videos that are not those of the undisturbed run, bit for bit), and what happened on the way.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from phantom_s2v.evaluation.networks import Wanted, instruments
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.models.memory import Placement
from phantom_s2v.studio import access, audit, policies, projects, queue, sign_in
from phantom_s2v.studio.config import load_settings
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.measuring import Measures
from phantom_s2v.studio.schema import Job, JobState, Right, Role, Subject, SubjectImage, User, Video, Worker, now
from phantom_s2v.studio.web.view import SESSION, sign_cookie
from phantom_s2v.studio.worker import Models, Service

STILLS = Path(access.__file__).parents[1] / "assets" / "held-out" / "stills"
PROMPTS = ("The subject moves up on a green background.", "The subject moves to the left on a white background.")
WAITING = 4  # jobs that are open all the time
DISK = "size=192m"


@dataclass
class Person:
    """A maker with a browser."""

    project: str
    subject: str
    cookie: str
    csrf: str


@dataclass
class Arena:
    """The studio under attack."""

    folder: Path
    port: int
    random: random.Random
    people: list[Person] = field(default_factory=list)
    workers: dict[int, int] = field(default_factory=dict)  # pid -> its number
    accepted: dict[str, tuple[str, int, Person]] = field(default_factory=dict)  # job -> prompt, seed, maker
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.studio = self.opened()
        self.studio.start()
        self.models = Models(["phantom-mini"], Placement(device="cpu"))
        self.offers = self.models.offers(1)
        self.tools = instruments(Wanted())
        self.client = httpx.Client(timeout=60)
        self.web = None
        self._people()

    def opened(self):
        return Studio(load_settings(self.folder, {}, port=self.port))

    def _people(self):
        """Three makers in two projects, each with a subject that may be shown."""
        with self.studio.writing() as session:
            found = [projects.create(session, access.SYSTEM, name) for name in ("one", "two")]
            for number, project in enumerate((found[0], found[0], found[1])):
                user, _ = projects.add_user(session, access.SYSTEM, f"maker{number}@example.com", f"Maker {number}")
                projects.set_roles(session, access.SYSTEM, project.id, user.email, [Role.MAKER])
                boss, _ = projects.add_user(session, access.SYSTEM, f"boss{number}@example.com", "Boss", admin=True)
                session.flush()
                actor = access.load(session, session.get_one(User, boss.id), project.id)[0]
                policies.put(session, actor, project.id, policies.Rules(document=False))
                token = sign_in.begin_session(session, user.id)
                settings = self.studio.settings
                subject = self._subject(session, project.id, user.id)
                person = Person(project.id, subject, sign_cookie(settings, token), settings.keyed_hash("csrf", token))
                self.people.append(person)
            self.studio.engine.dispose()

    def _subject(self, session, project, user):
        image = sorted(STILLS.rglob("*.webp"))[0].read_bytes()
        subject = Subject(project_id=project, name="subject", kind="product", created_by=user)
        session.add(subject)
        session.flush()
        blob = self.studio.storage.put(session, image, "image/webp")
        session.add(SubjectImage(subject_id=subject.id, position=0, blob=blob, thumbnail=blob, width=256, height=256))
        session.add(
            Right(
                project_id=project, subject_id=subject.id, shown="it", owner="us", basis="own", uses=["internal trial"],
                territories=["WORLD"], valid_from=now(), created_by=user, checked_by=user, checked_at=now(),
            )
        )  # fmt: skip
        return subject.id

    def start_web(self):
        log = (self.folder.parent / "web.log").open("a")
        command = [sys.executable, "-m", "phantom_s2v", "studio", "--folder", str(self.folder), "--port", str(self.port)]
        command.append("--no-worker")  # ours are started and killed one by one
        self.web = subprocess.Popen(command, stdout=log, stderr=log)

    def start_worker(self, number):
        if pid := os.fork():
            self.workers[pid] = number
            return
        code = 1
        try:
            log = os.open(self.folder.parent / "workers.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            Service(self.opened(), self.models, 1, self.offers, Measures(self.tools)).run()
            code = 0
        finally:
            os._exit(code)

    def await_worker(self):
        """Wait until a worker has said what it offers, before which nothing can be queued; it measures its machine first."""
        ends = time.monotonic() + 300
        while time.monotonic() < ends:
            with self.studio.reading() as session:
                if session.scalar(select(Worker.id).limit(1)):
                    return
            time.sleep(0.2)
        raise SystemExit("no worker has registered in 300 s")

    def tend(self):
        """Start again what has ended by itself: a worker that could not even register, on a full disk."""
        for pid in list(self.workers):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.counts["workers ended"] += 1
                self.start_worker(self.workers.pop(pid))
        if self.web is None or self.web.poll() is not None:
            self.counts["web starts"] += 1
            self.start_web()

    def kill_worker(self):
        pid = self.random.choice(list(self.workers))
        number = self.workers.pop(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.start_worker(number)

    def kill_web(self):
        assert self.web
        self.web.kill()
        self.web.wait()
        self.start_web()

    def fill_disk(self):
        """Leave no byte on the studio's disk for some seconds."""
        filler = self.folder.parent / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 20)):
                pass
        with suppress(OSError), (self.folder.parent / "filler2").open("wb", buffering=0) as file:
            while file.write(bytes(512)):
                pass
        time.sleep(self.random.uniform(1, 5))
        filler.unlink()
        (self.folder.parent / "filler2").unlink(missing_ok=True)
        self.counts["full"] += 1

    def send(self, person, path, **form):
        """Send a form until it is answered; the address that the answer leads to."""
        while True:
            self.tend()
            try:
                answer = self.client.post(
                    f"http://127.0.0.1:{self.port}/projects/{person.project}/{path}",
                    data={"csrf": person.csrf, **form}, headers={"cookie": f"{SESSION}={person.cookie}"},
                )  # fmt: skip
                if answer.status_code == 303:
                    return answer.headers["location"]
                self.counts[f"status {answer.status_code}"] += 1
                if answer.status_code < 500:
                    print(answer.text[-3000:], file=sys.stderr)
                    raise SystemExit(f"{path} was answered with {answer.status_code}")
            except httpx.HTTPError:
                self.counts["no answer"] += 1
            time.sleep(0.3)

    def ask(self, prompt, seed, candidates):
        """Queue a job as a browser does; its id."""
        person = self.random.choice(self.people)
        draft = self.send(person, "generate").rpartition("/")[2]
        form = {"prompt": prompt, "subjects": person.subject, "purpose": "internal trial", "territories": "WORLD"}
        form |= {"num_frames": "9", "size": "64x64", "seed": str(seed), "candidates": str(candidates), "once": "1"}
        job = self.send(person, f"generate/{draft}/run", **form).rpartition("/")[2]
        self.accepted[job] = (prompt, seed, person)

    def states(self):
        """State of every job."""
        while True:
            try:
                with self.studio.reading() as session:
                    return dict(session.execute(select(Job.id, Job.state)).all())
            except OperationalError:
                time.sleep(0.2)

    def drain(self, patience):
        """Wait until all jobs have ended; those that were set aside are tried again by their makers, as the page offers."""
        ends = time.monotonic() + patience
        while time.monotonic() < ends:
            self.tend()
            states = self.states()
            for job, state in states.items():
                if state in (JobState.SET_ASIDE, JobState.FAILED):
                    self.counts[str(state)] += 1
                    self.send(self.accepted[job][2], f"jobs/{job}/resume")
            if not any(state in (*queue.OPEN, JobState.SET_ASIDE, JobState.FAILED) for state in states.values()):
                return
            time.sleep(0.5)
        self.counts["not drained"] += 1

    def videos(self):
        """(job, prompt, seed, hash) of every video whose file is there with that hash."""
        with self.studio.reading() as session:
            rows = session.execute(select(Video.job_id, Video.candidate, Video.seed, Video.blob, Job.request).join(Job)).all()
        storage = self.studio.storage
        return [
            (job, candidate, request["prompt"], seed, blob)
            for job, candidate, seed, blob, request in rows
            if storage.path(blob).is_file() and content_hash(storage.path(blob)) == blob
        ]


def attack(arena, kills, full, pause):
    """The kills, over running jobs."""
    done = 0
    while done < kills:
        open_jobs = sum(state in queue.OPEN for state in arena.states().values())
        for _ in range(max(0, WAITING - open_jobs)):
            arena.ask(arena.random.choice(PROMPTS), arena.random.randrange(3), arena.random.randint(1, 2))
        time.sleep(arena.random.uniform(0.2, pause))
        arena.tend()
        if full and arena.random.random() < 0.08:
            arena.fill_disk()
        if arena.random.random() < 0.75:
            arena.kill_worker()
            arena.counts["of workers"] += 1
        else:
            arena.kill_web()
            arena.counts["of the web process"] += 1
        done += 1
        if done % 10 == 0:
            print(f"{done} kills, {len(arena.accepted)} jobs, {dict(arena.counts)}", flush=True)


def judge(arena, expected, undisturbed):
    """What was lost, doubled or changed."""
    with arena.studio.reading() as session:
        jobs = {job.id: (job.state, job.candidates, job.deaths) for job in session.scalars(select(Job))}
        lines, wrong = audit.verify(session, arena.studio.head)
    videos = [each for each in arena.videos() if each[0] not in undisturbed]
    made = Counter((job, candidate) for job, candidate, *_ in videos)
    attacked = {job for job in arena.accepted if job not in undisturbed}
    lost = [
        job for job in attacked
        if jobs.get(job, (None,))[0] != JobState.DONE or sum(made[job, c] for c in range(16)) < jobs[job][1]
    ]  # fmt: skip
    doubled = sum(count - 1 for count in made.values()) + len(set(jobs) - set(arena.accepted))
    different = [each for each in videos if expected[each[2:4]] != each[4]]
    return {"lost": len(lost), "doubled": doubled, "different": len(different), "jobs": len(attacked), "videos": len(videos),
            "audit lines": lines, "audit problems": len(wrong)}  # fmt: skip


def run(arena, kills, workers, full, pause):
    begun = time.monotonic()
    arena.start_web()
    for number in range(workers):
        arena.start_worker(number)
    arena.await_worker()
    for prompt in PROMPTS:
        for seed in (0, 2):
            arena.ask(prompt, seed, 2)
    arena.drain(1200)
    undisturbed = set(arena.accepted)
    expected = {(prompt, seed): blob for _, _, prompt, seed, blob in arena.videos()}
    print(f"{len(expected)} videos undisturbed after {time.monotonic() - begun:.0f} s", flush=True)
    attack(arena, kills, full, pause)
    arena.drain(1800)
    result = {"kills": kills, **judge(arena, expected, undisturbed), **dict(arena.counts)}
    return {**result, "full": arena.counts["full"], "seconds": round(time.monotonic() - begun)}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pause", type=float, default=3.0, help="most seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=8799)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", place], capture_output=True).returncode == 0
        arena = None
        try:
            arena = Arena(Path(place) / "studio", asked.port, random.Random(asked.seed))
            result = run(arena, asked.kills, asked.workers, mounted, asked.pause)
        finally:
            for pid in arena.workers if arena else ():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            if arena and arena.web:
                arena.web.kill()
                arena.web.wait()
            if mounted:
                subprocess.run(["umount", "-l", place], check=True)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
