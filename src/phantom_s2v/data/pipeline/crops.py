"""Crops: how good each view of a subject is as a reference image, and which are none.

By what the packaged code measures of the subject's pixels (media/quality.py), and by LAION's aesthetic score where its network is
given. A score that cannot be measured drops nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.data.pipeline.index import jpeg
from phantom_s2v.media.quality import blur, clipped, sharpness

Scores = dict[str, float | None]


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds scores to the views of subjects, and crops to clips: how many there were and why some went. Drops views that are no
    references, subjects without any view, and clips without any subject.
    """
    for record in records:
        if record["kind"] == "clip" and not record["drop"]:
            record = _judged(record, config, models)
        yield record


def _judged(record: Record, config: Config, models: Models) -> Record:
    kept, passed, lost, words = [], list[Record](), list[np.ndarray](), list[str]()
    for subject in record["subjects"]:
        views = []
        for view, scores in zip(subject["views"], score(subject["views"], models), strict=True):
            reason = fault(scores, config)
            if reason:
                passed.append({"instant": view["instant"], "box": view["share"], "what": subject["name"], "reason": reason})
                lost.append(view["image"])
                words.append(f"{subject['name']}: {', '.join(measured(scores))}")
            else:
                views.append({**view, "scores": scores})
        kept += [{**subject, "views": views}] if views else []
    reasons = Counter(each["reason"] for each in passed)
    facts = {"seen": sum(len(s["views"]) for s in record["subjects"]), "dropped": dict(reasons)}
    if lost:  # a report shows one
        facts |= {"reason": passed[0]["reason"], "words": words[0]}
        record = {**record, "still": jpeg(lost[0])}
    drop = "" if kept else f"no subject: {reasons.most_common(1)[0][0]}"
    return {**record, "subjects": kept, "passed_over": passed + record["passed_over"], "crops": facts, "drop": drop}


def score(views: list[dict[str, Any]], models: Models) -> list[Scores]:
    """Of each view: side (shorter side of the subject's box, pixels), sharpness, blur, clipped, and aesthetic."""
    beauty = models.aesthetic([view["image"] for view in views]) if models.aesthetic else [None] * len(views)
    found = []
    for view, value in zip(views, beauty, strict=True):
        image, mask, (left, top, right, bottom) = np.ascontiguousarray(view["image"]), view["mask"], view["box"]
        scores: Scores = {"side": float(min(right - left, bottom - top)), "sharpness": sharpness(image)}
        scores |= {"blur": blur(image, mask), "clipped": clipped(image, mask)}
        found.append({**scores, "aesthetic": None if value is None else float(value)})
    return found


def fault(scores: Scores, config: Config) -> str:
    """The first reason why a view with these scores is no reference image, "" where there is none."""
    soft, beauty = scores["blur"], scores["aesthetic"]
    checks = (
        ("a reference image that is too small", (scores["side"] or 0) < config.reference_side),
        ("a blurred reference image", soft is not None and soft > config.reference_blur),
        ("a reference image that is too dark or too bright", (scores["clipped"] or 0) > config.reference_clipped),
        ("a reference image of a low aesthetic score", beauty is not None and beauty < config.reference_aesthetic),
    )
    return next((reason for reason, holds in checks if holds), "")


def measured(scores: Scores) -> list[str]:
    """Scores in words, those that were measured."""
    return [f"{name} {value:.3g}" for name, value in scores.items() if value is not None]
