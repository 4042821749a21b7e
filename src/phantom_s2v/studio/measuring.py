"""The score of a video against its project's KPIs, by `evaluation`, as the gate reads it; and whom a subject was mistaken for."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.footage import watch
from phantom_s2v.evaluation.instruments import Instruments
from phantom_s2v.evaluation.kpi import check_networks, parse_kpis
from phantom_s2v.evaluation.networks import Wanted, instruments
from phantom_s2v.evaluation.run import Asked, score_one
from phantom_s2v.evaluation.score import score
from phantom_s2v.files.reuse import as_json, code_version
from phantom_s2v.media.images import read_image
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.schema import Job, JobSubject, Project, Subject, SubjectImage, Video

OTHERS = 50  # subjects of the project that a region is held against, the newest
TRIED = 3  # frames on which the speed is measured
KEPT = 1000  # vectors of reference images that are remembered


@dataclass(frozen=True)
class _Case:
    """What a video is held against."""

    blob: str
    prompt: str
    kpis: str
    references: list[tuple[str, str]]  # name and image of each subject, in their order
    subjects: dict[str, str]  # id -> image, of all subjects that may be mistaken for one another


@dataclass
class Measures:
    """Networks that measure, loaded when they are first needed."""

    tools: Instruments | None = None
    _known: dict[str, np.ndarray] = field(default_factory=dict)  # image -> its vector

    def speed(self) -> dict[str, float]:
        """Seconds that scoring takes on this machine, measured: for each `frame` that networks look at, with one subject that has
        to be searched for in windows, the dearest case, and for each `pixel` of all frames.
        """
        tools, rng = self._loaded(), np.random.default_rng(0)
        image = rng.integers(0, 255, (64, 64, 3), np.uint8)
        other, large = np.full((TRIED, 64, 64, 3), 200, np.uint8), rng.integers(0, 255, (TRIED, 256, 256, 3), np.uint8)
        other[:, 16:48, 16:48] = 90  # on a plain background something else than the subject
        score(other, [image], ["subject"], "", tools)  # warms up
        begun = time.perf_counter()
        score(other, [image], ["subject"], "", tools)
        scored = time.perf_counter()
        watch(large, [image], tools)
        return {"frame": (scored - begun) / TRIED, "pixel": (time.perf_counter() - scored) / (TRIED * 256**2)}

    def _loaded(self) -> Instruments:
        if self.tools is None:
            self.tools = instruments(Wanted())
        return self.tools

    def of(self, studio: Studio, video_id: str) -> tuple[dict[str, Any], bool | None]:
        """The score of a video as JSON, and whether it meets every KPI; None where it could not be measured.

        KPIs that cannot be read, or are set for another network, are a failed measurement and no failed video.
        """
        with studio.reading() as session:
            case = _case(session, session.get_one(Video, video_id))
        tools = self._loaded()
        made_by = {"code": code_version("studio.measuring"), "networks": tools.hashes, "kpis": case.kpis}
        try:
            kpis = parse_kpis(case.kpis, "the project's KPI file", "the project's KPI file") if case.kpis.strip() else []
            check_networks(kpis, tools)
        except InputError as error:
            return as_json({"not_measured_because": str(error), "made_by": made_by}), None
        named = [(name, studio.storage.path(image)) for name, image in case.references]
        scored, row = score_one(studio.storage.path(case.blob), Asked(named, case.prompt, tools, kpis=kpis))
        if scored.score is None:
            return as_json({"not_measured_because": scored.unreadable, "made_by": made_by}), None
        verdicts = [asdict(verdict) for verdict in scored.verdicts]
        nearest = [self._nearest(studio, case, each, scored.frames, image) for each, (_, image) in
                   zip(row["subjects"], case.references, strict=True)]  # fmt: skip
        limits = asdict(tools.limits)
        row = {**row, "verdicts": verdicts, "nearest": nearest, "limits": limits, "seconds": scored.seconds, "made_by": made_by}
        return as_json(row), all(verdict.met is not False for verdict in scored.verdicts)

    def _nearest(
        self, studio: Studio, case: _Case, subject: dict[str, Any], frames: dict[int, np.ndarray], own: str
    ) -> dict[str, Any] | None:
        """Which other subject of the project the region is most like in the frame where it is least its own; None without one."""
        others = {key: image for key, image in case.subjects.items() if image != own}
        still = frames.get(subject["similarity_min_frame"])
        if not others or still is None:
            return None
        looked = [i for i, value in enumerate(subject["over_time"]) if value == min(subject["over_time"])]
        box = subject["boxes"][looked[0]] if subject["boxes"] else None
        region = self._vector_of(_crop(still, box))
        vectors = np.stack([self._vector(studio, image) for image in others.values()])
        values = vectors @ region
        best = int(values.argmax())
        return {
            "subject": list(others)[best],
            "similarity": round(float(values[best]), 4),
            "own": round(float(self._vector(studio, own) @ region), 4),
            "frame": subject["similarity_min_frame"],
        }

    def _vector(self, studio: Studio, image: str) -> np.ndarray:
        if image not in self._known:
            if len(self._known) >= KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[image] = self._vector_of(read_image(studio.storage.path(image))[0])
        return self._known[image]

    def _vector_of(self, image: np.ndarray) -> np.ndarray:
        return self._loaded().embed([image])[0]


def _case(session: Session, video: Video) -> _Case:
    job = session.get_one(Job, video.job_id)
    references = {each["subject"]: each["path"] for each in reversed(job.request["references"])}
    names = list(dict.fromkeys(each["subject"] for each in job.request["references"]))
    first = (
        select(Subject.id, SubjectImage.blob)
        .join(SubjectImage, (SubjectImage.subject_id == Subject.id) & (SubjectImage.position == 0))
        .where(Subject.project_id == video.project_id, Subject.erased_at.is_(None))
        .order_by(Subject.created_at.desc())
        .limit(OTHERS)
    )
    mine = first.where(Subject.id.in_(select(JobSubject.subject_id).where(JobSubject.job_id == job.id)))
    subjects = {key: blob for query in (first, mine) for key, blob in session.execute(query)}
    prompt = job.request["prompt"]
    kpis = session.get_one(Project, video.project_id).kpis
    return _Case(video.blob, prompt, kpis, [(name, references[name]) for name in names], subjects)


def _crop(still: np.ndarray, box: list[float] | None) -> np.ndarray:
    """The part of a frame in a box of shares, at least two pixels a side."""
    if box is None:
        return still
    height, width = still.shape[:2]
    left, top = int(box[0] * width), int(box[1] * height)
    right, bottom = max(left + 2, round(box[2] * width)), max(top + 2, round(box[3] * height))
    return np.asarray(Image.fromarray(still).crop((left, top, right, bottom)))
