"""Fill a part of an image with what may be behind it, by OpenCV."""

import cv2
import numpy as np

SIDE = 384  # pixels of the longer side that is filled; OpenCV's time grows with what is filled, and it fills no detail
RADIUS = 5  # pixels around a pixel that it is filled from


def inpaint(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with what `mask` (bool [H, W]) covers filled by OpenCV (Telea 2004): smooth, without texture."""
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    covered = cv2.dilate(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_AREA), np.ones((3, 3), np.uint8))
    return composed(image, cv2.inpaint(small, covered, RADIUS, cv2.INPAINT_TELEA), mask)


def composed(image: np.ndarray, filled: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with what `filled`, of any size, has within the mask; the seam is one or two pixels wide."""
    large = cv2.resize(filled, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    weight = np.maximum(mask, cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1))[..., None]
    return (image * (1 - weight) + large * weight).round().clip(0, 255).astype(np.uint8)
