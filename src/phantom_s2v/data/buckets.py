"""Sizes and lengths that clips are brought to for training: scaled, not stretched, cut to the nearest aspect, never enlarged."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, log, sqrt
from typing import Any

import cv2
import numpy as np

from phantom_s2v.data.clips import image_suffix
from phantom_s2v.data.triplets import Triplet, TripletReference, TripletStore
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.geometry import SPACE_STRIDE, TIME_STRIDE, latent_frames
from phantom_s2v.media import images
from phantom_s2v.media.videos import Video

SHOWN = ("whole", "box", "cutout")
BOX_MARGIN = 0.05  # of a box's sides, that is shown around it
ASPECTS = (1 / 1, 4 / 3, 3 / 2, 16 / 9, 21 / 9, 3 / 4, 2 / 3, 9 / 16)  # width / height, of buckets


@dataclass(frozen=True)
class Target:
    """What videos are brought to."""

    area: int  # pixels of a frame, at most
    frames: int  # at most; 4n+1
    fps: float
    multiple: int  # of a side
    references: str = "whole"  # what is shown of a reference image: whole, box (of its subject), or cutout (on white)

    def __post_init__(self) -> None:
        if self.references not in SHOWN:
            raise InputError(f"references must be {', '.join(SHOWN[:-1])} or {SHOWN[-1]} (got {self.references!r})")


@dataclass(frozen=True)
class Bucket:
    """Size that a video is brought to: scaled without stretching, cut to the aspect, and resampled in time."""

    height: int
    width: int
    frames: int


def bucket_of(height: int, width: int, frames: int, fps: float, target: Target) -> Bucket:
    """The bucket of a video: the nearest aspect of ASPECTS, never larger than the video, and as many frames as there are.

    Raises DataError for a video that is too small.
    """
    aspect = min(ASPECTS, key=lambda a: abs(log(a * height / width)))
    inside = min(width, height * aspect) ** 2 / aspect  # the largest part of that aspect
    area, m = min(target.area, inside), target.multiple
    high, wide = (int(side / m + 1e-6) * m for side in (sqrt(area / aspect), sqrt(area * aspect)))
    if not (high and wide):
        raise DataError(f"the video has {width}x{height} pixels; each side must have at least {m}")
    there = max(1, round(frames * target.fps / fps))
    count = (min(there, target.frames) - 1) // TIME_STRIDE * TIME_STRIDE + 1
    return Bucket(high, wide, count)


def fitted(frames: Iterable[np.ndarray], fps: float, bucket: Bucket, target: Target) -> np.ndarray:
    """Frames uint8 [H, W, 3] at a bucket's size, from the first one on, at the target's rate by time stamps: uint8 [F, H, W, 3].

    No more of them are taken than are needed, and one is held at a time. The last one stays where the video ends before.
    """
    wanted = (np.arange(bucket.frames) * fps / target.fps + 0.5).astype(int).tolist()
    out, last = list[np.ndarray](), np.zeros(0)
    for number, frame in enumerate(frames):
        last = frame
        if times := wanted.count(number):
            out += [_fitted(frame, bucket)] * times
        if len(out) == bucket.frames:
            break
    return np.stack(out + [_fitted(last, bucket)] * (bucket.frames - len(out)))


def _fitted(frame: np.ndarray, bucket: Bucket) -> np.ndarray:
    """A frame scaled without stretching, and the middle of it."""
    height, width = frame.shape[:2]
    scale = max(bucket.height / height, bucket.width / width)
    size = max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))
    left, top = (size[0] - bucket.width) // 2, (size[1] - bucket.height) // 2
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(frame, size, interpolation=how)[top : top + bucket.height, left : left + bucket.width]


def mask_of(triplet: Triplet, bucket: Bucket, target: Target) -> np.ndarray | None:
    """Weights of a clip's pixels, uint8 [F, H, W], as the clip is fitted; None where it has no mask."""
    if not triplet.mask:
        return None
    if image_suffix(triplet.mask):
        gray = iter([images.read_image(triplet.mask, name="its mask")[0]])
    else:
        gray = (frame for _, frame in Video(io.BytesIO(triplet.mask), "its mask").frames())
    full = (cv2.resize(frame, (triplet.width, triplet.height), interpolation=cv2.INTER_AREA) for frame in gray)
    return fitted(full, triplet.fps, bucket, target)[..., 0]


