"""Frames of a source video: streamed small for the stages that look at all of them, and a span of it cut out as a clip."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from phantom_s2v.data.pipeline.config import Record
from phantom_s2v.media.videos import Timed, UnreadableVideoError, Video, encode, resampled

FOLLOWED = 4  # frames a second in which subjects are followed between stills
CRF, PRESET = 14, "veryfast"  # of clips: nearly lossless
Crop = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the frame
Numbered = tuple[int | None, np.ndarray]  # number of a still or, for a frame between two, None; uint8 [h, w, 3]
WHOLE: Crop = (0.0, 0.0, 1.0, 1.0)


def fit(height: int, width: int, shorter: int = 0, longer: int = 0) -> tuple[int, int]:
    """Even (height, width) of the same shape, with at most `shorter` as the shorter side or `longer` as the longer one."""
    scale = min(1.0, shorter / min(height, width) if shorter else 1.0, longer / max(height, width) if longer else 1.0)
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def stream_frames(source_video: Record, shorter: int) -> Iterator[Timed]:
    """(seconds, uint8 [h, w, 3]) of every frame, as it is shown, the shorter side at most `shorter`."""
    return Video(Path(source_video["path"])).frames(size=fit(source_video["height"], source_video["width"], shorter=shorter))


def clip_size(source_video: Record, crop: Crop, longer: int) -> tuple[int, int, tuple[slice, slice]]:
    """(height, width) at which frames are decoded, so that what `crop` leaves is at most `longer`, and that part of them."""
    left, top, right, bottom = crop
    height, width = source_video["height"], source_video["width"]
    scale = min(1.0, longer / max(height * (bottom - top), width * (right - left)))
    height, width = max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)
    rows = slice(round(top * height / 2) * 2, round(bottom * height / 2) * 2)
    return height, width, (rows, slice(round(left * width / 2) * 2, round(right * width / 2) * 2))


def stills_of(clip: Record, count: int, instants: Sequence[float], longer: int) -> list[np.ndarray]:
    """The frames at `instants`, shares of a clip of `count` frames, as `encoded` would show them; each is sought by itself."""
    height, width, part = clip_size(clip, clip["crop"], longer)
    video, stills = Video(Path(clip["path"])), []
    for number in sorted({round(instant * (count - 1)) for instant in instants}):
        latest = min(clip["begins"] + (number + 0.5) / clip["fps"], clip["ends"] - 1e-4)
        still = _on_screen(video.frames(max(clip["begins"], latest - 2 / clip["fps"]), (height, width)), latest)
        if still is None:  # one frame stays long, where the rate varies
            still = _on_screen(video.frames(clip["begins"], (height, width)), latest)
        if still is None:
            raise UnreadableVideoError(clip["name"], f"truncated before {latest:.1f} s")
        stills.append(np.ascontiguousarray(still[part]))
    return stills


def _on_screen(frames: Iterator[Timed], latest: float) -> np.ndarray | None:
    """The last frame up to a moment; None where all are later."""
    shown = None
    for now, image in frames:
        if now > latest:
            break
        shown = image
    return shown


def between(clip: Record, stills: list[np.ndarray], instants: tuple[float, ...], longer: int) -> Iterator[Numbered]:
    """The stills of a clip and, FOLLOWED a second, the frames between them, in order; read as they are asked for."""
    origin, count = clip["origin"], clip["frames"]
    height, width, part = clip_size(origin, origin["crop"], longer)
    numbers = sorted({round(instant * (count - 1)) for instant in instants})
    step = max(1, round(origin["fps"] / FOLLOWED))
    frames = _until(Video(Path(origin["path"])).frames(origin["begins"], (height, width)), origin["ends"])
    for number, image in enumerate(resampled(frames, origin["begins"], count, origin["fps"])):
        if number in numbers:
            yield numbers.index(number), stills[numbers.index(number)]
        elif number > numbers[0] and (number - numbers[0]) % step == 0:
            yield None, image[part]
        if number == numbers[-1]:
            return


def encoded(clip: Record, count: int, longer: int) -> bytes:
    """A clip as mp4: its `count` frames at the source video's mean rate, cropped; the file itself where that is the clip.

    Only frames of its span are shown, whatever the rate of this part of the source video. Frames go straight into the encoder,
    so memory does not grow with the clip.
    """
    height, width, part = clip_size(clip, clip["crop"], longer)
    path, shape = Path(clip["path"]), (clip["height"], clip["width"])
    is_all = (clip["start"], clip["stop"]) == (0, clip["count"]) and clip["crop"] == WHOLE
    if clip["playable"] and is_all and shape == (height, width):
        return path.read_bytes()
    frames = _until(Video(path).frames(clip["begins"], (height, width)), clip["ends"])
    target = io.BytesIO()
    shown = resampled(frames, clip["begins"], count, clip["fps"])
    encode(target, (image[part] for image in shown), clip["fps"], CRF, PRESET)
    return target.getvalue()


def _until(frames: Iterator[Timed], ends: float) -> Iterator[Timed]:
    for now, image in frames:
        if now >= ends - 1e-4:
            return
        yield now, image
