"""A hundred people browsing a studio while its worker makes videos, and a project of 100,000 videos.

The studio is the process of `phantom studio`; its worker makes jobs of phantom-mini (64 px, 9 frames) that are queued before.
Each person is a task that opens an address of the mix below (pages, and what they load: stills, parts of the video, the progress
that is asked for again and again), waits for a think time, and opens another. Round by round, so that what else this machine does
meets all alike: one person alone, all people with the worker idle, and all people with the worker at work. The last line is JSON.

    python benchmarks/studio_load.py                 # about six minutes
"""

import argparse
import asyncio
import io
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from sqlalchemy import func, insert, select
from studio_kills import PROMPTS, STILLS

from phantom_s2v.media.videos import encode
from phantom_s2v.studio import access, drafts, policies, projects, sign_in
from phantom_s2v.studio.config import load_settings
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.schema import (
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
    Worker,
    new_id,
    now,
)
from phantom_s2v.studio.web.view import SESSION, sign_cookie

PEOPLE = 100
SMALL, LARGE = 100, 100_000  # videos of two projects
BATCH = 5_000
# Page of a project -> how often it is opened. {video}, {subject}, {job} are of that project.
MIX = {
    "": 3, "/reviews": 6, "/reviews?state=all": 4, "/reviews?state=approved": 2, "/videos/{video}/review": 8,
    "/videos/{video}/gate": 5, "/videos/{video}/sign-off": 2, "/videos/{video}/export": 1, "/subjects": 4,
    "/subjects/{subject}": 4,
    "/rights": 2, "/policy": 1, "/members": 1, "/jobs": 6, "/jobs/{job}": 5, "/generate": 2, "/drafts": 1, "/settings": 1,
}  # fmt: skip
PARTS = {  # what a browser asks for beside a page: by itself, or again and again
    "/videos/{video}/poster": 10, "/videos/{video}/file": 4, "/videos/{video}/frames/4": 2, "/jobs/{job}/progress": 12,
    "/subjects/{subject}/images/{image}/thumbnail": 6,
}  # fmt: skip
LISTS = ("", "/reviews?state=all", "/reviews?state=approved", "/reviews", "/jobs", "/videos/{video}/review")  # compared by size


@dataclass
class Site:
    """The studio under load: its process, and what people may open."""

    studio: Studio
    port: int
    cookies: list[str] = field(default_factory=list)
    projects: dict[str, dict[str, str]] = field(default_factory=dict)  # small, large -> ids
    process: subprocess.Popen | None = None

    @property
    def base(self):
        return f"http://127.0.0.1:{self.port}"


def furnish(site):
    """People, two projects with their subject, policy and videos, and a project in which jobs run."""
    studio = site.studio
    with studio.writing() as session:
        people = [User(email=f"p{n}@example.com", name=f"Person {n}", admin=True) for n in range(PEOPLE)]
        session.add_all(people)
        session.flush()
        for name, count in (("small", SMALL), ("large", LARGE), ("running", SMALL)):
            project = projects.create(session, access.SYSTEM, name)
            session.add_all(Member(project_id=project.id, user_id=each.id, role=role) for each in people for role in Role)
            session.flush()
            actor = access.load(session, people[0], project.id)[0]
            policies.put(session, actor, project.id, policies.Rules(document=False))
            site.projects[name] = {"project": project.id, **_subject(studio, session, project.id, people[0].id)}
            site.projects[name] |= _videos(studio, session, project.id, people[0].id, count, site.projects[name]["subject"])
        for person in people:
            token = sign_in.begin_session(session, person.id)
            site.cookies.append(f"{SESSION}={sign_cookie(studio.settings, token)}")
    with studio.engine.connect() as connection:
        connection.exec_driver_sql("pragma wal_checkpoint(truncate)")


def _subject(studio, session, project, user):
    still = sorted(STILLS.rglob("*.webp"))[0].read_bytes()
    subject = Subject(project_id=project, name="subject", kind="product", created_by=user)
    session.add(subject)
    session.flush()
    blob = studio.storage.put(session, still, "image/webp")
    image = SubjectImage(subject_id=subject.id, position=0, blob=blob, thumbnail=blob, width=256, height=256)
    right = Right(
        project_id=project, subject_id=subject.id, shown="it", owner="us", basis="own", uses=["internal trial"],
        territories=["WORLD"], valid_from=now(), created_by=user, checked_by=user, checked_at=now(),
    )  # fmt: skip
    session.add_all([image, right])
    session.flush()
    return {"subject": subject.id, "image": image.id}


