"""Triplets out of the metadata that others publish: Phantom-Data on Koala-36M, and OpenS2V-5M. Neither holds the videos.

Phantom-Data is a Parquet file: video_id, video_caption, and cross_pair, JSON of noun phrase -> obj_from_tgt_video and
refer_result, where a reference is a frame (a share of its clip) of the clip vid, and a box on a canvas whose longer side is 768.
Part of the boxes leave that canvas to the right, for a reason that is not published; they are passed over. Clips lie in a folder
as VID.mp4.

OpenS2V-5M is JSON of name -> metadata (path, cut, crop, captions) and annotation (boxes and run-length masks in one frame of the
cut clip): in-pair references. Of things of one name the one that fits its name best is kept.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phantom_s2v.data.clips import Notify, StoredClip, encoded, store_video
from phantom_s2v.data.pipeline.index import png
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference, check_triplet
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.io import json_items
from phantom_s2v.files.untrusted import is_file, parse_json
from phantom_s2v.geometry import MAX_SUBJECTS
from phantom_s2v.media.frames import MAX_FRAME_PIXELS
from phantom_s2v.media.videos import Video

CANVAS = 768.0  # the longer side of Phantom-Data's boxes
ROWS = 64  # of Parquet, in memory at once
SLACK = 1.01  # by how much a box may leave the frame and be cut to it
COLUMNS = ("video_caption", "cross_pair")
LONGEST_TEXT = 1 << 20  # bytes of a caption or of a row's pairs
MAX_RLE_CHARACTERS = 1 << 20  # of a mask's run lengths
BAD = (  # what an item of another layout raises
    DataError, InputError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, OSError, RecursionError
)  # fmt: skip


def read_phantom_data(
    file: Path, clips: Path, rights: Rights, left_out: Notify, notify: Notify = lambda _: None
) -> Iterator[Triplet]:
    """Triplets of koala36M_multi_ref_merged_filtered.parquet whose clips are in `clips`; the rest is named to `left_out`.

    What is converted is `notify`. Raises DataError where the file is not of that layout.
    """
    if not is_file(file):
        raise DataError(f"{file} is not a file")
    for vid, caption, pairs in _rows(file, left_out):
        try:
            yield _from_cross_pair(vid, caption, parse_json(pairs), clips, rights, left_out, notify)
        except BAD as error:
            left_out(f"{vid}: {_reason(error)}")


def _rows(file: Path, left_out: Notify) -> Iterator[tuple[str, str, str]]:
    """(video_id, caption, pairs as JSON) of a Parquet file. Raises DataError where it is not of that layout.

    Texts stay in their dictionaries until their length is known: a file of some kilobytes can repeat a long one.
    """
    try:
        names = pq.read_schema(file).names
        key = next((name for name in ("video_id", "vid") if name in names), "")
        if not key or not set(COLUMNS) <= set(names):
            raise DataError(f"{file} must have the columns video_id, {', '.join(COLUMNS)} (got {', '.join(sorted(names))})")
        parquet = pq.ParquetFile(file, read_dictionary=[key, *COLUMNS])
        for batch in parquet.iter_batches(ROWS, columns=[key, *COLUMNS]):
            columns = [batch.column(name) for name in (key, *COLUMNS)]
            if odd := [name for name, column in zip((key, *COLUMNS), columns, strict=True) if not _are_texts(column)]:
                raise DataError(f"{', '.join(odd)} in {file} must be texts of at most {LONGEST_TEXT:,} bytes")
            for row in zip(*(column.to_pylist() for column in columns), strict=True):
                if all(isinstance(value, str) for value in row):
                    yield row
                else:
                    left_out(f"{row[0]}: a value is missing")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is damaged or not a Parquet file ({str(error).splitlines()[0]})") from error


def _are_texts(column: Any) -> bool:
    """Whether a column holds texts of moderate length."""
    if not isinstance(column, pa.DictionaryArray):
        return False
    texts = column.dictionary
    kind = texts.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return False
    return not len(texts) or pc.max(pc.binary_length(texts)).as_py() <= LONGEST_TEXT  # type: ignore[attr-defined]


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__


def _from_cross_pair(
    vid: str, caption: str, pairs: dict[str, Any], clips: Path, rights: Rights, left_out: Notify, notify: Notify
) -> Triplet:
    path = _clip(clips, f"{vid}.mp4")
    references: list[TripletReference] = []
    for phrase, group_of in list(pairs.items())[:MAX_SUBJECTS]:
        for each in [r for group in group_of.get("refer_result", []) for r in group][:2]:
            try:
                box = each["bbox_loc"][0] if isinstance(each["bbox_loc"][0], list) else each["bbox_loc"]
                references.append(_from_frame(clips, each, box, phrase, rights))
            except BAD as error:
                left_out(f"{vid}, a reference of {phrase}: {_reason(error)}")
    if not references:
        raise DataError("no references are left")
    clip = store_video(path, notify)
    own = _named(rights, f"Koala-36M {vid}")
    triplet = Triplet(clip.video, caption, tuple(references), clip.fps, clip.count, clip.height, clip.width, rights=own)
    check_triplet(triplet)
    return triplet


def _from_frame(clips: Path, facts: dict[str, Any], box: list[float], phrase: str, rights: Rights) -> TripletReference:
    """A reference out of a frame of another clip of the same source video."""
    frame = _frame(_clip(clips, f"{facts['vid']}.mp4"), float(facts["frame_idx"]))
    height, width = frame.shape[:2]
    scaled = np.array(box, float) * max(height, width) / CANVAS
    if (scaled[[2, 3]] > np.array([width, height]) * SLACK).any():
        raise DataError(f"the box {box} is outside the frame")
    scores = facts.get("scores")
    score = scores[0] if isinstance(scores, list) and scores else scores
    own = _named(rights, f"Koala-36M {facts['vid']}")
    return _cropped(frame, scaled, None, phrase, "cross-pair", _measured(score), own)


def _measured(score: Any) -> float | None:
    """A published score; None where there is no number."""
    return float(score) if isinstance(score, int | float | str) and score != "" else None


def _cropped(
    frame: np.ndarray, box: np.ndarray, mask: np.ndarray | None, name: str, pairing: str, score: float | None, rights: Rights
) -> TripletReference:
    """The box of a frame as an image. Raises DataError for a box that holds nothing."""
    height, width = frame.shape[:2]
    left, top, right, bottom = np.clip(box, 0, [width, height, width, height]).round().astype(int).tolist()
    if right - left < 2 or bottom - top < 2:
        raise DataError(f"the box {[round(float(v)) for v in box]} does not overlap the frame")
    covered = b"" if mask is None else png(mask[top:bottom, left:right].astype(np.uint8) * 255)
    return TripletReference(png(frame[top:bottom, left:right]), name, pairing, (0.0, 0.0, 1.0, 1.0), covered, score, rights)


def read_opens2v(file: Path, clips: Path, rights: Rights, left_out: Notify, notify: Notify = lambda _: None) -> Iterator[Triplet]:
    """In-pair triplets of one of OpenS2V's JSON files whose clips are in `clips`; the rest is named to `left_out`.

    The file is read item by item; from where it is damaged on it is left out. What is converted is `notify`. Raises DataError
    where the file is not of that layout.
    """
    entries, count = json_items(file), 0
    while True:
        try:
            name, entry = next(entries)
            count += 1
        except StopIteration:
            return
        except InputError as error:
            if not count:
                raise DataError(f"{error}; OpenS2V's maps names to metadata and annotation") from error
            left_out(f"the rest after {count:,} items: {error}")
            return
        try:
            yield _from_annotation(name, entry, clips, rights, notify)
        except BAD as error:
            left_out(f"{name}: {_reason(error)}")


def _from_annotation(name: str, entry: dict[str, Any], clips: Path, rights: Rights, notify: Notify) -> Triplet:
    facts, annotation = entry["metadata"], entry["annotation"]
    path = _clip(clips, facts["path"])
    shown = annotation["ann_frame_data"]
    index = int(shown["ann_frame_idx"])
    clip, still = _part(path, facts, index, notify)
    masks = annotation.get("mask_annotation", {}).get(str(index), {})
    best: dict[str, tuple[float, TripletReference]] = {}
    for number, each in enumerate(shown["annotations"], 1):
        mask = decode_mask(masks[str(number)]) if str(number) in masks else None
        score, word = _measured(each.get("gme_score")), each["class_name"]
        rank = float("-inf") if score is None else score
        if word not in best or best[word][0] < rank:
            own = _named(rights, f"OpenS2V-5M {facts['path']}")
            best[word] = (rank, _cropped(still, np.array(each["bbox"], float), mask, word, "in-pair", score, own))
    chosen = sorted(best.values(), key=lambda pair: -pair[0])[:MAX_SUBJECTS]
    captions = facts.get("cap") or [facts.get("face_cap_qwen", "")]
    caption = captions[0] if isinstance(captions, list) else captions
    scores: dict[str, float | None] = {
        k: float(facts[k]) for k in ("aesthetic", "motion", "tech") if isinstance(facts.get(k), int | float)
    }
    own = _named(rights, f"OpenS2V-5M {name}")
    references = tuple(reference for _, reference in chosen)
    triplet = Triplet(
        clip.video, str(caption), references, clip.fps, clip.count, clip.height, clip.width, scores=scores, rights=own
    )
    check_triplet(triplet)
    return triplet


def decode_mask(coded: dict[str, Any]) -> np.ndarray:
    """Mask bool [H, W] of COCO's compressed run lengths: columns first, six bits a sign, differences from the run before last.

    Not by pycocotools, which gives memory that nobody wrote for runs that are too short (docs/architecture.md). Raises DataError.
    """
    (height, width), signs = coded["size"], coded["counts"]
    if type(height) is not int or type(width) is not int or min(height, width) < 1 or height * width > MAX_FRAME_PIXELS:
        raise DataError(f"a mask must have at most {MAX_FRAME_PIXELS:,} pixels (got {str((width, height))[:60]})")
    if not isinstance(signs, str) or len(signs) > MAX_RLE_CHARACTERS:
        raise DataError(f"the run lengths of a mask must be a text of at most {MAX_RLE_CHARACTERS:,} characters")
    runs: list[int] = []
    value = shift = total = 0
    for sign in signs.encode():
        bits = sign - 48
        if not 0 <= bits < 64 or shift > 30:
            raise DataError("the run lengths of a mask are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            total += runs[-1]
            if runs[-1] < 0 or total > height * width:
                break
            value = shift = 0
    if total != height * width or runs[-1] < 0:  # before anything of that size is made
        raise DataError(f"a mask must have {height * width} pixels (got {total})")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _clip(folder: Path, name: str) -> Path:
    """A clip by its name in the metadata, which never leaves the folder. Raises DataError where it is missing."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"the clip {name!r} is outside the clips folder")
    if not path.is_file():
        raise DataError(f"the clip {name} is missing")
    return path


