"""How sharp a photographed video is, and whether clothes have the colors of the reference."""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy import ndimage

Box = tuple[int, int, int, int]  # left, top, right, bottom
SHARP_SIDE, MIN_SIDE = 480, 200  # pixels of the shorter side that blur is measured at, and below which it is not
TILES = 6  # on the shorter side
WINDOW = 11  # pixels of the second blur (Crete and others 2007)
BINS, SPREAD = (6, 24, 24), (1.0, 1.5, 1.5)  # of L, a and b; a shade more or less of light is no other color


def blur(frames: Sequence[np.ndarray]) -> float:
    """Blur of the sharpest part of frames, uint8 [H, W, 3], median over them: 0 sharp..1; nan below 200 pixels.

    The blur effect of Crete and others (2007): how little a second blur changes differences of neighbors. Only the sharpest of
    the parts with texture counts, since a background out of focus is no fault. It misses blur of the subject alone.
    """
    if min(frames[0].shape[:2]) < MIN_SIDE:
        return float("nan")
    return float(np.median([_blur(frame) for frame in frames]))


def _blur(frame: np.ndarray) -> float:
    scale = min(1.0, SHARP_SIDE / min(frame.shape[:2]))
    gray = cv2.cvtColor(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    values, side = gray.astype(np.float32), min(gray.shape) // TILES
    shares, texture = [], []
    for axis in (0, 1):
        before = np.abs(np.diff(values, axis=axis))
        after = np.abs(np.diff(ndimage.uniform_filter1d(values, WINDOW, axis), axis=axis))
        kept = _tiles(np.minimum(before, after), side)
        total = _tiles(before, side)
        shares.append(kept / np.maximum(total, 1e-6))
        texture.append(total)
    textured = np.minimum(*texture) >= np.quantile(np.minimum(*texture), 0.75)
    return float(np.maximum(*shares)[textured].min())


def _tiles(values: np.ndarray, side: int) -> np.ndarray:
    """Mean of each square, [rows * columns]."""
    rows, columns = (length // side for length in (values.shape[0] + 1, values.shape[1] + 1))
    padded = np.pad(values, ((0, max(0, rows * side - values.shape[0])), (0, max(0, columns * side - values.shape[1]))))
    return padded[: rows * side, : columns * side].reshape(rows, side, columns, side).mean((1, 3)).ravel()


def torso(face: Box, shape: tuple[int, ...]) -> Box | None:
    """What lies below a face in an image of a shape [H, W, ...]; None where most of it is cut off."""
    left, top, right, bottom = face
    across, down = right - left, bottom - top
    box = (left - across // 4, bottom + down * 2 // 5, right + across // 4, bottom + down * 6 // 5)
    inside = max(0, box[0]), max(0, box[1]), min(shape[1], box[2]), min(shape[0], box[3])
    whole = (box[2] - box[0]) * (box[3] - box[1])
    seen = max(0, inside[2] - inside[0]) * max(0, inside[3] - inside[1])
    return inside if whole and seen >= 0.6 * whole else None


def clothes(image: np.ndarray, face: Box) -> np.ndarray | None:
    """Distribution of colors below a face, as a unit vector; None where the torso is cut off."""
    box = torso(face, image.shape)
    if box is None:
        return None
    lab = cv2.cvtColor(np.ascontiguousarray(image[box[1] : box[3], box[0] : box[2]]), cv2.COLOR_RGB2LAB).reshape(-1, 3)
    table, _ = np.histogramdd(lab, BINS, ((0, 256), (64, 192), (64, 192)))
    spread = np.sqrt(ndimage.gaussian_filter(table, SPREAD))
    return (spread / max(1e-6, float(np.linalg.norm(spread)))).ravel().astype(np.float32)
