"""Subjects of a clip at three moments, with boxes, masks and unambiguous names (Phantom-Data, section 4).

A subject is a dict: subject (id), name, is_person, has_logo, and views, one for each moment that shows it: instant (number of the
still), frame, box (pixels of the clip), share (the box in shares of the still), image (uint8, the box with a margin), inner
(the box in it, in shares), mask (bool, of the image), cutout (uint8 square on white), surroundings (uint8 [16, 16, 3]).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from phantom_s2v.data.pipeline import names
from phantom_s2v.data.pipeline.config import Config, Detection, Models, Record
from phantom_s2v.data.pipeline.frames import between
from phantom_s2v.data.pipeline.stills import moments
from phantom_s2v.data.pipeline.tracks import follow, steady
from phantom_s2v.geometry import iou

MARGIN = 0.08  # of a box's longer side, around a reference image
REFERENCE_HEIGHT = 720  # for which Phantom-Data gives the minimum side of a box
HEAD = 0.4  # of a person's box from above, in which the head is
WHITE = 255
AMBIGUOUS, UNNAMED = "ambiguous subject names", "not named by the caption"
Passed = tuple[Detection, str]  # what is no subject, and why


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds subjects to clips, and a caption that names them where there was none; drops clips that show none, or confuse two."""
    for record in records:
        if record["kind"] != "clip" or record["drop"]:
            yield record
            continue
        detections = _seen(record, config, models)
        subjects, passed = _found(record, detections, config, models)
        named = names.name(subjects, record["phrases"], record["caption"])
        has_unique_names = names.tell_apart(named)
        caption = record["caption"] or (
            names.describe(named, record["stills"][len(record["stills"]) // 2]) if has_unique_names else ""
        )
        if not subjects:
            seen = Counter(each["reason"] for each in passed).most_common(1)
            nothing = "nothing was found" if record["phrases"] or not models.follow else "there is no caption that names one"
            drop = f"no subject: {seen[0][0] if seen else nothing}"
        else:
            drop = "the caption does not name its subjects" if not named else "" if has_unique_names else AMBIGUOUS
        ids = {each["subject"] for each in named}
        passed += _unnamed([each for each in subjects if each["subject"] not in ids], UNNAMED)
        passed += [] if has_unique_names else _unnamed(named, AMBIGUOUS)
        rest = {k: v for k, v in record.items() if k != "work"}
        everyone = [{view["instant"] for view in subject["views"]} for subject in subjects]
        covered = [
            _union(each, still.shape) if all(number in instants for instants in everyone) else None
            for number, (each, still) in enumerate(zip(detections, record["stills"], strict=True))
        ]
        yield {**rest, "subjects": named, "caption": caption, "passed_over": passed, "covered": covered, "drop": drop}


def _unnamed(subjects: list[dict[str, Any]], reason: str) -> list[Record]:
    """Views of subjects that have no name of their own, as what is passed over."""
    return [
        {"instant": view["instant"], "box": view["share"], "what": each["name"], "reason": reason}
        for each in subjects
        for view in each["views"]
    ]


def _union(detections: list[Detection], shape: tuple[int, ...]) -> np.ndarray:
    """What detections cover, bool [h, w]."""
    covered = np.zeros(shape[:2], bool)
    for each in detections:
        covered |= each.mask
    return covered


def _found(
    record: Record, seen: list[list[Detection]], config: Config, models: Models
) -> tuple[list[dict[str, Any]], list[Record]]:
    """Subjects of a clip out of what was `seen` in its stills, and what is none: instant, box in shares, what, reason."""
    stills: list[np.ndarray] = record["stills"]
    is_judged = models.whole is not None
    sifted = [sift(each, still.shape[:2], config, is_judged) for each, still in zip(seen, stills, strict=True)]
    if models.whole:
        sifted = _judged(sifted, stills, models.whole)
    found = [kept for kept, _ in sifted]
    passed = [_passed(n, stills[n], *one) for n, (_, dropped) in enumerate(sifted) for one in dropped]
    places = moments(record["frames"], config)
    frames = [round(place * (record["frames"] - 1)) for place in places]
    tracks = follow(found, stills, record["work"], places, config)
    for track in tracks:
        if not steady(track, config):
            passed += [_passed(number, stills[number], each, "is not found again at another moment") for number, each in track]
    tracks = [track for track in tracks if steady(track, config)]
    more = [one for track in tracks[config.max_subjects :] for one in track]
    passed += [_passed(number, stills[number], each, "is one more than max_subjects") for number, each in more]
    return [_subject(record, track, stills, frames) for track in tracks[: config.max_subjects]], passed


def _seen(record: Record, config: Config, models: Models) -> list[list[Detection]]:
    """What is seen in each still, by the networks that follow subjects where there are any."""
    stills, phrases = record["stills"], record["phrases"]
    if models.follow:
        return models.follow(stills, phrases, between(record, stills, config.instants, config.longest_side))
    return models.detect(stills, phrases, record["around"])


def _judged(
    sifted: list[tuple[list[Detection], list[Passed]]], stills: list[np.ndarray], whole: Callable[[list[np.ndarray]], list[bool]]
) -> list[tuple[list[Detection], list[Passed]]]:
    """Detections of each still that a model sees whole, and those that are dropped; it is asked of all stills together."""
    said = iter(whole([_part(still, d.box) for (kept, _), still in zip(sifted, stills, strict=True) for d in kept]))
    looked_at = [([(d, next(said)) for d in kept], dropped) for kept, dropped in sifted]
    return [
        (
            [d for d, holds in each if holds],
            [*dropped, *((d, "the model sees no whole subject") for d, holds in each if not holds)],
        )
        for each, dropped in looked_at
    ]


def _passed(number: int, still: np.ndarray, detection: Detection, reason: str) -> Record:
    what = detection.name or ("person" if detection.is_person else "object")
    return {"instant": number, "box": _share(detection.box, still.shape), "what": what, "reason": reason}


def sift(
    detections: list[Detection], size: tuple[int, ...], config: Config, is_judged: bool = False
) -> tuple[list[Detection], list[Passed]]:
    """Detections that are subjects, the surest first, one of those that are the same; and those that are none, and why. Where
    a model judges whether they are whole (`is_judged`), the frame's edge does not.
    """
    kept: list[Detection] = []
    dropped: list[Passed] = []
    for each in sorted(detections, key=lambda d: (-d.score, d.box)):
        if any(iou(each.box, other.box) > config.overlap for other in kept):
            continue
        reason = _lacks(each, size[0], size[1], config) or ("" if is_judged else _is_cut(each, size[0], size[1], config))
        if reason:
            dropped.append((each, reason))
        else:
            kept.append(each)
    return kept, dropped


def _lacks(each: Detection, height: int, width: int, config: Config) -> str:
    """Why a detection is no subject, whole or not; empty where it is one."""
    if each.unsure:
        return each.unsure
    left, top, right, bottom = each.box
    share = (right - left) * (bottom - top) / (height * width)
    if (
        share < config.smallest_box
        or min(right - left, bottom - top) < config.smallest_side * min(height, width) / REFERENCE_HEIGHT
    ):
        return "too small"
    if each.is_person:
        return "a person that is not sure" if each.score < config.person else ""
    return "too large" if share > config.largest_box else ""


def _is_cut(each: Detection, height: int, width: int, config: Config) -> str:
    """Why a detection is not whole; empty where it is. People may be cut below their shoulders, things may not be cut."""
    if not each.is_person:
        return "cut by the frame" if _on_edge(each, height, width, config.edge) > config.cut else ""
    if each.head < 1:
        return "a person whose head is cut"
    return "a person whose shoulders are cut" if each.shoulders > config.shoulders else ""


def _on_edge(each: Detection, height: int, width: int, edge: float) -> float:
    """Share of the outline of a thing's box along which its mask reaches the frame's edge, or the share `edge` of a side next
    to it.
    """
    left, top, right, bottom = each.box
    wide, tall = max(1, round(edge * width)), max(1, round(edge * height))
    bands = (each.mask[:tall].any(0), each.mask[-tall:].any(0), each.mask[:, :wide].any(1), each.mask[:, -wide:].any(1))
    return float(sum(band.sum() for band in bands)) / (2 * (right - left + bottom - top))


def _subject(record: Record, track: list[tuple[int, Detection]], stills: list[np.ndarray], frames: list[int]) -> dict[str, Any]:
    """A track as a subject; its id is derived from the clip and its position."""
    views = [_view(stills[number], detection, number, frames[number]) for number, detection in track]
    first = track[0][1]
    place = f"{record['clip']} {track[0][0]} {first.box} {first.name}"
    shades = names.look(stills[track[0][0]][_clothes(first) if first.is_person else first.mask])
    return {
        "subject": hashlib.sha256(place.encode()).hexdigest()[:32],
        "name": first.name or (f"person in {shades}" if first.is_person else f"{shades} object"),
        "is_person": first.is_person,
        "has_logo": all(detection.has_logo and not detection.is_person for _, detection in track),
        "has_caption_name": bool(first.name),
        "views": views,
    }


def _clothes(person: Detection) -> np.ndarray:
    """The lower part of a person's mask, without the head."""
    _, top, _, bottom = person.box
    mask = person.mask.copy()
    mask[: top + round(HEAD * (bottom - top))] = False
    return mask if mask.any() else person.mask


def _view(still: np.ndarray, detection: Detection, number: int, frame: int) -> dict[str, Any]:
    height, width = still.shape[:2]
    left, top, right, bottom = detection.box
    margin = round(MARGIN * max(right - left, bottom - top))
    x0, y0, x1, y1 = max(0, left - margin), max(0, top - margin), min(width, right + margin), min(height, bottom + margin)
    return {
        "instant": number,
        "frame": frame,
        "box": detection.box,
        "share": _share(detection.box, still.shape),
        "image": still[y0:y1, x0:x1].copy(),
        "inner": tuple(float(v) for v in (np.array(detection.box) - [x0, y0, x0, y0]) / ([x1 - x0, y1 - y0] * 2)),
        "mask": detection.mask[y0:y1, x0:x1].copy(),
        "cutout": cutout(still, detection),
        "surroundings": surroundings(still, detection.box),
    }


def _share(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    return box[0] / shape[1], box[1] / shape[0], box[2] / shape[1], box[3] / shape[0]


def _part(still: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The box with a margin."""
    left, top, right, bottom = box
    margin = round(MARGIN * max(right - left, bottom - top))
    return still[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]


def cutout(still: np.ndarray, detection: Detection) -> np.ndarray:
    """The subject on a white square that it fills, uint8 [s, s, 3]."""
    left, top, right, bottom = detection.box
    part = np.where(detection.mask[top:bottom, left:right, None], still[top:bottom, left:right], WHITE)
    side = max(part.shape[:2])
    square = np.full((side, side, 3), WHITE, np.uint8)
    y, x = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    square[y : y + part.shape[0], x : x + part.shape[1]] = part
    return square


def surroundings(still: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The box with as much again around it, uint8 [16, 16, 3]; pixels outside the frame repeat its border."""
    left, top, right, bottom = box
    half = 0.9 * max(right - left, bottom - top)
    y, x = (top + bottom) / 2, (left + right) / 2
    corners = np.array([[x - half, y - half], [x + half, y - half], [x - half, y + half]], np.float32)
    wide = np.array([[0, 0], [64, 0], [0, 64]], np.float32)
    patch = cv2.warpAffine(still, cv2.getAffineTransform(corners, wide), (64, 64), borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(patch, (16, 16), interpolation=cv2.INTER_AREA)
