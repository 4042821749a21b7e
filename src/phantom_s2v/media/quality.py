"""How sharp and how well exposed an image is: numbers that the data pipeline's bounds and the evaluation's scores share."""

import cv2
import numpy as np
from scipy import ndimage

SHARP_SIDE, MIN_SIDE = 480, 200  # pixels of the shorter side that blur is measured at, and below which it is not
TILES = 6  # on the shorter side
WINDOW = 11  # pixels of the second blur (Crete and others 2007)
TEXTURED = 0.75  # quantile of texture from which on a tile counts
COVERED = 0.5  # share of a tile that a mask covers where the tile counts
BLACK, WHITE = 8, 247  # of 255, luma: darker and brighter pixels hold no detail


def sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of gray, of uint8 [H, W, 3]; 0 and more. Noise counts as sharp."""
    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def blur(image: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    """Blur of the sharpest part of uint8 [H, W, 3], or of what `mask` (bool [H, W]) covers: 0 sharp..1.

    The blur effect of Crete and others (2007): how little a second blur changes differences of neighbors. Only the sharpest of
    the parts with texture counts, since a background out of focus is no fault. None below 200 pixels, or where the mask covers no
    tile.
    """
    if min(image.shape[:2]) < MIN_SIDE:
        return None
    scale = min(1.0, SHARP_SIDE / min(image.shape[:2]))
    gray = cv2.cvtColor(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    values, side = gray.astype(np.float32), min(gray.shape) // TILES
    shares, texture = [], []
    for axis in (0, 1):
        before = np.abs(np.diff(values, axis=axis))
        after = np.abs(np.diff(ndimage.uniform_filter1d(values, WINDOW, axis), axis=axis))
        kept, total = (_tiles(each, side, gray.shape) for each in (np.minimum(before, after), before))
        shares.append(kept / np.maximum(total, 1e-6))
        texture.append(total)
    share, textures = np.maximum(*shares), np.minimum(*texture)
    if mask is not None:
        small = cv2.resize(mask.astype(np.float32), gray.shape[::-1], interpolation=cv2.INTER_AREA)
        inside = _tiles(small, side, gray.shape) >= COVERED
        share, textures = share[inside], textures[inside]
    if not len(share):
        return None
    return float(share[textures >= np.quantile(textures, TEXTURED)].min())


def _tiles(values: np.ndarray, side: int, shape: tuple[int, ...]) -> np.ndarray:
    """Mean of each square of an image of `shape` (h, w), [rows * columns]; its differences lack a row or a column."""
    rows, columns = (length // side for length in shape)
    padded = np.pad(values, ((0, shape[0] - values.shape[0]), (0, shape[1] - values.shape[1])))
    return padded[: rows * side, : columns * side].reshape(rows, side, columns, side).mean((1, 3)).ravel()


def clipped(image: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Share of the pixels of uint8 [H, W, 3], or of what `mask` (bool [H, W]) covers, that are black or white; 0..1."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    values = luma if mask is None or not mask.any() else luma[mask]
    return float(((values <= BLACK) | (values >= WHITE)).mean())
