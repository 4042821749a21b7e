"""Frames of a film: streamed small for the stages that look at all of them, and a span of it cut out as a clip."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from phantom_s2v.data.pipeline.config import Record
from phantom_s2v.media import open_video


def fit(height: int, width: int, shorter: int = 0, longer: int = 0) -> tuple[int, int]:
    """Even (height, width) of the same shape, with at most `shorter` as the shorter side or `longer` as the longer one."""
    scale = min(1.0, shorter / min(height, width) if shorter else 1.0, longer / max(height, width) if longer else 1.0)
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def stream_frames(film: Record, shorter: int) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, uint8 [h, w, 3]) of every frame, upright, the shorter side at most `shorter`."""
    height, width = fit(film["height"], film["width"], shorter=shorter)
    with open_video(Path(film["path"])) as container:
        for frame in container.decode(container.streams.video[0]):
            yield _seconds(frame), _upright(frame, height, width)


def _seconds(frame: av.VideoFrame) -> float:
    return float(frame.time) if frame.time is not None else 0.0


def _upright(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """RGB at a size, turned as the film's flag says."""
    quarter = frame.rotation // 90 % 4
    if quarter % 2:
        height, width = width, height
    small = frame.reformat(width, height, "rgb24", interpolation="AREA")
    return np.rot90(small.to_ndarray(), quarter) if quarter else small.to_ndarray()


def cut(film: Record, begins: float, count: int, instants: tuple[float, ...], longer: int) -> tuple[bytes, list[np.ndarray]]:
    """`count` frames at the film's mean rate from `begins` seconds on: an mp4, and the stills at `instants` (shares of it).

    Frames go straight into the encoder, so memory does not grow with the clip. Where the rate varies, each moment shows the frame
    that was on the screen.
    """
    height, width = fit(film["height"], film["width"], longer=longer)
    wanted = {round(instant * (count - 1)) for instant in instants}
    stills: dict[int, np.ndarray] = {}
    target = io.BytesIO()
    rate = Fraction(film["fps"]).limit_denominator(1001 * 60)
    with av.open(target, "w", format="mp4") as out:
        encoder = out.add_stream("libx264", rate=rate, options={"crf": "14", "threads": "1", "x264-params": "mbtree=0"})
        encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
        for number, picture in enumerate(_resampled(film, begins, count, height, width)):
            if number in wanted:
                stills[number] = picture
            out.mux(encoder.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(encoder.encode())
    return target.getvalue(), [stills[number] for number in sorted(stills)]


def _resampled(film: Record, begins: float, count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """The frame on the screen at each of `count` moments."""
    step, given, shown = 1 / film["fps"], 0, None
    with open_video(Path(film["path"])) as container:
        stream = container.streams.video[0]
        if begins > 1 and stream.time_base:
            container.seek(int(begins / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            time = _seconds(frame) - begins
            while shown is not None and given < count and time > (given + 0.5) * step:
                yield shown
                given += 1
            if given == count:
                return
            if time > -0.5 * step:
                shown = _upright(frame, height, width)
        while shown is not None and given < count:
            yield shown
            given += 1
