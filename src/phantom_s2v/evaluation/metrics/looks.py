"""How sharp a photographed video is, and whether clothes have the colors of the reference."""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy import ndimage

from phantom_s2v.media import quality

Box = tuple[int, int, int, int]  # left, top, right, bottom
BINS, SPREAD = (6, 24, 24), (1.0, 1.5, 1.5)  # of L, a and b; a shade more or less of light is no other color


def blur(frames: Sequence[np.ndarray]) -> float:
    """Blur of the sharpest part of frames, uint8 [H, W, 3], median over them: 0 sharp..1; nan below 200 pixels.

    See media/quality.py. It misses blur of the subject alone.
    """
    values = [quality.blur(frame) for frame in frames]
    return float("nan") if None in values else float(np.median(values))  # type: ignore[arg-type]


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