def shown(reference: TripletReference, image: np.ndarray, how: str) -> np.ndarray:
    """What is shown of a reference image: all of it where it has no box or mask to go by."""
    if how == "cutout" and reference.mask:
        alpha = images.read_image(reference.mask, name="the mask of a reference")[0][..., :1] / 255
        image = (image * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    if how == "whole" or not reference.box:
        return image
    height, width = image.shape[:2]
    left, top, right, bottom = reference.box
    across, down = BOX_MARGIN * (right - left), BOX_MARGIN * (bottom - top)
    x0, y0 = int(max(0.0, left - across) * width), int(max(0.0, top - down) * height)
    x1, y1 = ceil(min(1.0, right + across) * width), ceil(min(1.0, bottom + down) * height)
    return image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


@dataclass(frozen=True)
class Plan:
    """What is to be encoded: buckets and numbers of reference images by id, and the triplets that cannot be."""

    buckets: dict[str, Bucket]
    references: dict[str, int]
    refused: dict[str, str]  # id -> reason

    def bytes(self, channels: int, keys: Iterable[str], text: float, image: float) -> float:
        """Of latents of triplets in float16, with `text` bytes of features of a caption, and `image` more bytes a reference."""
        total = 0.0
        for key in keys:
            bucket, images_of = self.buckets[key], self.references[key]
            places = (latent_frames(bucket.frames) + images_of) * bucket.height * bucket.width / SPACE_STRIDE**2
            total += 2 * channels * places + text + image * images_of
        return total


def plan(store: TripletStore, target: Target, say: Callable[[str], object] = lambda line: None) -> Plan:
    """Buckets of all triplets of a store, by its columns alone. `say` gets a line for each: kept, trimmed or skipped, and why."""
    names = {name: name for name in ("id", "caption", "height", "width", "frames", "fps")}
    columns = names | {"references": "array_length(references)"}
    buckets, references, refused = dict[str, Bucket](), dict[str, int](), dict[str, str]()
    for batch in store.dataset.to_batches(columns=columns):
        for row in batch.to_pylist():
            key, caption = row.pop("id"), row.pop("caption")
            references[key] = row.pop("references") or 0
            name = title(key, caption)
            try:
                buckets[key] = bucket_of(**row, target=target)
                say(f"{_what(row, buckets[key], target).replace(':', f': {name}:', 1)}")
            except DataError as error:
                refused[key] = str(error)
                say(f"skipped: {name}: {error}")
    return Plan(buckets, references, refused)


def title(key: str, caption: str) -> str:
    """What people call a triplet: the beginning of its id, as an import says it, and of its caption."""
    return f"{key[:8]} ({caption[:40]})"


def _what(row: dict[str, Any], bucket: Bucket, target: Target) -> str:
    """What becomes of a clip."""
    there = max(1, round(row["frames"] * target.fps / row["fps"]))
    lost = 1 - bucket.height * bucket.width / (row["height"] * row["width"] * _scale(row, bucket) ** 2)
    frames = f"{bucket.frames} of {there} frames at {target.fps:g} fps"
    cropped = f", {lost:.0%} cropped" if lost > 0.005 else ""
    how = "trimmed" if bucket.frames < there else "kept"
    return f"{how}: {frames}, {bucket.width}x{bucket.height} of {row['width']}x{row['height']}{cropped}"


def _scale(row: dict[str, Any], bucket: Bucket) -> float:
    return max(bucket.height / row["height"], bucket.width / row["width"])
