"""Rows of a studio that tests begin with: a subject with a right, and a made video of it."""

import io
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from PIL import Image

import phantom_s2v
from phantom_s2v.media.videos import encode
from phantom_s2v.studio.policies import TEMPLATES
from phantom_s2v.studio.schema import (
    Job,
    JobState,
    JobSubject,
    Member,
    Policy,
    Project,
    Right,
    Role,
    Subject,
    SubjectImage,
    Video,
    now,
)
from phantom_s2v.studio.territories import WORLD

CLIPS = Path(phantom_s2v.__file__).parent / "assets" / "held-out" / "clips"
FPS = 12


def frames_of(name: str, seed: int = 0, count: int = 25, size: tuple[int, int] = (96, 128)) -> list[np.ndarray]:
    """A packaged emoji clip that moves over one color, uint8 [H, W, 3]."""
    rng, (height, width) = np.random.default_rng(seed), size
    color, (down, across) = tuple(int(c) for c in rng.integers(40, 220, 3)), rng.integers(-24, 24, 2)
    side, frames = int(rng.integers(height // 2, height * 3 // 4)), []
    with Image.open(CLIPS / f"{name}.webp") as clip:
        for number in range(count):
            clip.seek(number * clip.n_frames // count)
            drawn = clip.convert("RGBA").resize((side, side))
            canvas, gone = Image.new("RGB", (width, height), color), number / count - 0.5
            canvas.paste(drawn, (int((width - side) / 2 + across * gone), int((height - side) / 2 + down * gone)), drawn)
            frames.append(np.asarray(canvas))
    return frames


def mp4(frames: list[np.ndarray], crf: int = 18, fps: float = FPS) -> bytes:
    """Frames as H.264."""
    target = io.BytesIO()
    encode(target, frames, fps, crf, "veryfast")
    return target.getvalue()


def add_subject(studio, person: str = "maker", kind: str = "product", **right) -> Subject:
    """A subject with one image and a right that is valid."""
    with studio.writing() as session:
        sample = io.BytesIO()
        Image.new("RGB", (64, 64), tuple(np.random.default_rng().integers(0, 255, 3))).save(sample, "PNG")
        blob = studio.storage.put(session, sample.getvalue(), "image/png")
        subject = Subject(project_id=studio.project_id, name="Red cup", kind=kind, created_by=studio.people[person])
        session.add(subject)
        session.flush()
        session.add(SubjectImage(subject_id=subject.id, position=0, blob=blob, thumbnail=blob, width=64, height=64))
        values = {"valid_from": now() - timedelta(days=1), "checked_by": studio.people["admin"], "checked_at": now(), **right}
        row = Right(
            project_id=studio.project_id, subject_id=subject.id, shown="the cup", owner="A company", basis="own",
            uses=["website"], territories=[WORLD], created_by=studio.people[person], **values,
        )  # fmt: skip
        session.add(row)
        session.flush()
        session.refresh(subject)
        session.expunge_all()
    return subject


def add_video(studio, content: bytes, person: str = "maker", subjects: list[Subject] = (), **values) -> str:
    """The id of a made video with its job; `values` are of its row."""
    with studio.writing() as session:
        user, now_ = studio.people[person], now()
        references = [{"path": image.blob, "subject": each.name} for each in subjects for image in each.images]
        job = Job(
            project_id=studio.project_id, user_id=user, request={"prompt": "The cup moves.", "references": references},
            requires={}, purpose="website", territories=[WORLD], policy_version=1, candidates=1, state=JobState.DONE, steps=4,
            estimated_seconds=1.0, ended_at=now_,
        )  # fmt: skip
        session.add(job)
        session.flush()
        session.add_all(JobSubject(job_id=job.id, subject_id=each.id, right_id=each.rights[0].id) for each in subjects)
        blob = studio.storage.put(session, content, "video/mp4")
        poster = io.BytesIO()
        Image.new("RGB", (128, 96), "teal").save(poster, "JPEG")
        made = {
            "candidate": 0, "seed": 0, "fps": FPS, "num_frames": 25, "width": 128, "height": 96, "passed": True,
            "details": {"model": "phantom-mini", "request": {"prompt": "The cup moves."}}, "score": None,
        }  # fmt: skip
        video = Video(
            project_id=studio.project_id, job_id=job.id, user_id=user, blob=blob,
            poster=studio.storage.put(session, poster.getvalue(), "image/jpeg"), **{**made, **values},
        )  # fmt: skip
        session.add(video)
        session.flush()
        return video.id


def set_policy(studio, **rules) -> int:
    """A new version of the project's policy; its number."""
    with studio.writing() as session:
        project = session.get_one(Project, studio.project_id)
        made = replace(TEMPLATES["standard"], document=False, **rules)
        project.policy_version += 1
        session.add(
            Policy(project_id=project.id, version=project.policy_version, rules=asdict(made), created_by=studio.people["admin"])
        )
        return project.policy_version


def give_role(studio, person: str, role: Role) -> None:
    """One more role in the project."""
    with studio.writing() as session:
        session.merge(Member(project_id=studio.project_id, user_id=studio.people[person], role=role))