def _videos(studio, session, project, user, count, subject):
    """Videos of a project in bulk, each of a job of its own: as rows, on one file."""
    blob = studio.storage.put(session, clip(), "video/mp4")
    poster = studio.storage.put(session, sorted(STILLS.rglob("*.webp"))[1].read_bytes(), "image/webp")
    frames = {"frames_looked_at": [0, 4, 8], "verdicts": [], "nearest": [None], "faults": {}, "notes": [], "subjects": [{
        "name": "subject", "similarity": 0.8, "similarity_min": 0.7, "similarity_min_frame": 4, "seen": 1.0, "flash_frames": [],
        "over_time": [0.9, 0.7, 0.8], "boxes": [None, None, None],
    }]}  # fmt: skip
    request = {"prompt": PROMPTS[0], "references": [{"subject": "subject", "path": poster}]}
    begun, last = now(), {}
    for start in range(0, count, BATCH):
        jobs, videos = [], []
        for number in range(start, min(count, start + BATCH)):
            common = {"project_id": project, "user_id": user, "created_at": begun}
            job = {"id": new_id(), **common, "request": request, "requires": {"model": "phantom-mini", "computed_seconds": 1.0},
                   "purpose": "internal trial", "territories": ["WORLD"], "policy_version": 1, "candidates": 1, "steps": 4,
                   "state": JobState.DONE, "estimated_seconds": 1.0, "seconds": 1.0, "ended_at": begun}  # fmt: skip
            last = {"id": new_id(), **common, "job_id": job["id"], "candidate": 0, "seed": number, "blob": blob, "poster": poster,
                    "fps": 8, "num_frames": 9, "width": 64, "height": 64, "details": {}, "score": frames, "passed": True,
                    "state": list(VideoState)[number % 4]}  # fmt: skip
            jobs.append(job)
            videos.append(last)
        session.execute(insert(Job), jobs)
        session.execute(insert(Video), videos)
    return {"video": last["id"], "job": last["job_id"]}


def clip():
    """Nine frames of 64 pixels."""
    target = io.BytesIO()
    encode(target, [np.full((64, 64, 3), 20 * n, np.uint8) for n in range(9)], 8, 18, "veryfast")
    return target.getvalue()


def start(site):
    """`phantom studio` with the worker beside it."""
    log = (site.studio.settings.folder.parent / "studio.log").open("a")
    command = [
        sys.executable,
        "-m",
        "phantom_s2v",
        "studio",
        "--folder",
        str(site.studio.settings.folder),
        "--port",
        str(site.port),
    ]
    site.process = subprocess.Popen(command, stdout=log, stderr=log)
    for _ in range(600):
        try:
            with site.studio.reading() as session:
                if httpx.get(f"{site.base}/health").is_success and session.scalar(select(func.count()).select_from(Worker)):
                    return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit("the studio did not start")


async def get(port, cookie, path, part=""):
    """(status, seconds, bytes) of one request."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Cookie: {cookie}",
        "Connection: close",
        *([part] if part else []),
    ]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    content = await reader.read(-1)
    writer.close()
    return int(content[9:12] or b"0"), time.perf_counter() - begun, len(content)


def choices(ids):
    """Addresses of a project with their weights."""
    return [(f"/projects/{ids['project']}{path.format(**ids)}", weight, path) for path, weight in (MIX | PARTS).items()]


async def person(site, cookie, ends, think, seen, rng):
    """Open one address after the other until the time is over."""
    mine = choices(site.projects[rng.choice(("small", "large", "running"))])
    await asyncio.sleep(rng.uniform(0, think))
    while time.monotonic() < ends:
        address, _, path = rng.choices(mine, [weight for _, weight, _ in mine])[0]
        part = "Range: bytes=0-1023" if path.endswith("/file") else ""
        seen[path].append(await get(site.port, cookie, address, part))
        await asyncio.sleep(rng.expovariate(1 / think))


async def browse(site, people, seconds, think, seed):
    """People for some seconds: what each request took, and the share of a core that this process itself needed."""
    seen, ends, cpu, begun = defaultdict(list), time.monotonic() + seconds, time.process_time(), time.monotonic()
    rngs = [random.Random(seed * 1000 + n) for n in range(people)]
    await asyncio.gather(*(person(site, site.cookies[n], ends, think, seen, rngs[n]) for n in range(people)))
    return seen, (time.process_time() - cpu) / (time.monotonic() - begun)


def queue_jobs(site, count):
    """Jobs as the pages queue them."""
    ids = site.projects["running"]
    with site.studio.writing() as session:
        user = session.scalars(select(User).where(User.email == "p0@example.com")).one()
        actor = access.load(session, user, ids["project"])[0]
        for number in range(count):
            draft = drafts.create(session, actor, ids["project"])
            typed = {"prompt": PROMPTS[0], "subjects": [ids["subject"]], "purpose": "internal trial", "territories": ["WORLD"]}
            drafts.change(draft, {**typed, "num_frames": "9", "size": "64x64", "seed": str(number), "candidates": "1"})
            session.flush()
            ids["job"] = drafts.run(session, actor, draft, secrets.token_hex(4)).id


def p95(values):
    return sorted(values)[int(0.95 * (len(values) - 1))] if values else float("nan")


def cpu_of(process):
    """Seconds of CPU that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def sizes(site, rounds):
    """Pages of the small and the large project, asked for in turn: least milliseconds, since what else the machine does only
    adds, and milliseconds of CPU of the web process, which it hardly touches. The ratio is that of the CPU.
    """
    found = {}
    for path in LISTS:
        times, cpu = {"small": [], "large": []}, {"small": 0.0, "large": 0.0}
        for number in range(rounds + 3):
            for name, each in times.items():
                ids, before = site.projects[name], cpu_of(site.process.pid)
                status, seconds, _ = await get(site.port, site.cookies[0], f"/projects/{ids['project']}{path.format(**ids)}")
                assert status == 200, (path, status)
                if number >= 3:  # after what is only done the first times
                    each.append(seconds)
                    cpu[name] += cpu_of(site.process.pid) - before
        found[path or "overview"] = {
            "least_ms": [round(1000 * min(each), 1) for each in times.values()],
            "cpu_ms": [round(1000 * each / rounds, 1) for each in cpu.values()],
            "ratio": round(cpu["large"] / cpu["small"], 2),
        }
    return found


