"""A detector without a network: what has another color than the image's border or, where that is of many colors, what moves.

It finds things that stand apart from a background which the border shows: plain, graded, patterned. It misses what shares its
colors with the background and joins what touches. In photographed scenes it finds roughly what moves by itself (motion.py);
there GroundingDINO or OWLv2 and SAM2 are needed.
"""

from collections.abc import Sequence
from typing import cast

import cv2
import numpy as np
from scipy import ndimage

from phantom_s2v.data.detectors.motion import moving
from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.geometry import covered
from phantom_s2v.media.images import border

STEP = 4  # of 255, width of a bin of Lab
RING = 3 / 128  # of the shorter side: the border that shows the background
RARE = 0.0006  # share of the border below which a color is no background
SMALLEST = 0.002  # share of the image: a part of a subject
WORKING_SIDE = 256  # the shorter side of the image that is looked at
COLORS = 180  # bins from which on a border is of many colors
MIN_BACKGROUND_SHARE = 0.35  # min share of the image covered by background; below it the border does not show the background


def detect_objects(stills: list[np.ndarray], phrases: list[str], around: Sequence[np.ndarray] = ()) -> list[list[Detection]]:
    """Detections in every still, uint8 [H, W, 3]; phrases name them only where there is one phrase and one object.

    `around` are small frames before, at and after each still, in which motion is looked for where the background is not plain.
    """
    small = _small(stills)
    palette = _palette(small)
    if palette is None:
        parts = [moving(frames) for frames in around] or [[] for _ in stills]
    else:
        parts = [foreground(image, palette) for image in small]
    detections = []
    for still, some in zip(stills, parts, strict=True):
        masks = [_enlarged(mask, still.shape) for mask in some]
        name = phrases[0] if len(phrases) == len(masks) == 1 else ""
        detections.append([Detection(box_of(mask), mask, name, float(mask.mean()), unnamed=palette is None) for mask in masks])
    return detections


def plain_background(stills: list[np.ndarray]) -> bool:
    """Whether the borders of stills are of few colors, so that regions can be segmented; photographed source video is not."""
    return _palette(_small(stills)) is not None


def fills(still: np.ndarray) -> bool:
    """Whether a subject leaves so little of its plain background that the image is all subject; False on many colors."""
    small = _small([still])
    palette = _palette(small)
    if palette is None:
        return False
    different = _different(small[0], palette)
    return bool(_ring(different[..., None]).mean() < 0.5 and different.mean() > 1 - MIN_BACKGROUND_SHARE)


def _small(stills: list[np.ndarray]) -> list[np.ndarray]:
    scale = min(1.0, WORKING_SIDE / min(stills[0].shape[:2]))
    size = (round(stills[0].shape[1] * scale), round(stills[0].shape[0] * scale))
    return [cv2.resize(still, size, interpolation=cv2.INTER_AREA) if scale < 1 else still for still in stills]


def _palette(images: list[np.ndarray]) -> np.ndarray | None:
    """Background colors and their neighbors; None where the border is of many colors."""
    common = background_colors(images)
    return ndimage.maximum_filter(common.astype(np.uint8), 3) > 0 if common.sum() < COLORS else None


def _different(image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    lab = _bins(image)
    return ~palette[lab[..., 0], lab[..., 1], lab[..., 2]]


def _ring(image: np.ndarray) -> np.ndarray:
    return border(image, max(2, round(RING * min(image.shape[:2]))))


def _bins(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.int32) // STEP + 1


def background_colors(images: list[np.ndarray]) -> np.ndarray:
    """Table bool [n, n, n] over bins of Lab: colors of the border of any of the images."""
    count = 256 // STEP + 3
    table = np.zeros((count, count, count), np.float32)
    for image in images:
        ring = _ring(_bins(image))
        np.add.at(table, tuple(ring.T), 1)
    return table >= max(2, RARE * table.sum())


def foreground(image: np.ndarray, palette: np.ndarray) -> list[np.ndarray]:
    """Masks bool [H, W] of what is not background; none where the background covers too little to be trusted."""
    different = _different(image, palette)
    if different.mean() > 1 - MIN_BACKGROUND_SHARE:
        return []
    height, width = different.shape
    k = max(1, round(min(height, width) / 64))
    core = cv2.morphologyEx(different.astype(np.uint8), cv2.MORPH_OPEN, _disc(2 * k + 1))
    labels, _ = cast(tuple[np.ndarray, int], ndimage.label(different))
    with_core = np.unique(labels[core > 0])
    solid = np.isin(labels, with_core[with_core > 0])
    closed = cv2.morphologyEx(np.pad(solid, 4 * k).astype(np.uint8), cv2.MORPH_CLOSE, _disc(2 * k + 1))
    return joined(_parts(closed[4 * k : -4 * k, 4 * k : -4 * k], SMALLEST))


def _parts(mask: np.ndarray, smallest: float) -> list[np.ndarray]:
    """Connected parts, without holes, of at least `smallest` of the image."""
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(cast(np.ndarray, ndimage.binary_fill_holes(mask))))
    return [part for part in (labels == i for i in range(1, count + 1)) if part.sum() >= smallest * part.size]


def joined(masks: list[np.ndarray]) -> list[np.ndarray]:
    """Masks with those put together whose boxes overlap: the parts of one thing."""
    masks = list(masks)
    i = 0
    while i < len(masks):
        box = box_of(masks[i])
        other = next((j for j in range(len(masks)) if j != i and covered(box, box_of(masks[j]))), None)
        if other is None:
            i += 1
        else:
            masks[i] = masks[i] | masks[other]
            del masks[other]
            i = 0
    return masks


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Box (left, top, right, bottom) of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _disc(size: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _enlarged(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if mask.shape == shape[:2]:
        return mask
    return cv2.resize(mask.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR) > 0.5
