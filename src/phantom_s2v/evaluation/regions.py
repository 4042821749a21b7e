"""Where the subjects are in a frame: the regions that differ from the border's colour. The same cut for every video."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import ndimage

DIFFERENCE = 36  # of 255, largest channel: what counts as not the background
SMALLEST = 0.012  # share of the frame
WHITE = 255


@dataclass(frozen=True)
class Region:
    """A subject in one frame: its mask bool [H, W] and its centre (y, x) in pixels."""

    mask: np.ndarray
    centre: tuple[float, float]


def border_colour(frame: np.ndarray) -> np.ndarray:
    """Median RGB of the outermost two pixels of uint8 [H, W, 3]."""
    ring = np.concatenate(
        [frame[:2].reshape(-1, 3), frame[-2:].reshape(-1, 3), frame[:, :2].reshape(-1, 3), frame[:, -2:].reshape(-1, 3)]
    )
    return np.median(ring, 0)


def regions(frame: np.ndarray, count: int) -> list[Region]:
    """The `count` largest regions that differ from the border, largest first; fewer where there are fewer."""
    different = np.abs(frame.astype(float) - border_colour(frame)).max(-1) > DIFFERENCE
    closed = ndimage.binary_closing(np.pad(different, 2), iterations=1)[2:-2, 2:-2]
    filled = ndimage.binary_fill_holes(closed | different)
    labels, found = cast(tuple[np.ndarray, int], ndimage.label(filled))
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, found + 1))
    chosen = [i for i in np.argsort(-sizes)[:count] if sizes[i] >= SMALLEST * labels.size]
    return [Region(labels == i + 1, tuple(map(float, ndimage.center_of_mass(labels == i + 1)))) for i in chosen]  # type: ignore[arg-type]


def cut_out(frame: np.ndarray, region: Region) -> np.ndarray:
    """The region on a white square that it fills, uint8 [s, s, 3]."""
    rows, columns = np.flatnonzero(region.mask.any(1)), np.flatnonzero(region.mask.any(0))
    top, left = rows[0], columns[0]
    height, width = rows[-1] - top + 1, columns[-1] - left + 1
    side = max(height, width)
    square = np.full((side, side, 3), WHITE, np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    part = np.where(region.mask[..., None], frame, WHITE)[top : top + height, left : left + width]
    square[y : y + height, x : x + width] = part
    return square
