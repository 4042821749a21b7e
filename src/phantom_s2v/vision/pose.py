"""People by their pose, each with a mask: BlazePose's detector and landmarks (MediaPipe, Apache-2.0; arXiv 2006.10204).

The detector knows people whose head shows, seen from the front and from behind; the landmarks say which parts lie in the image.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from phantom_s2v.geometry import squares
from phantom_s2v.vision.fetched import run_lite

SIDE, CROP = 224, 256  # pixels that the two networks see
GRIDS = ((28, 2), (14, 2), (7, 6))  # cells a side, anchors of each
ROOM = 1.25  # side of the crop, of twice the distance from the hips to the end of the body
THREAD = 0.03  # of the square root of a mask's area: what is thinner holds nothing together
MASK = 0.5  # least chance that a pixel is the person's
ONE = 0.6  # of the width of the shoulders: heads that are nearer to each other are one person's
HEAD = (0, 2, 5, 7, 8)  # landmarks: nose, eyes, ears
SHOULDERS = (11, 12)


@dataclass(frozen=True)
class Pose:
    """A person: box (left, top, right, bottom) and 33 landmarks (x, y) in pixels, mask bool [H, W], scores 0..1."""

    box: tuple[int, int, int, int]
    mask: np.ndarray
    points: np.ndarray
    visible: np.ndarray  # [33]: that a landmark lies in the crop and is not covered
    found: float  # by the detector
    sure: float  # by the network of landmarks


def people(image: np.ndarray, min_score: float, min_confidence: float) -> list[Pose]:
    """People in uint8 [H, W, 3], the surest first; one is one, however often the detector finds it."""
    rows, columns = image.shape[:2]
    kept: list[Pose] = []
    for score, hips, end in _candidates(image, min_score):
        x, y = int(np.clip(hips[0], 0, columns - 1)), int(np.clip(hips[1], 0, rows - 1))
        if any(pose.mask[y, x] and _near(pose, hips, end) for pose in kept):
            continue  # so the second network need not look
        pose = _pose(image, score, hips, end)
        if pose and pose.sure >= min_confidence and not any(_one(pose, other) for other in kept):
            kept.append(pose)
    return kept


def width(points: np.ndarray) -> float:
    """Width of a person's shoulders in pixels; of one who is seen from the side, out of the length of the trunk."""
    across = np.linalg.norm(points[11] - points[12])
    down = np.linalg.norm(points[[11, 12]].mean(0) - points[[23, 24]].mean(0))
    return max(1.0, float(across), 0.6 * float(down))


def _one(pose: Pose, other: Pose) -> bool:
    """Whether two poses are one person's."""
    apart = np.linalg.norm(pose.points[list(HEAD)].mean(0) - other.points[list(HEAD)].mean(0))
    return float(apart) < ONE * max(width(pose.points), width(other.points))


def _near(pose: Pose, hips: np.ndarray, end: np.ndarray) -> bool:
    """Whether a candidate stands in the middle of a person that is known and is about as large."""
    left, top, right, bottom = pose.box
    size = 2 * float(np.linalg.norm(end - hips))
    return abs(hips[0] - (left + right) / 2) < 0.2 * (right - left) and size > 0.5 * max(right - left, bottom - top)


def _candidates(image: np.ndarray, least: float) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """(score, hips, end of the body), the surest first: in the whole image and, where it is wide or tall, in squares of it."""
    side, longer = sorted(image.shape[:2])
    places = [(0, 0, longer)]
    if longer > 1.2 * side:
        places += [(top, left, side) for left, top, _, _ in squares(image.shape[1], image.shape[0], side, side // 2)]
    rows = [row for place in places for row in _detected(image, *place, least)]
    return sorted(rows, key=lambda row: -row[0])


def _detected(image: np.ndarray, top: int, left: int, side: int, least: float) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Candidates of one square; of those that share a place the surest."""
    square = np.zeros((side, side, 3), np.uint8)
    part = image[top : top + side, left : left + side]
    square[: part.shape[0], : part.shape[1]] = part
    small = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    places, scores = run_lite("pose_detection.tflite", small[None] / 127.5 - 1)
    chances = 1 / (1 + np.exp(-np.clip(scores[0, :, 0], -80, 80)))
    found: list[tuple[float, np.ndarray, np.ndarray]] = []
    for i in np.argsort(-chances, kind="stable"):
        if chances[i] < least:
            break
        points = (_anchors()[i] + places[0, i, 4:8].reshape(2, 2) / SIDE) * side + [left, top]
        if all(np.linalg.norm(points[0] - hips) > 0.5 * np.linalg.norm(end - hips) for _, hips, end in found):
            found.append((float(chances[i]), points[0], points[1]))
    return found


@lru_cache
def _anchors() -> np.ndarray:
    """Centers of the 2254 anchors [n, 2], (x, y) in shares."""
    rows = []
    for cells, each in GRIDS:
        y, x = np.mgrid[:cells, :cells]
        rows.append(np.repeat((np.stack([x, y], -1).reshape(-1, 2) + 0.5) / cells, each, 0))
    return np.concatenate(rows)


def _pose(image: np.ndarray, score: float, hips: np.ndarray, end: np.ndarray) -> Pose | None:
    """Landmarks and mask of a candidate, by the crop around its hips turned so that its head is above; None without a mask."""
    up = end - hips
    half, turn = ROOM * float(np.linalg.norm(up)), np.arctan2(up[0], -up[1])
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    corners = hips + half * (np.array([[-1, -1], [1, -1], [-1, 1]]) @ axes)
    target = np.array([[0, 0], [CROP, 0], [0, CROP]], np.float32)
    into = cv2.getAffineTransform(corners.astype(np.float32), target)
    crop = cv2.warpAffine(image, into, (CROP, CROP), flags=cv2.INTER_AREA).astype(np.float32) / 255
    outputs = run_lite("pose_landmark_full.tflite", crop[None])
    sizes = {each.size: each for each in outputs}
    points, mask = sizes[39 * 5].reshape(39, 5)[:33], sizes[CROP * CROP].reshape(CROP, CROP)
    back = cv2.invertAffineTransform(into)
    whole = cv2.warpAffine(1 / (1 + np.exp(-np.clip(mask, -50, 50))), back, image.shape[1::-1]) > MASK
    solid = largest(whole)
    if not solid.any():
        return None
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    visible = 1 / (1 + np.exp(-np.clip(points[:, 3], -50, 50)))
    return Pose(box, solid, points[:, :2] @ back[:, :2].T + back[:, 2], visible, score, float(sizes[1].ravel()[0]))


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask that hangs together by more than a thread."""
    k = max(1, round(THREAD * np.sqrt(mask.sum())))
    core = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (k, k)))
    _, labels, facts, _ = cv2.connectedComponentsWithStats(core)
    if len(facts) < 2:
        return mask
    main = (labels == 1 + int(np.argmax(facts[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    return mask & (cv2.dilate(main, np.ones((2 * k + 1, 2 * k + 1), np.uint8)) > 0)
