"""The gate between a candidate and its review: which KPIs it misses, where that shows, and the written reason that overrides it.

All values come from the score that a worker wrote (`measuring`); nothing is measured here, and no torch is loaded.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.evaluation.metrics.table import METRICS
from phantom_s2v.media.charts import Axis, Bound, Chart, curve
from phantom_s2v.studio import audit
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.problems import N_, Conflict, Forbidden
from phantom_s2v.studio.schema import Job, Role, Subject, Video, VideoState
from phantom_s2v.studio.texts import text

WORST = 4  # frames of a subject that are shown
FRAME_OF = {  # metric -> the field that says in which frame it is at its worst
    "similarity": "similarity_min_frame",
    "similarity_min": "similarity_min_frame",
    "whole": "whole_min_frame",
    "whole_min": "whole_min_frame",
    "face": "face_min_frame",
    "face_min": "face_min_frame",
}
WORDS = {  # metrics of KPIs in people's words; others stand under their own names
    "similarity": N_("similarity to the reference"),
    "similarity_min": N_("lowest similarity to the reference"),
    "whole": N_("similarity of whole frames"),
    "whole_min": N_("lowest similarity of whole frames"),
    "seen": N_("share of frames that show the subject"),
    "face": N_("similarity of the face"),
    "face_min": N_("lowest similarity of the face"),
    "clothes": N_("similarity of the clothes"),
    "doubled": N_("share of frames that show the subject twice"),
    "copy_paste": N_("copied from the reference"),
    "flash": N_("the reference flashes up"),
    "swapped": N_("share of frames with subjects in each other's place"),
    "frozen": N_("share of frames without motion"),
    "flicker": N_("flicker"),
    "blur": N_("blur"),
    "text": N_("agreement with the prompt"),
}
NOTES = (  # what a measurement adds (evaluation/score.py, footage.py), as people read it
    N_("similarity is of the frame windows that are most similar to the references%(some)s: nothing can be segmented"),
    N_("the reference of %(name)s shows a face and no frame does: similarity decides whether it is %(same)s"),
    N_("no subject was segmented in the reference of %(name)s; whole frames are compared"),
    N_(
        "other shots show faces that are not %(name)s's: they count as other people, and similarity of %(same)s's face is of "
        "the rest"
    ),
    N_("motion_fb is of %(count)s evenly spaced pairs of frames"),
)
Words = tuple[str, ...]
IN_CHARTS: Words = (N_("time (s)"), N_("similarity"), N_("Similarity over time:"), N_("KPI"), N_("KPI, worst frame"))
Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the frame


@dataclass(frozen=True)
class Failure:
    """A KPI that is missed: by how much, and where one sees it."""

    metric: str
    value: float | None  # None: it could not be measured
    low: float | None
    high: float | None
    reason: str  # why the threshold is what it is, from the KPI file
    subject: str  # "" where it is of the whole video
    frame: int | None
    box: Box | None
    nearest: str  # the other subject of the project that the region is most like; "" where none was compared
    nearest_similarity: float | None
    own_similarity: float | None


@dataclass(frozen=True)
class Shown:
    """A subject in a video: its reference, the frames in which it is least itself, and its similarity over time."""

    name: str
    reference: str  # blob
    similarity: float | None
    seen: float
    frames: list[tuple[int, float | None, Box | None]]
    chart: Chart | None


def verdict(video: Video) -> str:
    """passed, failed, overridden, not measured, or waiting for its measurement."""
    if video.score is None:
        return "waiting"
    if video.override_by:
        return "overridden"
    return {True: "passed", False: "failed", None: "not measured"}[video.passed]


def check_submittable(video: Video) -> None:
    """Raise Conflict for a video that must not go to review: one that fails the gate and that nobody has overridden."""
    found = verdict(video)
    if found == "waiting":
        raise Conflict("This video is still being measured.")
    if found in ("failed", "not measured"):
        raise Conflict("This video fails the project's KPIs. A reviewer can override that with a written reason.")
    if video.marked:
        raise Conflict("A right behind this video was revoked or has expired.")


def override(session: Session, actor: Actor, video: Video, reason: str) -> None:
    """Let a video pass that fails, as a reviewer, with the reason in writing. Raises Problem."""
    actor.must(video.project_id, Role.REVIEWER)
    if actor.id == video.user_id:
        raise Forbidden("Nobody overrides the gate for their own video.")
    if verdict(video) not in ("failed", "not measured"):
        raise Conflict("Only a video that fails the KPIs can be let pass.")
    if video.state not in (VideoState.MADE, VideoState.SENT_BACK):
        raise Conflict("This video is already in review.")
    video.override_by, video.override_reason = actor.must_be_person(), text(reason, "reason")
    audit.append(session, actor.id, "gate overridden", video.id, kpis=[each["kpi"]["metric"] for each in missed(video)])


def missed(video: Video) -> list[dict[str, Any]]:
    """The verdicts on the KPIs that are missed."""
    return [each for each in (video.score or {}).get("verdicts", []) if each["met"] is False]


def failures(session: Session, video: Video) -> list[Failure]:
    """Every KPI that is missed, with frame, region and the nearest other subject."""
    score, found = video.score or {}, []
    nearest = score.get("nearest", [])
    keys = {each["subject"] for each in nearest if each}
    named = select(Subject.id, Subject.name).where(Subject.id.in_(keys))
    names = dict(session.execute(named).all()) if keys else {}
    for each in missed(video):
        kpi, metric = each["kpi"], METRICS[each["kpi"]["metric"]]
        subject, other, frame, box = None, None, None, None
        if metric.of_subjects and score["subjects"]:
            index = _worst(score["subjects"], metric.name, metric.better)
            subject, other = score["subjects"][index], nearest[index]
            frame = _frame(subject, metric.name, score["frames_looked_at"])
            box = _box(subject, frame, score["frames_looked_at"])
        found.append(
            Failure(
                metric.name, each["value"], kpi["min"], kpi["max"], kpi["reason"], subject["name"] if subject else "", frame, box,
                names.get(other["subject"], "") if other else "", other["similarity"] if other else None,
                other["own"] if other else None,
            )
        )  # fmt: skip
    return found


def _worst(subjects: list[dict[str, Any]], metric: str, better: str) -> int:
    """Which subject decides: one without a value, else the one whose value is the worst."""
    values = [each[metric] for each in subjects]
    if None in values:
        return values.index(None)
    return values.index(max(values) if better == "less" else min(values))


def _frame(subject: dict[str, Any], metric: str, looked: list[int]) -> int | None:
    """The frame in which a metric of a subject is at its worst."""
    if metric == "seen" or subject["similarity"] is None:
        return next((frame for frame, value in zip(looked, subject["over_time"], strict=True) if value <= -1), None)
    if metric in ("flash", "copy_paste") and subject["flash_frames"]:
        return subject["flash_frames"][0]
    return subject[FRAME_OF[metric]] if metric in FRAME_OF else None


def _box(subject: dict[str, Any], frame: int | None, looked: list[int]) -> Box | None:
    if frame not in looked or not subject["boxes"]:
        return None
    box = subject["boxes"][looked.index(frame)]
    return tuple(box) if box else None


def subjects(session: Session, video: Video, words: Words = IN_CHARTS) -> list[Shown]:
    """What the page shows of each subject; `words` name the chart's axes, stand before the subject's name in its
    title, and at the thresholds of the mean and of the minimum.
    """
    score = video.score or {}
    job = session.get_one(Job, video.job_id)
    images = {each["subject"]: each["path"] for each in reversed(job.request["references"])}
    return [_shown(each, score, images.get(each["name"], ""), video.fps, words) for each in score.get("subjects", [])]


def _shown(subject: dict[str, Any], score: dict[str, Any], reference: str, fps: int, words: Words) -> Shown:
    looked, values = score["frames_looked_at"], subject["over_time"]
    order = sorted(range(len(looked)), key=lambda i: values[i])[:WORST]
    frames = [(looked[i], None if values[i] <= -1 else values[i], _box(subject, looked[i], looked)) for i in order]
    return Shown(subject["name"], reference, subject["similarity"], subject["seen"], frames, _chart(subject, score, fps, words))


def _chart(subject: dict[str, Any], score: dict[str, Any], fps: int, words: Words) -> Chart | None:
    """Similarity over time, with the KPIs that hold for it."""
    looked = score["frames_looked_at"]
    values = [None if value <= -1 else value for value in subject["over_time"]]
    if len(values) < 2:
        return None
    points = [
        (frame / fps, value, f"{frame}: {value:.3f}" if value is not None else str(frame))
        for frame, value in zip(looked, values, strict=True)
    ]
    bounds = [
        Bound(each["kpi"]["min"], f"{words[3] if each['kpi']['metric'] == 'similarity' else words[4]} {each['kpi']['min']:g}")
        for each in score["verdicts"]
        if each["kpi"]["metric"] in ("similarity", "similarity_min") and each["kpi"]["min"] is not None
    ]
    low = min([0.0, *(value for value in values if value is not None)])
    x = Axis(words[0], looked[0] / fps, looked[-1] / fps)
    return curve(f"{words[2]} {subject['name']}".strip(), x, Axis(words[1], low, 1.0), points, bounds)
