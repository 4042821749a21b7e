"""Jobs and workers for tests of the queue: rows as the pages and the worker process make them."""

from datetime import timedelta

from phantom_s2v.studio import queue
from phantom_s2v.studio.schema import Blob, Job, Video, Worker, now

PLATFORM = {"machine": "x86_64 AVX2", "kernels": "some", "gpu": "none"}


def offers(weights="w1", threads=1, most=2, model="phantom-mini", platform=PLATFORM):
    key = queue.platform_key(model, weights, platform)
    models = {model: {"weights": weights, "key": key}}
    return {"models": models, "platform": platform, "threads": threads, "max_threads": most}


def make_worker(session, at=None, **offered):
    worker = Worker(name="a", device="cpu", offers=offers(**offered), heartbeat_at=at or now())
    session.add(worker)
    session.flush()
    return worker


def make_job(session, project_id, user_id, at=None, seconds=60.0, candidates=1, steps=4, **offered):
    job = Job(
        project_id=project_id, user_id=user_id, request={}, requires=queue.requirement(offers(**offered), "phantom-mini"),
        purpose="test", territories=["DE"], policy_version=1, candidates=candidates, steps=steps, estimated_seconds=seconds,
        created_at=at or now(),
    )  # fmt: skip
    return queue.enqueue(session, job)


def video_of(session, job, candidate=0):
    sha256 = f"{candidate:064x}"
    if session.get(Blob, sha256) is None:
        session.add(Blob(sha256=sha256, size=1, media_type="video/mp4"))
        session.flush()
    return Video(
        project_id=job.project_id, job_id=job.id, user_id=job.user_id, candidate=candidate, seed=candidate, blob=sha256,
        poster=sha256, fps=8, num_frames=9, width=64, height=64, details={},
    )  # fmt: skip


def later(seconds):
    return now() + timedelta(seconds=seconds)


def set_policy(session, studio):
    from phantom_s2v.studio import access, policies
    from phantom_s2v.studio.schema import User

    boss = access.load(session, session.get_one(User, studio.people["boss"]), studio.project_id)[0]
    rules = policies.Rules(purposes=("internal trial",), document=False)
    policies.put(session, boss, studio.project_id, rules)


def add_subject(session, studio, name, image=b"image"):
    """A product with one image and a right that holds everywhere."""
    from phantom_s2v.studio.schema import Right, Subject, SubjectImage

    me = studio.people["maker"]
    subject = Subject(project_id=studio.project_id, name=name, kind="product", created_by=me)
    session.add(subject)
    session.flush()
    blob = studio.storage.put(session, image, "image/png")
    image = SubjectImage(subject_id=subject.id, position=0, blob=blob, thumbnail=blob, width=64, height=64)
    right = Right(
        project_id=studio.project_id, subject_id=subject.id, shown=name, owner="us", basis="own", uses=["internal trial"],
        territories=["WORLD"], valid_from=now(), created_by=me, checked_by=studio.people["reviewer"], checked_at=now(),
    )  # fmt: skip
    session.add_all([image, right])
    session.flush()
    session.expire(subject)
    return subject


def profiled(preset):
    """What a worker writes of phantom-mini for estimates, with a speed of a test."""
    import json
    from dataclasses import asdict

    from phantom_s2v.models.registry import model_folder

    config = json.loads((model_folder("phantom-mini") / "transformer" / "config.json").read_text())
    speed = {"blocks": 1e11, "convolutions": 1e10, "name": "a test"}
    profile = {
        "family": config["_class_name"], "transformer": config, "coder": (10**9, 10**9, 10**8), "decoder_base": 24,
        "sizes": {"transformer": 1e8, "autoencoder": 1e7, "text_encoder": 1e8}, "width": 4, "cache": "none", "one_batch": False,
        "offload": "none", "speed": speed,
    }  # fmt: skip
    return {"preset": asdict(preset), "checks_prompts": False, "profile": profile}


def scored(name, other_id, seen=True):
    """A score as `measuring` writes it: the worst frame is 4, and its region looks like another subject."""
    kpi = {
        "metric": "similarity", "reason": "our brand team", "min": 0.9, "max": None, "network": "", "weights": "",
        "optional": False,
    }  # fmt: skip
    subject = {
        "name": name, "similarity": 0.5 if seen else None, "similarity_min": 0.4 if seen else None, "similarity_min_frame": 4,
        "whole": 0.5, "whole_min": 0.4, "whole_min_frame": 4, "seen": 1.0 if seen else 0.0, "flash_frames": [],
        "face_min_frame": 0, "over_time": [0.6, 0.4, 0.5] if seen else [-1, -1, -1],
        "boxes": [[0.1, 0.1, 0.5, 0.5]] * 3 if seen else [None] * 3,
    }  # fmt: skip
    return {
        "similarity": subject["similarity"], "subjects": [subject], "frames_looked_at": [0, 4, 8], "notes": [],
        "faults": {"other subject": [name]}, "verdicts": [{"kpi": kpi, "value": subject["similarity"], "met": False}],
        "nearest": [{"subject": other_id, "similarity": 0.7, "own": 0.4, "frame": 4}], "limits": {}, "made_by": {},
    }  # fmt: skip
