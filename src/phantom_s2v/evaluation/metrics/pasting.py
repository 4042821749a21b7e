"""Does a reference image stand in a frame unchanged? Searched for over scale and place, with its own shape.

A coarse search on small gray frames proposes places: the image smaller than the frame, fitted into it, or larger than it, so that
the frame shows a part. The best of them are aligned (ECC: Evangelidis and Psarakis 2008) and compared in color.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

COARSE = 40  # pixels of the shorter side of a frame that is searched
LARGEST = 512  # pixels of the longer side of a reference that is kept
STEP = 1.08  # from scale to scale
SMALLEST_SCALE = 0.35  # of the scale at which the image just fits into the frame
LARGEST_SCALE = 1.4  # of the scale at which it just covers the frame
VISIBLE = 0.25  # least share of the image that the frame shows
TEXTURE = 0.4  # least contrast of the shown part, as a share of the whole image's
OFFSET = 4  # pixels of a coarse frame from part to part of an image that is larger than it
TRIES = 5  # places that are aligned
EDGE = 2  # pixels at the edge of a cutout that do not count
SKEW = 1.15  # largest ratio of the two scales of an alignment
ALIGNED = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
PROMISING = 0.5  # coarse similarity from which on a place is followed from frame to frame


class Place(NamedTuple):
    """Where the image lies: frame pixels for each of its own, across and down, and its corner in frame pixels."""

    across: float
    down: float
    left: float
    top: float


_Laid = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, mask, and frame pixels -> image pixels, [2, 3]


@dataclass(frozen=True)
class _Part:
    """A part of the resized image that a coarse frame can show: gray, mask, its offset, and the scale."""

    gray: np.ndarray
    mask: np.ndarray | None
    left: int
    top: int
    scale: float


class PastedImage:
    """A reference image, uint8 [h, w, 3], to be looked for; with `alpha`, bool [h, w], only what it covers."""

    def __init__(self, image: np.ndarray, alpha: np.ndarray | None = None) -> None:
        if alpha is not None:
            rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            image, alpha = image[box], alpha[box]
        scale = min(1.0, LARGEST / max(image.shape[:2]))
        self.image = _resized(image, scale, scale)
        self.alpha = None if alpha is None else _resized(alpha.astype(np.uint8) * 255, scale, scale)
        self._parts: dict[tuple[int, int], list[_Part]] = {}

    def places(self, frame: np.ndarray) -> list[tuple[float, Place]]:
        """(coarse similarity, place) of the best scales, best first."""
        shrink = min(1.0, COARSE / min(frame.shape[:2]))
        small = _gray(_resized(frame, shrink, shrink))
        if small.shape not in self._parts:
            self._parts[small.shape] = self._cut(*small.shape)
        best: dict[float, tuple[float, Place]] = {}
        for part in self._parts[small.shape]:
            value, x, y = _match(small, part)
            scale = part.scale / shrink
            if value > best.get(scale, (-1.0,))[0]:
                best[scale] = (value, Place(scale, scale, (x - part.left) / shrink, (y - part.top) / shrink))
        return sorted(best.values(), reverse=True)[:3]

    def _cut(self, height: int, width: int) -> list[_Part]:
        """What a frame of this size can show of the image, at every scale."""
        h, w = self.image.shape[:2]
        fits, covers = sorted((height / h, width / w))
        last = LARGEST_SCALE * (fits if self.alpha is not None else covers)
        count = int(np.log(last / (SMALLEST_SCALE * fits)) / np.log(STEP)) + 1
        parts = []
        for scale in [*(SMALLEST_SCALE * fits * STEP**i for i in range(count)), fits, covers]:
            gray = _gray(_resized(self.image, scale, scale))
            mask = None if self.alpha is None else _resized(self.alpha, scale, scale)
            if min(gray.shape) < 6 or min(height, gray.shape[0]) * min(width, gray.shape[1]) < VISIBLE * gray.size:
                continue
            whole = float(gray.std())
            if gray.shape[0] >= height and gray.shape[1] >= width and mask is None:
                parts.append(_Part(gray, None, 0, 0, scale))
                continue
            for top in _offsets(gray.shape[0], height):
                for left in _offsets(gray.shape[1], width):
                    part = (slice(top, top + height), slice(left, left + width))
                    if gray[part].std() >= max(2.0, TEXTURE * whole):
                        parts.append(_Part(gray[part], None if mask is None else mask[part], left, top, scale))
        return parts

    def laid(self, place: Place) -> _Laid:
        """The image and its mask at the scale of a place, and how they lie."""
        image = _resized(self.image, place.across, place.down)
        alpha = np.full(image.shape[:2], 255, np.uint8) if self.alpha is None else _resized(self.alpha, place.across, place.down)
        return image, alpha, np.array([[1, 0, -place.left], [0, 1, -place.top]], np.float32)

    def aligned(self, frame: np.ndarray, place: Place) -> float:
        """Correlation in color, -1..1, at a place that is made exact; -1 where too little of the image is shown."""
        image, alpha, start = self.laid(place)
        best = _correlation(frame, image, alpha, start)
        try:
            gray = np.ascontiguousarray(_gray(frame))
            _, warp = cv2.findTransformECC(gray, _gray(image), start.copy(), cv2.MOTION_AFFINE, ALIGNED, alpha, 5)
        except cv2.error:  # it did not converge
            return best
        scales = np.linalg.svd(warp[:, :2], compute_uv=False)
        return max(best, _correlation(frame, image, alpha, warp)) if scales[0] <= SKEW * scales[1] else best


def copy_paste(frames: Sequence[np.ndarray], reference: np.ndarray, alpha: np.ndarray | None = None) -> float:
    """How much of a reference image stands in a video unchanged, with its pose, background and crop: -1..1, 1 is a pasted image.

    The largest correlation of the image with a part of one of some `frames`, uint8 [H, W, 3] each: as a whole, from 0.35 of
    what fits into the frame on, or larger than the frame, so that a quarter of it shows. With `alpha`, bool [h, w], of what it
    covers alone, on any background. It misses what was turned or mirrored; a subject that stands still in
    another part of the video that its reference was cut from is seen, since it is unchanged (ours; docs/method.md).
    """
    image = PastedImage(reference, alpha)
    found = [(value, i, place) for i, frame in enumerate(frames) for value, place in image.places(frame)]
    stretched = frames[0].shape[1] / image.image.shape[1], frames[0].shape[0] / image.image.shape[0]
    tried = [(i, place) for _, i, place in sorted(found, reverse=True)[:TRIES]] + [(0, Place(*stretched, 0, 0))]
    return max((image.aligned(frames[i], place) for i, place in tried), default=-1.0)


class Follower:
    """Similarity of an image with frame after frame, each of `PLACES`: fitted to it, covering it, stretched, and the best of
    these and of where a cut showed it.
    """

    PLACES = 4

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.place = PastedImage(image), None
        self._layouts: dict[tuple[int, ...], list[_Laid]] = {}

    def __call__(self, frame: np.ndarray, cut: bool) -> list[float]:
        """[PLACES], -1..1, of uint8 [H, W, 3]; `cut`: it differs much from the frame before: the image is searched for anew."""
        shrink = min(1.0, COARSE / min(frame.shape[:2]))
        small = _resized(frame, shrink, shrink)
        if cut:
            found = self.image.places(small)
            self.place = found[0][1] if found and found[0][0] >= PROMISING else None
        if small.shape not in self._layouts:
            self._layouts[small.shape] = [self.image.laid(place) for place in self._whole(*small.shape[:2])]
        values = [_correlation(small, *laid) for laid in self._layouts[small.shape]]
        return [*values, max([*values, self.image.aligned(small, self.place)] if self.place else values)]

    def _whole(self, height: int, width: int) -> list[Place]:
        """The image fitted into a frame, covering it, and stretched to it."""
        h, w = self.image.image.shape[:2]
        scales = min(height / h, width / w), max(height / h, width / w)
        return [*(Place(s, s, (width - s * w) / 2, (height - s * h) / 2) for s in scales), Place(width / w, height / h, 0, 0)]


def _offsets(length: int, room: int) -> list[int]:
    """Where parts of a side begin that is longer than the frame's."""
    surplus = max(0, length - room)
    return np.linspace(0, surplus, -(-surplus // OFFSET) + 1).round().astype(int).tolist()


def _match(frame: np.ndarray, part: _Part) -> tuple[float, int, int]:
    """Largest correlation of a part with a place in a gray frame, and the place (x, y)."""
    larger = part.mask is None and part.gray.shape[0] >= frame.shape[0] and part.gray.shape[1] >= frame.shape[1]
    one, other = (part.gray, frame) if larger else (frame, part.gray)
    found = cv2.matchTemplate(one, other, cv2.TM_CCOEFF_NORMED, mask=part.mask)
    found[~np.isfinite(found) | (np.abs(found) > 1.01)] = -1
    y, x = np.unravel_index(found.argmax(), found.shape)
    sign = -1 if larger else 1
    return float(found[y, x]), sign * int(x), sign * int(y)


def _correlation(frame: np.ndarray, image: np.ndarray, alpha: np.ndarray, warp: np.ndarray) -> float:
    """Correlation in color of a frame with what an image shows of it; -1 where it shows too little, or a plain part."""
    size, how = (frame.shape[1], frame.shape[0]), cv2.WARP_INVERSE_MAP
    inside = cv2.warpAffine(alpha, warp, size, flags=how | cv2.INTER_LINEAR) > 250
    if alpha.min() < 250:  # the edge of a cutout is mixed with what is behind it
        inside = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=EDGE) > 0
    shown = inside.sum() / max(1e-6, (alpha > 250).sum() / abs(np.linalg.det(warp[:, :2])))
    if shown < VISIBLE or inside.sum() < 36:
        return -1.0
    moved = cv2.warpAffine(image, warp, size, flags=how | cv2.INTER_LINEAR)
    one, other = (part[inside].astype(np.float32) for part in (frame, moved))
    one, other = one - one.mean(0), other - other.mean(0)
    if np.sqrt((other**2).mean()) < TEXTURE * image[alpha > 250].std(0).mean():
        return -1.0
    return float((one * other).sum() / max(1e-6, np.sqrt((one**2).sum() * (other**2).sum())))


def _resized(image: np.ndarray, across: float, down: float) -> np.ndarray:
    size = (max(1, round(image.shape[1] * across)), max(1, round(image.shape[0] * down)))
    if size == (image.shape[1], image.shape[0]):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if across < 1 else cv2.INTER_LINEAR)


def _gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