def open_jobs(site):
    with site.studio.reading() as session:
        return session.scalar(select(func.count()).where(Job.state.in_((JobState.QUEUED, JobState.RUNNING)))) or 0


def run(site, rounds, seconds, think):
    compared = asyncio.run(sizes(site, 40))
    print("\n".join(f"{path}: {each}" for path, each in compared.items()), flush=True)
    took, shares, made, errors = {"idle": [], "alone": [], "load": []}, [], 0, []
    by_page = {"idle": defaultdict(list), "load": defaultdict(list), "alone": defaultdict(list)}
    for number in range(rounds):
        for name, people in (("alone", 1), ("idle", PEOPLE), ("load", PEOPLE)):
            if name == "load":
                queue_jobs(site, 2)
                while open_jobs(site) == 2 and not running(site):
                    time.sleep(0.2)
            before = open_jobs(site)
            seen, share = asyncio.run(browse(site, people, seconds, think if people > 1 else 0.2, number))
            made += before - open_jobs(site) if name == "load" else 0
            shares += [share] if people > 1 else []
            for path, each in seen.items():
                by_page[name][path] += [taken for _, taken, _ in each]
                errors += [(path, status) for status, *_ in each if status not in (200, 206, 303)]
            took[name] += [taken for each in seen.values() for _, taken, _ in each]
            print(
                f"round {number + 1} {name}: {sum(map(len, seen.values()))} requests, generator {share:.0%} of a core", flush=True
            )
            if name == "load":
                wait_for_rest(site)
    for path in by_page["idle"]:
        print(
            f"{path or 'overview':45} idle {1000 * p95(by_page['idle'][path]):6.0f} load {1000 * p95(by_page['load'][path]):6.0f}"
        )
    ratios = {path: each["ratio"] for path, each in compared.items()}
    return {
        "people": PEOPLE, "think_s": think, "requests": {name: len(each) for name, each in took.items()}, "errors": len(errors),
        "error_kinds": sorted({f"{path} {status}" for path, status in errors})[:5], "jobs_made": made,
        **{f"p95_{name}_ms": round(1000 * p95(each), 1) for name, each in took.items()},
        "p95_ratio": round(p95(took["load"]) / p95(took["idle"]), 2), "generator_share": round(max(shares), 2),
        "videos": [SMALL, LARGE], "worst_size_ratio": max(ratios.values()), "size_ratios": ratios,
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def running(site):
    with site.studio.reading() as session:
        return session.scalar(select(func.count()).where(Job.state == JobState.RUNNING))


def wait_for_rest(site):
    ends = time.monotonic() + 600
    while open_jobs(site) and time.monotonic() < ends:
        time.sleep(0.5)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a round")
    parser.add_argument("--think", type=float, default=10.0, help="mean seconds between two addresses of a person")
    parser.add_argument("--port", type=int, default=8798)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        site = Site(Studio(load_settings(Path(place) / "studio", {}, port=asked.port)), asked.port)
        site.studio.start()
        begun = time.monotonic()
        furnish(site)
        print(f"furnished in {time.monotonic() - begun:.0f} s", flush=True)
        try:
            start(site)
            result = run(site, asked.rounds, asked.seconds, asked.think)
        finally:
            if site.process:
                site.process.terminate()
                site.process.wait(90)  # its worker has half a minute to save
    print(json.dumps(result))


if __name__ == "__main__":
    main()
