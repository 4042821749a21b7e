"""Where the subjects are in a frame: the regions that differ from the border's color. The same cut for every video."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import ndimage

from phantom_s2v.data.detectors.objects import box_of
from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.data.pipeline.subjects import cutout
from phantom_s2v.media.images import border

DIFFERENCE = 36  # of 255, largest channel: what counts as not the background
SMALLEST = 0.012  # share of the frame


@dataclass(frozen=True)
class Region:
    """A subject in one frame: its mask bool [H, W] and its center (y, x) in pixels."""

    mask: np.ndarray
    center: tuple[float, float]


def border_color(frame: np.ndarray) -> np.ndarray:
    """Median RGB of the outermost two pixels of uint8 [H, W, 3]."""
    return np.median(border(frame, 2), 0)


def regions(frame: np.ndarray, count: int) -> list[Region]:
    """The `count` largest regions that differ from the border, largest first; fewer where there are fewer."""
    different = np.abs(frame.astype(float) - border_color(frame)).max(-1) > DIFFERENCE
    closed = ndimage.binary_closing(np.pad(different, 2), iterations=1)[2:-2, 2:-2]
    filled = ndimage.binary_fill_holes(closed | different)
    labels, label_count = cast(tuple[np.ndarray, int], ndimage.label(filled))
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, label_count + 1))
    chosen = [i for i in np.argsort(-sizes)[:count] if sizes[i] >= SMALLEST * labels.size]
    return [Region(labels == i + 1, tuple(map(float, ndimage.center_of_mass(labels == i + 1)))) for i in chosen]  # type: ignore[arg-type]


def cut_out(frame: np.ndarray, region: Region) -> np.ndarray:
    """The region on a white square that it fills, uint8 [s, s, 3]."""
    return cutout(frame, Detection(box_of(region.mask), region.mask))
