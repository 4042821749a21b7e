"""Tracks: which detections of a clip's stills are one subject, by appearance and by optical flow from one still to the other."""

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

from phantom_s2v.data.pipeline.config import Config, Detection
from phantom_s2v.geometry import iou

Track = list[tuple[int, Detection]]  # (still, detection)
POINTS, FEWEST = 80, 6  # that are followed, and that must arrive
STEP = 4  # frames between two looks of the tracker
RETURNS = 1.0  # pixels by which a point may come back beside its start


def follow(
    found: list[list[Detection]], stills: list[np.ndarray], work: np.ndarray, instants: Sequence[float], config: Config
) -> list[Track]:
    """Detections of several stills -> tracks, the longest and surest first.

    `work` are the clip's small frames, which the tracker goes through; the stills stand at `instants`, shares of the clip. Two
    detections are one subject where each is the other's best, so that what is taken for another is so in both directions.
    """
    tracks: list[Track] = []
    places = [round(instant * (len(work) - 1)) for instant in instants]
    for number, each in enumerate(found):
        scores = {
            (t, d): _agreement(track[-1], (number, each[d]), stills, work, places)
            for t, track in enumerate(tracks)
            for d in range(len(each))
            if track[-1][1].name == each[d].name and track[-1][1].is_person == each[d].is_person
        }
        taken: set[int] = set()
        ahead: set[int] = set()
        for (t, d), score in sorted(scores.items(), key=lambda item: (-item[1], item[0])):
            if score > config.followed and t not in ahead and d not in taken:
                tracks[t].append((number, each[d]))
                ahead.add(t)
                taken.add(d)
        tracks += [[(number, each[d])] for d in range(len(each)) if d not in taken]
    return sorted(tracks, key=lambda track: (-len(track), -track[0][1].score, track[0][1].box))


def steady(track: Track, config: Config) -> bool:
    """Whether what is known by pose or motion alone was found often enough, a thing at about one size: ghosts are not."""
    if not any(detection.unnamed for _, detection in track):
        return True
    areas = [float(detection.mask.mean()) for _, detection in track]
    return len(track) >= config.moments and (track[0][1].is_person or max(areas) <= config.growth * min(areas))


def _agreement(
    one: tuple[int, Detection], other: tuple[int, Detection], stills: list[np.ndarray], work: np.ndarray, places: list[int]
) -> float:
    """How surely two detections are of one subject, 0..1: they look alike and are near, or the tracker leads to and fro."""
    alike = _similarity(stills[one[0]], one[1], stills[other[0]], other[1])
    if alike > 0.8 or alike < 0 or not len(work):
        return alike
    overlaps = []
    for (start, first), (end, second) in ((one, other), (other, one)):
        box = carried(first, stills[start].shape, work, places[start], places[end])
        overlaps.append(iou(box, second.box) if box else 0.0)
    return max(alike, min(overlaps))


def carried(
    detection: Detection, shape: tuple[int, ...], work: np.ndarray, start: int, end: int
) -> tuple[int, int, int, int] | None:
    """The box of a detection in a still of `shape` at frame `start`, moved to `end` by Lucas-Kanade; None where it is lost."""
    small = cv2.resize(detection.mask.astype(np.uint8), (work.shape[2], work.shape[1]), interpolation=cv2.INTER_NEAREST)
    now = cv2.cvtColor(work[start], cv2.COLOR_RGB2GRAY)
    points = cv2.goodFeaturesToTrack(now, POINTS, 0.01, 2, mask=small)
    if points is None:
        return None
    began, direction = points.copy(), 1 if end >= start else -1
    stops = [*range(start, end, direction * STEP), end]
    for _, stop in pairwise(stops):
        then = cv2.cvtColor(work[stop], cv2.COLOR_RGB2GRAY)
        moved, ok, _ = cv2.calcOpticalFlowPyrLK(now, then, points, None)  # type: ignore[call-overload]
        back, ok_back, _ = cv2.calcOpticalFlowPyrLK(then, now, moved, None)  # type: ignore[call-overload]
        kept = (ok[:, 0] > 0) & (ok_back[:, 0] > 0) & (np.linalg.norm(back - points, axis=-1)[:, 0] < RETURNS)
        points, began, now = moved[kept], began[kept], then
        if len(points) < FEWEST:
            return None
    before, after = np.median(began, 0)[0], np.median(points, 0)[0]
    spread = [float(np.median(np.linalg.norm(p[:, 0] - c, axis=-1))) for p, c in ((began, before), (points, after))]
    scale = spread[1] / max(1e-6, spread[0])
    to_still = np.array([shape[1] / work.shape[2], shape[0] / work.shape[1]])
    corners = (np.reshape(detection.box, (2, 2)) - before * to_still) * scale + after * to_still
    left, top, right, bottom = corners.round().astype(int).ravel().tolist()
    return left, top, max(left + 1, right), max(top + 1, bottom)


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
