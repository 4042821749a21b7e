"""Encoded triplets: latents of videos and references, image tokens and text features, in a Lance dataset. Training reads it.

One row a triplet, by its id. The dataset carries the hash of everything that made it: the model's parts, size, rate and code.
Legend: C latent channels, T latent time, h w latent grid, r reference images, k image tokens, L text tokens, D width.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from math import log, sqrt
from pathlib import Path
from typing import Any

import cv2
import lance
import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load, save

from phantom_s2v.data.loader import Sample, decode
from phantom_s2v.data.stores import LanceStore
from phantom_s2v.data.triplets import Triplet, TripletStore
from phantom_s2v.errors import DataError
from phantom_s2v.files.io import check_folder, check_name, writing_folder
from phantom_s2v.files.reuse import as_json, differences, spelled
from phantom_s2v.files.untrusted import parse_json
from phantom_s2v.geometry import TIME_STRIDE, VideoSize, latent_frames
from phantom_s2v.models.autoencoder import encode, to_pixels

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("height", pa.int32()),  # pixels, of the encoded video
        ("width", pa.int32()),
        ("frames", pa.int32()),
        ("subjects", pa.int32()),  # number of them
        ("caption", pa.string()),
        ("tensors", pa.large_binary()),  # safetensors
    ]
)
ASPECTS = (1 / 1, 4 / 3, 3 / 2, 16 / 9, 21 / 9, 3 / 4, 2 / 3, 9 / 16)  # width / height, of buckets
ROWS, BYTES = 16, 64 << 20  # written at once, whichever comes first
ORIGIN = b"origin"


@dataclass(frozen=True)
class Target:
    """What videos are brought to."""

    area: int  # pixels of a frame, at most
    frames: int  # at most; 4n+1
    fps: float
    multiple: int  # of a side


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


def fitted(video: np.ndarray, fps: float, bucket: Bucket, target: Target) -> np.ndarray:
    """A video uint8 [F, H, W, 3] at a bucket's size, from its first frame on, at the target's rate by time stamps."""
    index = np.minimum((np.arange(bucket.frames) * fps / target.fps + 0.5).astype(int), len(video) - 1)
    height, width = video.shape[1:3]
    scale = max(bucket.height / height, bucket.width / width)
    size = max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))
    left, top = (size[0] - bucket.width) // 2, (size[1] - bucket.height) // 2
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    frames = (cv2.resize(video[i], size, interpolation=how) for i in index)
    return np.stack([frame[top : top + bucket.height, left : left + bucket.width] for frame in frames])


@torch.no_grad()
def encode_sample(pipe: Any, sample: Sample, fps: float, bucket: Bucket, target: Target) -> dict[str, torch.Tensor]:
    """Tensors of a triplet in float16: latents [C, T, h, w], text [L, D], own ones of references, and subjects int64 [r]."""
    video = fitted(sample.video, fps, bucket, target)
    pixels = to_pixels(video)[None].to(pipe.vae.device, pipe.vae.dtype)
    tensors = {"latents": encode(pipe.vae, pixels)[0], "text": pipe.encode_texts([sample.caption], 512)[0]}
    if sample.references:
        tensors |= pipe.reference_tensors(list(sample.references), bucket.height, bucket.width)
    halves = {name: value.half().cpu().contiguous() for name, value in tensors.items()}
    if not all(bool(value.isfinite().all()) for value in halves.values()):
        raise DataError("its features are not finite")
    return {**halves, "subjects": torch.tensor(sample.subjects, dtype=torch.int64)}


class EncodedStore(LanceStore):
    """Encoded triplets in a Lance dataset. A batch of rows is written whole or not at all."""

    def __init__(self, path: Path, origin: dict[str, Any] | None = None) -> None:
        """Open the dataset at `path`. Raises DataError where it is none, or was made otherwise than `origin` says."""
        if not path.is_dir():
            raise DataError(f"dataset {path} does not exist")
        self.path = path
        try:
            self.dataset = lance.dataset(str(path))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a dataset of encoded triplets; phantom encode makes one") from error
        metadata = self.dataset.schema.metadata or {}
        if self.dataset.schema.names != SCHEMA.names or ORIGIN not in metadata:
            raise DataError(f"{path} is not a dataset of encoded triplets; phantom encode makes one")
        self.origin: dict[str, Any] = parse_json(metadata[ORIGIN])
        if origin is not None and (changed := differences(self.origin, as_json(origin))):
            raise DataError(f"{path} was encoded otherwise: {spelled(changed)}; choose another --out")

    @classmethod
    def create(cls, path: Path, origin: dict[str, Any]) -> "EncodedStore":
        """The dataset at `path`, made empty where there is none."""
        if not path.exists():
            check_name(path)
            check_folder(path.absolute().parent)
            schema = SCHEMA.with_metadata({ORIGIN: json.dumps(as_json(origin)).encode()})
            with writing_folder(path) as scratch:
                lance.write_dataset(schema.empty_table(), str(scratch))
        return cls(path, origin)

    def sizes(self) -> list[tuple[Any, ...]]:
        """(id, height, width, frames, subjects) of all rows."""
        names = ["id", "height", "width", "frames", "subjects"]
        with self._reading():
            table = self.dataset.to_table(columns=names)
        return list(zip(*(table[name].to_pylist() for name in names), strict=True))

    def take(self, rows: list[int]) -> list[dict[str, torch.Tensor]]:
        """Tensors of rows, in the order asked for."""
        with self._reading():
            return [load(blob) for blob in self.dataset.take(rows, columns=["tensors"])["tensors"].to_pylist()]

    def write(self, rows: Iterable[dict[str, Any]]) -> int:
        """Append rows whose ids are not there; returns how many."""
        count, held = 0, list[dict[str, Any]]()
        for row in rows:
            held.append(row)
            if len(held) == ROWS or sum(len(each["tensors"]) for each in held) > BYTES:
                count += self._append(held)
                held = []
        return count + self._append(held)

    def remove(self, ids: Iterable[str]) -> int:
        """Delete rows; returns how many."""
        wanted = sorted(ids)
        with self._writing():
            for start in range(0, len(wanted), 1000):
                self.dataset.delete(f"id IN ({', '.join(repr(each) for each in wanted[start : start + 1000])})")
        return len(wanted)

    def _append(self, rows: list[dict[str, Any]]) -> int:
        if rows:
            with self._writing():
                table = pa.Table.from_pylist(rows, schema=self.dataset.schema)
                self.dataset = lance.write_dataset(table, str(self.path), mode="append")
        return len(rows)


@dataclass(frozen=True)
class Plan:
    """What is to be encoded: buckets by id, and the triplets that cannot be."""

    buckets: dict[str, Bucket]
    refused: dict[str, str]  # id -> reason

    def gigabytes(self, channels: int, references: int = 2) -> float:
        """Of latents in float16, with so many references a triplet."""
        places = ((latent_frames(b.frames) + references) * b.height * b.width / 64 for b in self.buckets.values())
        return 2 * channels * sum(places) / 1e9


def plan(store: TripletStore, target: Target) -> Plan:
    """Buckets of all triplets of a store, by its columns alone."""
    names = ["id", "height", "width", "frames", "fps"]
    table = store.dataset.to_table(columns=names)
    buckets, refused = dict[str, Bucket](), dict[str, str]()
    for row in table.to_pylist():
        key = row.pop("id")
        try:
            buckets[key] = bucket_of(**row, target=target)
        except DataError as error:
            refused[key] = str(error)
    return Plan(buckets, refused)


def encode_store(
    store: TripletStore,
    out: EncodedStore,
    pipe: Any,
    target: Target,
    planned: Plan,
    done: Callable[[int], None],
    refuse: Callable[[str, str], None],
) -> int:
    """Encode what `out` lacks, and remove from it what the store no longer has; returns how many were encoded.

    `done(count)` is called after each triplet that was looked at, `refuse(id, reason)` for each that cannot be encoded.
    """
    there = set(out.ids())
    out.remove(there - planned.buckets.keys())

    def rows() -> Iterator[dict[str, Any]]:
        for row, key in enumerate(store.ids()):
            if key in planned.buckets and key not in there:
                try:
                    yield _row(pipe, store.take([row])[0], planned.buckets[key], target)
                except DataError as error:
                    refuse(key, str(error))
            done(row + 1)

    return out.write(rows())


def _row(pipe: Any, triplet: Triplet, bucket: Bucket, target: Target) -> dict[str, Any]:
    sample = decode(triplet)
    if len(sample.video) != triplet.frames:  # a file says more than it holds
        frames, height, width = sample.video.shape[:3]
        bucket = bucket_of(height, width, frames, triplet.fps, target)
    tensors = encode_sample(pipe, sample, triplet.fps, bucket, target)
    VideoSize(bucket.frames, bucket.height, bucket.width)
    subjects = len(set(sample.subjects))
    return {"id": triplet.id, **asdict(bucket), "subjects": subjects, "caption": triplet.caption, "tensors": save(tensors)}
