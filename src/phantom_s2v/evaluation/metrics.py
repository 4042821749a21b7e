"""Metrics, one function each: range, direction, source and what it misses stand in the docstring."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from phantom_s2v.data.looks import nearest_colour
from phantom_s2v.evaluation.regions import border_colour, regions

LEAST_TRAVEL = 0.05  # of the side: less is no direction


def direction(video: np.ndarray) -> str | None:
    """Where the largest region of uint8 [F, H, W, 3] goes: left, right, up or down; None where it hardly moves.

    From the mean centre of the first quarter to that of the last. Misses motion that returns.
    """
    centres = [found[0].centre for frame in video if (found := regions(frame, 1))]
    if len(centres) < 4:
        return None
    quarter = max(1, len(centres) // 4)
    dy, dx = np.mean(centres[-quarter:], 0) - np.mean(centres[:quarter], 0)
    if max(abs(dy), abs(dx)) < LEAST_TRAVEL * video.shape[1]:
        return None
    return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")


def background(video: np.ndarray) -> str:
    """Name of the colour nearest to the border over all frames. Misses texture and grade."""
    return nearest_colour(np.median([border_colour(frame) for frame in video], 0))


def motion_fb(frames: np.ndarray) -> float:
    """Motion amplitude as OpenS2V computes it (facts 5.4), 0 and more: the absolute value of the mean Farneback flow in pixels.

    `frames` are RGB, uint8 [F, H, W, 3]. The mean is signed and over both components, so it misses motion whose directions
    cancel, and tells no direction. Raises ValueError for fewer than two frames.
    """
    import cv2

    if len(frames) < 2:
        raise ValueError(f"motion needs two frames, and there are {len(frames)}")
    # The weights of blue and red are exchanged, since OpenS2V hands RGB to a conversion from BGR; kept, to agree with it.
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_BGR2GRAY) for frame in frames]
    height = int(frames.shape[1] * 16 / frames.shape[2])
    flows = []
    for before, after in pairwise(grey):
        flow = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
        flows.append(cv2.resize(flow, (16, height), interpolation=cv2.INTER_AREA))
    return float(abs(np.mean(flows, 0).mean()))


def psnr(video: np.ndarray, other: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal to noise ratio in dB, higher is nearer; within `mask` (bool, [F, H, W]) where given."""
    error = ((video.astype(float) - other.astype(float)) / 255) ** 2
    mean = error.mean() if mask is None else error[mask].mean()
    return float(-10 * np.log10(max(mean, 1e-10)))


def box_masks(masks: np.ndarray) -> np.ndarray:
    """The bounding box of a mask in every frame, bool [F, H, W]: what a crop of the subject holds."""
    boxes = np.zeros_like(masks, bool)
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return boxes


def bootstrap(hits: Sequence[float], seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Mean and its 95% percentile interval over resampled cases; (nan, nan, nan) of nothing."""
    values = np.asarray(hits, float)
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    means = np.random.default_rng(seed).choice(values, (draws, len(values))).mean(1)
    return float(values.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
