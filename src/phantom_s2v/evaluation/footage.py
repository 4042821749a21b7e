"""What a score sees of a video, in two passes, so that its length takes no memory.

The first pass leaves some numbers of each frame. Then it is known how many frames there are, and the second one picks those that
the networks look at, and measures the flow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np

from phantom_s2v.evaluation.instruments import Instruments
from phantom_s2v.evaluation.metrics import measures
from phantom_s2v.media.images import evenly_spaced
from phantom_s2v.media.videos import Timed

WORKING_SIDE = 128  # pixels a side of what all but subjects, sharpness and flow are measured on
FRAMES = 10  # looked at by networks, evenly spaced in time (Phantom, section 4.1)
FLOWS = 600  # pairs of successive frames whose flow is measured; of a longer video evenly spaced ones
AT_ONCE = 129  # frames that go through an autoencoder at once
SHOWN_FLASHES = 2  # frames of a flash that are kept for a page


class Source(Protocol):
    """A video that can be gone through twice, such as videos.Video."""

    def frames(self) -> Iterator[Timed]:
        """(time, uint8 [H, W, 3]) of every frame."""
        ...


@dataclass(frozen=True)
class Footage:
    """Of a video the numbers of all frames and the images of a few."""

    count: int
    small: measures.OverTime  # at WORKING_SIDE
    looked_at: list[int]  # numbers of the frames that networks look at
    stills: dict[int, np.ndarray]  # number of a frame -> uint8 [H, W, 3]: those, and of flashes the first
    motion_fb: float  # nan of a single frame
    reconstruction: float = float("nan")  # dB
    notes: list[str] = field(default_factory=list)

    @property
    def views(self) -> list[np.ndarray]:
        """The frames that networks look at."""
        return [self.stills[i] for i in self.looked_at]


def watch(video: np.ndarray | Source, references: Sequence[np.ndarray], tools: Instruments) -> Footage:
    """Go through a video, uint8 [F, H, W, 3] or a source of frames. `references` are those that may flash up in it."""
    small = measures.over_time(((now, shrunk(frame)) for now, frame in _timed(video)), references)
    count, looked_at = len(small.seconds), moments(small.seconds, FRAMES)
    flashes = [i for each in small.similarity for i in measures.reference_flash(each, tools.limits.flashed)[1][:SHOWN_FLASHES]]
    stills, flow = dict[int, np.ndarray](), measures.Flow()
    pairs = set(evenly_spaced(count - 1, FLOWS)) if count > 1 else set[int]()
    through = _Through(tools) if tools.reconstruct and tools.reconstruct_videos else None
    wanted = {*looked_at, *flashes}
    for number, (_, frame) in enumerate(_timed(video)):
        if number in wanted:
            stills[number] = frame
        flow.add(frame, number - 1 in pairs, number in pairs)
        if through:
            through.add(frame)
    notes = [f"motion_fb is of {FLOWS} evenly spaced pairs of frames"] if count - 1 > FLOWS else []
    return Footage(count, small, looked_at, stills, flow.mean, through.psnr if through else float("nan"), notes)


def _timed(video: np.ndarray | Source) -> Iterator[tuple[float, np.ndarray]]:
    return enumerate(video) if isinstance(video, np.ndarray) else video.frames()  # type: ignore[return-value]


def moments(seconds: np.ndarray, count: int) -> list[int]:
    """Numbers of the frames that are nearest to `count` moments, evenly spaced from the first frame's to the last one's."""
    wanted = np.linspace(seconds[0], seconds[-1], min(count, len(seconds)))
    after = np.clip(np.searchsorted(seconds, wanted), 1, max(1, len(seconds) - 1))
    if len(seconds) == 1:
        return [0]
    nearest = np.where(wanted - seconds[after - 1] <= seconds[after] - wanted, after - 1, after)
    return sorted(set(nearest.tolist()))


def shrunk(frame: np.ndarray, side: int = WORKING_SIDE) -> np.ndarray:
    """A frame, uint8 [H, W, 3], with at most `side` pixels on its shorter side."""
    scale = side / min(frame.shape[:2])
    if scale >= 1:
        return frame
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


class _Through:
    """The error of frames that go through an autoencoder, some of them at a time."""

    def __init__(self, tools: Instruments) -> None:
        assert tools.reconstruct
        self.reconstruct, self.held = tools.reconstruct, list[np.ndarray]()
        self.error, self.values = 0.0, 0

    def add(self, frame: np.ndarray) -> None:
        """Take in the next frame."""
        self.held.append(frame)
        if len(self.held) == AT_ONCE:
            self._measure()

    def _measure(self) -> None:
        original, decoded = self.reconstruct(np.stack(self.held))
        self.error += float(((original.astype(float) - decoded) ** 2).sum())
        self.values, self.held = self.values + original.size, []

    @property
    def psnr(self) -> float:
        """In dB, of all frames that were taken in."""
        if self.held:
            self._measure()
        return measures.decibels(self.error / self.values)