def _part(path: Path, facts: dict[str, Any], index: int, notify: Notify) -> tuple[StoredClip, np.ndarray]:
    """The part of a clip that OpenS2V cut out, and frame `index` of it. Raises DataError where nothing is left."""
    video = Video(path)
    whole = video.facts
    start, stop = facts.get("face_cut") or facts.get("cut") or (0, whole.count)
    left, right, top, bottom = facts.get("crop") or (0, whole.width, 0, whole.height)
    place = f"cut {[start, stop]} and crop {[left, right, top, bottom]}"
    if not (0 <= start < stop and 0 <= left < right and 0 <= top < bottom and start < whole.count):
        raise DataError(f"{place} select nothing of {path.name}")
    still: list[np.ndarray] = []

    def parts() -> Iterator[np.ndarray]:
        for number, (_, frame) in enumerate(video.frames()):
            if number == stop:
                return
            if number >= start:
                image = frame[top:bottom, left:right]
                if number == start + index:
                    still.append(image)
                yield image

    if (start, left, top) == (0, 0, 0) and stop >= whole.count and right >= whole.width and bottom >= whole.height:
        clip = store_video(path, notify)
        next(islice(parts(), index, None), None)
    else:
        clip = encoded(parts(), whole.fps)
    if not still:
        raise DataError(f"{place} do not include frame {index} of {path.name}")
    return clip, still[0]


@lru_cache(maxsize=8)
def _frame(path: Path, share: float) -> np.ndarray:
    """The frame at a share of a clip, 0 to 1."""
    video = Video(path)
    wanted, frame = min(video.facts.count - 1, int(video.facts.count * share)), None
    for number, (_, frame) in enumerate(video.frames()):  # noqa: B007 - the last one where there are fewer
        if number == wanted:
            break
    if frame is None:
        raise DataError(f"{path.name} has no frames")
    return frame


def _named(rights: Rights, source: str) -> Rights:
    return Rights(rights.source or source, rights.license, rights.consent)
