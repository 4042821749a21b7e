"""What may be wrong with a reference image: small, blurred, cropped, crowded or dark. Warnings, which forbid nothing.

Sharpness is measured as the data pipeline does (media/quality.py). The subject is what an image's transparency or plain
background leaves; of a photograph all of it counts, and faces, where their network was fetched (`phantom models fetch`).
`evaluation.robustness` spoils images on purpose; tests/studio/test_uploads.py has what is found of them.
"""

from typing import Any, cast

import cv2
import numpy as np
from scipy import ndimage

from phantom_s2v.data.pipeline.config import Config
from phantom_s2v.media.images import BACKGROUND_TOLERANCE, border
from phantom_s2v.media.quality import blur
from phantom_s2v.vision.faces import faces
from phantom_s2v.vision.fetched import fetched

PLAIN = 0.6  # share of the border that has one color where the background is plain
SMALL_SIDE, SMALL_SHARE = 128, 0.12  # pixels of the subject's shorter side; its box's share of the image
TOUCHING = 0.15  # share of an edge that a subject covers where it goes on beyond it
SECOND = 0.25  # area of a second thing, of the first, from which on there are two
DARK = 90  # of 255, luma that 95% of a dark subject stay below
Box = tuple[int, int, int, int]


def warnings(image: np.ndarray, alpha: np.ndarray | None) -> list[dict[str, Any]]:
    """Warnings of an image, uint8 [H, W, 3], with its opaque pixels, bool [H, W], where some are not: codes with values."""
    mask = alpha if alpha is not None else _off_the_background(image)
    seen = [box for box, _ in faces(image)] if fetched() else []
    found: list[dict[str, Any]] = []
    left, top, right, bottom = _box(mask) if mask is not None else (0, 0, image.shape[1], image.shape[0])
    side, share = min(right - left, bottom - top), (right - left) * (bottom - top) / (image.shape[0] * image.shape[1])
    if side < SMALL_SIDE or share < SMALL_SHARE:
        found.append({"code": "small", "side": side})
    soft = blur(image, mask)
    if soft is not None and soft > Config().reference_blur:
        found.append({"code": "blurred"})
    if (mask is not None and _touches(mask)) or any(_cut_off(box, image) for box in seen):
        found.append({"code": "cropped"})
    if (mask is not None and _several(mask)) or _crowd(seen):
        found.append({"code": "crowded"})
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if np.quantile(luma[mask] if mask is not None else luma, 0.95) < DARK:
        found.append({"code": "dark"})
    return found


def _off_the_background(image: np.ndarray) -> np.ndarray | None:
    """What differs from a plain background, bool [H, W]; None where the background is not plain, or all is background."""
    rim = border(image).astype(np.int16)
    color = np.median(rim, 0)
    if np.mean(np.abs(rim - color).max(1) <= BACKGROUND_TOLERANCE) < PLAIN:
        return None
    mask = (np.abs(image.astype(np.int16) - color) > BACKGROUND_TOLERANCE).any(-1)
    return mask if mask.mean() > 0.001 else None


def _box(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _touches(mask: np.ndarray) -> bool:
    """Whether what is shown goes on beyond an edge of the image."""
    return max(edge.mean() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) > TOUCHING


def _several(mask: np.ndarray) -> bool:
    """Whether there are two things that do not touch, of a similar size."""
    scale = min(1.0, 256 / max(mask.shape))
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(cv2.resize(mask.astype(np.uint8), size)))
    areas = np.sort(np.bincount(labels.ravel())[1:])[::-1]
    return count > 1 and areas[1] >= SECOND * areas[0]


def _cut_off(box: Box, image: np.ndarray) -> bool:
    """Whether a face ends at an edge of the image."""
    left, top, right, bottom = box
    return left <= 0 or top <= 0 or right >= image.shape[1] or bottom >= image.shape[0]


def _crowd(boxes: list[Box]) -> bool:
    areas = sorted(((right - left) * (bottom - top) for left, top, right, bottom in boxes), reverse=True)
    return len(areas) > 1 and areas[1] >= SECOND * areas[0]
