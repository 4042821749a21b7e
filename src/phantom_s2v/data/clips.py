"""Clips and images of others as a store keeps them: what players and trainers show as it is, and everything else converted."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from phantom_s2v.errors import DataError
from phantom_s2v.media import images
from phantom_s2v.media.videos import Video, encode, resampled

CRF = 14  # of what is converted: nearly lossless
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SUFFIX = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")  # an MPO is a JPEG with more behind it, and Pillow opens it as one
Notify = Callable[[str], None]


@dataclass(frozen=True)
class StoredClip:
    """A clip's mp4 and what it holds."""

    video: bytes
    fps: float
    count: int  # frames
    height: int  # pixels
    width: int


def store_video(path: Path, notify: Notify) -> StoredClip:
    """A video file as it is where it is H.264 in MP4 with nothing to convert, else encoded as it is shown, at its mean rate.

    What is converted is `notify` in one sentence. Every frame is decoded: raises UnreadableVideoError for what is broken.
    """
    video = Video(path)
    facts = video.facts
    if facts.playable:
        count = sum(1 for _ in video.frames(size=(facts.height // 8 + 2, facts.width // 8 + 2)))
        return StoredClip(path.read_bytes(), facts.fps, count, facts.height, facts.width)
    notify(f"{path.name}: {'; '.join([*facts.notices, 're-encoded as H.264 MP4'])}")
    frames = (image for _, image in video.frames())
    even = facts.steady and facts.ordered
    return encoded(frames if even else resampled(video.frames(), 0.0, facts.count, facts.fps), facts.fps)


def store_cut(path: Path, start: int, count: int, fps: float) -> StoredClip:
    """Frames `start` to `start` + `count` of a video, each of them shown for 1 / `fps` seconds, encoded as mp4."""
    video = Video(path)
    facts = video.facts
    if facts.steady and facts.ordered:
        begins = start / facts.fps if facts.fps else 0.0
        frames = (image for _, image in video.frames(max(0.0, begins - 0.25 / (facts.fps or 1.0))))
    else:  # at its mean rate, so that a frame has a place
        frames = islice(resampled(video.frames(), 0.0, start + count, facts.fps), start, None)
    return encoded(islice(frames, count), fps)


def frame_count(path: Path) -> int:
    """Frames of a video, decoded: what a file says of itself may be wrong."""
    return sum(1 for _ in Video(path).frames(size=(16, 16)))


def store_mask(path: Path) -> bytes:
    """An image as a PNG of one channel, in which gray is a weight."""
    target = io.BytesIO()
    Image.fromarray(images.read_image(path)[0]).convert("L").save(target, "PNG")
    return target.getvalue()


def encoded(frames: Iterator[np.ndarray], fps: float) -> StoredClip:
    """Frames, uint8 [H, W, 3], as an mp4. Raises DataError where there is none."""
    target, count, shape = io.BytesIO(), 0, (0, 0)

    def counted() -> Iterator[np.ndarray]:
        nonlocal count, shape
        for image in frames:
            count, shape = count + 1, image.shape[:2]
            yield image

    encode(target, counted(), fps or 25.0, CRF)
    if not count:
        raise DataError("no frames are left")
    return StoredClip(target.getvalue(), fps, count, shape[0] // 2 * 2, shape[1] // 2 * 2)


def store_image(path: Path, notify: Notify) -> bytes:
    """An image file as it is where it is PNG, JPEG or WebP with nothing to convert, else as the PNG of what it shows."""
    image, notices = images.read_image(path)
    content = path.read_bytes()
    if not notices and image_suffix(content):
        return content
    notify("; ".join(notices) or f"{path.name}: stored as PNG")
    target = io.BytesIO()
    Image.fromarray(image).save(target, "PNG")
    return target.getvalue()


def image_suffix(content: bytes) -> str:
    """The suffix of an image's format, "" where it is none that a store holds."""
    try:
        with images.open_image(io.BytesIO(content), IMAGE_FORMATS) as image:
            return SUFFIX.get(str(image.format), "")
    except UnidentifiedImageError:
        return ""
