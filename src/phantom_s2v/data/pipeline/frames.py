"""Frames of a source video: streamed small for the stages that look at all of them, and a span of it cut out as a clip."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from phantom_s2v.data.pipeline.config import Record
from phantom_s2v.media.videos import Timed, Video, encode, resampled

CRF = 14  # of clips: nearly lossless


def fit(height: int, width: int, shorter: int = 0, longer: int = 0) -> tuple[int, int]:
    """Even (height, width) of the same shape, with at most `shorter` as the shorter side or `longer` as the longer one."""
    scale = min(1.0, shorter / min(height, width) if shorter else 1.0, longer / max(height, width) if longer else 1.0)
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def stream_frames(source_video: Record, shorter: int) -> Iterator[Timed]:
    """(seconds, uint8 [h, w, 3]) of every frame, as it is shown, the shorter side at most `shorter`."""
    return Video(Path(source_video["path"])).frames(size=fit(source_video["height"], source_video["width"], shorter=shorter))


def cut(
    source_video: Record, begins: float, ends: float, instants: tuple[float, ...], longer: int
) -> tuple[bytes, list[np.ndarray], int]:
    """The frames from `begins` to before `ends` (seconds) at the source video's mean rate: an mp4, stills, and how many frames
    it has.

    Only frames of that span are shown, whatever the rate of this part of the source video. `instants` of the stills are shares
    of the clip. Frames go straight into the encoder, so memory does not grow with the clip.
    """
    size, fps = fit(source_video["height"], source_video["width"], longer=longer), source_video["fps"]
    count = max(1, round((ends - begins) * fps))
    wanted = {round(instant * (count - 1)) for instant in instants}
    stills: dict[int, np.ndarray] = {}

    def shown() -> Iterator[np.ndarray]:
        for number, image in enumerate(resampled(_span(source_video, begins, ends, size), begins, count, fps)):
            if number in wanted:
                stills[number] = image
            yield image

    target = io.BytesIO()
    encode(target, shown(), fps, CRF)
    return target.getvalue(), [stills[number] for number in sorted(stills)], count


def _span(source_video: Record, begins: float, ends: float, size: tuple[int, int]) -> Iterator[Timed]:
    for now, image in Video(Path(source_video["path"])).frames(begins, size):
        if now >= ends - 1e-4:
            return
        yield now, image
