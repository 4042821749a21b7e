"""Things that move by themselves, in three small frames around a moment: optical flow (DIS, arXiv 1603.03590) less the camera's.

A pixel moves where its flow to the frame before and its flow to the frame after both differ from the camera's, and where in both
frames the end of its flow looks as it does and the place where the camera's motion alone would bring it looks different:
background that was just uncovered is in one of them alone, and flat background looks the same everywhere.
"""

import cv2
import numpy as np

GRID = 8  # pixels between the points whose flow tells the camera's motion
MOVES = 0.006  # least flow of its own, as a share of the image's diagonal
AGREES = 24  # of 255: largest difference to the end of a pixel's flow
DIFFERS = 10  # of 255: least difference to where the camera alone would bring it
SMALLEST, LARGEST = 0.01, 0.6  # shares of the image that may move: less is noise, more is the camera
MOVING_PART = 0.5  # share of a thing's mask that has to move: a head that nods is not the animal
SOLID = 0.4  # least share of its box that a thing fills
ROUNDS = 3  # of GrabCut


def moving(around: np.ndarray) -> list[np.ndarray]:
    """Masks bool [h, w] of what moves in the middle one of uint8 [3, h, w, 3], the largest first."""
    gray = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in around]
    mask = _own(gray[1], gray[0]) & _own(gray[1], gray[2])
    if not SMALLEST < mask.mean() < LARGEST:
        return []
    k = max(1, round(min(mask.shape) / 48))
    solid = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _disc(2 * k + 1))
    solid = cv2.morphologyEx(solid, cv2.MORPH_OPEN, _disc(k + 1))
    _, labels, facts, _ = cv2.connectedComponentsWithStats(solid)
    order = [int(i) for i in 1 + np.argsort(-facts[1:, cv2.CC_STAT_AREA]) if facts[i, cv2.CC_STAT_AREA] >= SMALLEST * mask.size]
    things = [_thing(around[1], labels == i, k) for i in order]
    return [thing for thing in things if thing.any() and (thing & (solid > 0)).sum() >= MOVING_PART * thing.sum()]


def _own(now: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where flow from `now` to `other`, uint8 [h, w], is not the camera's, and ends at what looks the same."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(now, other, None)  # type: ignore[call-overload]
    height, width = now.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ends = np.stack([x, y], -1) + flow
    starts = np.stack([x, y], -1)[::GRID, ::GRID].reshape(-1, 2)
    camera, _ = cv2.estimateAffinePartial2D(starts, ends[::GRID, ::GRID].reshape(-1, 2), ransacReprojThreshold=1.0)
    if camera is None:
        return np.zeros(now.shape, bool)
    still = np.stack([x, y, np.ones_like(x)], -1) @ camera.T
    own = np.linalg.norm(ends - still, axis=-1)
    followed, stayed = (_difference(now, other, places) for places in (ends, still))
    return (own > MOVES * np.hypot(height, width)) & (followed < AGREES) & (stayed > DIFFERS)


def _difference(now: np.ndarray, other: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How much every pixel of `now` differs from `other` at the place [h, w, 2], (x, y), that it is held against."""
    there = cv2.remap(other, places.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    return cv2.absdiff(cv2.GaussianBlur(there, (5, 5), 0), cv2.GaussianBlur(now, (5, 5), 0))


def _thing(frame: np.ndarray, seed: np.ndarray, k: int) -> np.ndarray:
    """What a moving part belongs to, by GrabCut within its surroundings; empty where that is no solid thing."""
    surely = cv2.erode(seed.astype(np.uint8), _disc(2 * k + 1)) > 0
    nearby = cv2.dilate(seed.astype(np.uint8), _disc(6 * k + 1)) > 0
    if not surely.any() or nearby.all():
        return np.zeros_like(seed)
    labels = np.where(nearby, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
    labels[seed] = cv2.GC_PR_FGD
    labels[surely] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    cv2.grabCut(
        np.ascontiguousarray(frame[..., ::-1]),
        labels,
        (0, 0, 0, 0),
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        ROUNDS,
        cv2.GC_INIT_WITH_MASK,
    )
    cut = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    _, parts, facts, _ = cv2.connectedComponentsWithStats(cut)
    if len(facts) < 2:
        return np.zeros_like(seed)
    best = 1 + int(np.argmax(facts[1:, cv2.CC_STAT_AREA]))
    _, _, width, height, area = facts[best].tolist()
    return parts == best if area >= SOLID * width * height else np.zeros_like(seed)


def _disc(size: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
