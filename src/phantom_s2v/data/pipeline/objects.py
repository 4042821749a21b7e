"""A detector without a network: what has another colour than the picture's border.

It finds things that stand apart from a ground which the border shows: plain, graded, patterned. It misses what shares its colours
with the ground, joins what touches, and is lost where the ground holds every colour; there GroundingDINO or OWLv2 is needed.
"""

from typing import cast

import cv2
import numpy as np
from scipy import ndimage

from phantom_s2v.data.pipeline.config import Detection

STEP = 4  # of 255, width of a bin of Lab
RING = 3 / 128  # of the shorter side: the border that shows the ground
RARE = 0.0006  # share of the border below which a colour is no ground
SMALLEST = 0.002  # share of the picture: a part of a subject
WORKING_SIDE = 256  # the shorter side of the picture that is looked at
GROUND = 0.35  # least share of the picture that the ground has to cover; else the border does not show it


def detect_objects(stills: list[np.ndarray], phrases: list[str]) -> list[list[Detection]]:
    """Detections in every still, uint8 [H, W, 3]; phrases name them only where there is one phrase and one object."""
    scale = min(1.0, WORKING_SIDE / min(stills[0].shape[:2]))
    size = (round(stills[0].shape[1] * scale), round(stills[0].shape[0] * scale))
    small = [cv2.resize(still, size, interpolation=cv2.INTER_AREA) if scale < 1 else still for still in stills]
    palette = ground_colours(small)
    found = []
    for still, picture in zip(stills, small, strict=True):
        masks = [_enlarged(mask, still.shape) for mask in foreground(picture, palette)]
        name = phrases[0] if len(phrases) == len(masks) == 1 else ""
        found.append([Detection(_box(mask), mask, name, float(mask.mean())) for mask in masks])
    return found


def _bins(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.int32) // STEP + 1


def ground_colours(pictures: list[np.ndarray]) -> np.ndarray:
    """Table bool [n, n, n] over bins of Lab: colours of the border of any of the pictures, and their neighbours."""
    count = 256 // STEP + 3
    table = np.zeros((count, count, count), np.float32)
    for picture in pictures:
        w, lab = max(2, round(RING * min(picture.shape[:2]))), _bins(picture)
        ring = [part.reshape(-1, 3) for part in (lab[:w], lab[-w:], lab[:, :w], lab[:, -w:])]
        np.add.at(table, tuple(np.concatenate(ring).T), 1)
    return ndimage.maximum_filter((table >= max(2, RARE * table.sum())).astype(np.uint8), 3) > 0


def foreground(picture: np.ndarray, palette: np.ndarray) -> list[np.ndarray]:
    """Masks bool [H, W] of what is not ground; none where the ground covers too little to be trusted."""
    lab = _bins(picture)
    different = ~palette[lab[..., 0], lab[..., 1], lab[..., 2]]
    if different.mean() > 1 - GROUND:
        return []
    height, width = different.shape
    k = max(1, round(min(height, width) / 64))
    core = cv2.morphologyEx(different.astype(np.uint8), cv2.MORPH_OPEN, _disc(2 * k + 1))
    labels, _ = cast(tuple[np.ndarray, int], ndimage.label(different))
    with_core = np.unique(labels[core > 0])
    solid = np.isin(labels, with_core[with_core > 0])
    closed = cv2.morphologyEx(np.pad(solid, 4 * k).astype(np.uint8), cv2.MORPH_CLOSE, _disc(2 * k + 1))
    filled = cast(np.ndarray, ndimage.binary_fill_holes(closed[4 * k : -4 * k, 4 * k : -4 * k]))
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(filled))
    parts = [labels == i for i in range(1, count + 1)]
    return joined([part for part in parts if part.sum() >= SMALLEST * part.size])


def joined(masks: list[np.ndarray]) -> list[np.ndarray]:
    """Masks with those put together whose boxes overlap: the parts of one thing."""
    masks = list(masks)
    i = 0
    while i < len(masks):
        box = _box(masks[i])
        other = next((j for j in range(len(masks)) if j != i and _overlap(box, _box(masks[j]))), None)
        if other is None:
            i += 1
        else:
            masks[i] = masks[i] | masks[other]
            del masks[other]
            i = 0
    return masks


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _disc(size: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _enlarged(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if mask.shape == shape[:2]:
        return mask
    return cv2.resize(mask.astype(np.uint8), (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST) > 0
