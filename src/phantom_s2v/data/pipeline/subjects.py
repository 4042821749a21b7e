"""Subjects of a clip at three moments, with boxes, masks and unambiguous names (Phantom-Data, section 4).

A subject is a dict: subject (id), name, has_logo, and views, one for each moment that shows it: instant (number of the still),
frame, box (pixels of the clip), share (the box in shares of the still), image (uint8, the box with a margin), inner (the box
in it, in shares), mask (bool, of the image), cutout (uint8 square on white), surroundings (uint8 [16, 16, 3]).
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from phantom_s2v.data.pipeline.config import Config, Detection, Models, Record
from phantom_s2v.data.synthetic.appearance import nearest_color
from phantom_s2v.geometry import iou
from phantom_s2v.media.images import border

MARGIN = 0.08  # of a box's longer side, around a reference image
EDGE = 0.008  # of a side: what touches it is cut off by it
REFERENCE_HEIGHT = 720  # for which Phantom-Data gives the minimum side of a box
WHITE = 255


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds subjects to clips, and a caption that names them where there was none; drops clips that show none, or confuse two."""
    for record in records:
        if record["kind"] != "clip" or record["drop"]:
            yield record
            continue
        stills: list[np.ndarray] = record["stills"]
        detections = [
            sift(each, still.shape[:2], config)
            for each, still in zip(models.detect(stills, record["phrases"]), stills, strict=True)
        ]
        frames = sorted({round(instant * (record["frames"] - 1)) for instant in config.instants})
        subjects = [_subject(record, track, stills, frames) for track in follow(detections, stills)[: config.max_subjects]]
        rest = {k: v for k, v in record.items() if k not in ("work", "stills")}
        if not subjects:
            yield {**rest, "subjects": [], "drop": "no subject found"}
            continue
        has_unique_names = tell_apart(subjects)
        caption = record["caption"] or (describe(subjects, stills[len(stills) // 2]) if has_unique_names else "")
        yield {**rest, "subjects": subjects, "caption": caption, "drop": "" if has_unique_names else "ambiguous subject names"}


def sift(detections: list[Detection], size: tuple[int, ...], config: Config) -> list[Detection]:
    """Detections that are neither too small nor too large, not cut off by the frame, and not the same as a surer one."""
    height, width = size[:2]
    min_side = config.smallest_side * min(height, width) / REFERENCE_HEIGHT
    kept: list[Detection] = []
    for each in sorted(detections, key=lambda d: (-d.score, d.box)):
        left, top, right, bottom = each.box
        share = (right - left) * (bottom - top) / (height * width)
        whole = left > EDGE * width and top > EDGE * height and right < width * (1 - EDGE) and bottom < height * (1 - EDGE)
        fits = config.smallest_box <= share <= config.largest_box and min(right - left, bottom - top) >= min_side
        if fits and whole and all(iou(each.box, other.box) <= config.overlap for other in kept):
            kept.append(each)
    return kept


def follow(detections: list[list[Detection]], stills: list[np.ndarray]) -> list[list[tuple[int, Detection]]]:
    """Detections of several stills -> tracks of (still, detection), the longest and surest first.

    A detection goes to the track whose last colors and place are likest; one that is unlike all of them begins another.
    """
    tracks: list[list[tuple[int, Detection]]] = []
    for number, each in enumerate(detections):
        free = list(range(len(tracks)))
        for detection in each:
            similarity = {
                t: _similarity(stills[tracks[t][-1][0]], tracks[t][-1][1], stills[number], detection)
                for t in free
                if tracks[t][-1][1].name == detection.name
            }
            best = max(similarity, key=lambda t: similarity[t], default=None)
            if best is not None and similarity[best] > 0.5:
                tracks[best].append((number, detection))
                free.remove(best)
            else:
                tracks.append([(number, detection)])
    return sorted(tracks, key=lambda track: (-len(track), -track[0][1].score, track[0][1].box))


def _similarity(before: np.ndarray, one: Detection, after: np.ndarray, other: Detection) -> float:
    """Overlap of colors, lessened by the distance between the boxes' centers as a share of the image."""
    a, b = (np.array([(d.box[0] + d.box[2]) / 2, (d.box[1] + d.box[3]) / 2]) for d in (one, other))
    distance = float(np.hypot(*((a - b) / (before.shape[1], before.shape[0]))))
    return float(np.minimum(colors(before[one.mask]), colors(after[other.mask])).sum()) - distance


def colors(pixels: np.ndarray) -> np.ndarray:
    """Histogram over 64 colors of uint8 [n, 3], of sum one."""
    coarse = (pixels // 64).astype(int)
    counts = np.bincount(coarse[:, 0] * 16 + coarse[:, 1] * 4 + coarse[:, 2], minlength=64)
    return counts / max(1, len(pixels))


def _subject(record: Record, track: list[tuple[int, Detection]], stills: list[np.ndarray], frames: list[int]) -> dict[str, Any]:
    """A track as a subject; its id is derived from the clip and its position."""
    views = [_view(stills[number], detection, number, frames[number]) for number, detection in track]
    first = track[0][1]
    place = f"{record['clip']} {track[0][0]} {first.box} {first.name}"
    name = first.name or f"{look(stills[track[0][0]][first.mask])} {'person' if first.is_person else 'object'}"
    return {
        "subject": hashlib.sha256(place.encode()).hexdigest()[:32],
        "name": name,
        "has_logo": all(detection.has_logo and not detection.is_person for _, detection in track),
        "has_caption_name": bool(first.name),
        "views": views,
    }


def _view(still: np.ndarray, detection: Detection, number: int, frame: int) -> dict[str, Any]:
    height, width = still.shape[:2]
    left, top, right, bottom = detection.box
    margin = round(MARGIN * max(right - left, bottom - top))
    x0, y0, x1, y1 = max(0, left - margin), max(0, top - margin), min(width, right + margin), min(height, bottom + margin)
    return {
        "instant": number,
        "frame": frame,
        "box": detection.box,
        "share": (left / width, top / height, right / width, bottom / height),
        "image": still[y0:y1, x0:x1].copy(),
        "inner": tuple(float(v) for v in (np.array(detection.box) - [x0, y0, x0, y0]) / ([x1 - x0, y1 - y0] * 2)),
        "mask": detection.mask[y0:y1, x0:x1].copy(),
        "cutout": cutout(still, detection),
        "surroundings": surroundings(still, detection.box),
    }


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


def look(pixels: np.ndarray) -> str:
    """One or two words for the colors of a subject: those that most of its pixels are nearest to."""
    sample = pixels[:: max(1, len(pixels) // 400)]
    names, counts = np.unique([nearest_color(pixel) for pixel in sample], return_counts=True)
    order = np.argsort(-counts)
    second = len(order) > 1 and counts[order[1]] > 0.3 * len(sample)
    return f"{names[order[0]]} and {names[order[1]]}" if second else str(names[order[0]])


def tell_apart(subjects: list[dict[str, Any]]) -> bool:
    """Give subjects of one name their place as well, where the names are ours; whether every name is now another.

    Names out of a caption are left alone: a caption that calls two subjects the same cannot train a model to keep them apart.
    """
    for name in {s["name"] for s in subjects}:
        alike = [s for s in subjects if s["name"] == name]
        if len(alike) == 2 and not any(s["has_caption_name"] for s in alike):
            alike.sort(key=lambda s: s["views"][0]["share"][0])
            for subject, side in zip(alike, ("left", "right"), strict=True):
                subject["name"] = f"{name} on the {side}"
    return len({s["name"] for s in subjects}) == len(subjects)


def describe(subjects: list[dict[str, Any]], still: np.ndarray) -> str:
    """A plain caption: every subject by its name, what it does, and the color of the background."""
    acts = [f"the {s['name']} {_act(s)}" for s in subjects]
    text = f"{', '.join(acts)}, in front of a {nearest_color(np.median(border(still, 2), 0))} background."
    return text[0].upper() + text[1:]


def _act(subject: dict[str, Any]) -> str:
    """What a subject does between its first and its last view."""
    first, last = (np.array(subject["views"][i]["share"]) for i in (0, -1))
    x, y = (first[[2, 3]] + first[[0, 1]]) / 2 - (last[[2, 3]] + last[[0, 1]]) / 2
    growth = np.prod(last[2:] - last[:2]) / np.prod(first[2:] - first[:2])
    if growth > 1.4 or growth < 0.7:
        return "comes closer" if growth > 1 else "moves away"
    if max(abs(x), abs(y)) < 0.04:
        return "stays in place"
    return (
        ("moves to the left" if x > 0 else "moves to the right") if abs(x) > abs(y) else ("moves up" if y > 0 else "moves down")
    )
