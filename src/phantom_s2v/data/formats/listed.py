"""Triplets out of what other trainers read: lists of videos with captions, and folders of images of one subject.

| list | of | video | caption | references |
|---|---|---|---|---|
| metadata.jsonl | Hugging Face | file_name | text | references (ours): a list of images, or {subject: [images]} |
| NAME.jsonl | musubi-tuner | video_path, image_path | caption | control_path, control_path_0, ... |
| metadata.csv | DiffSynth-Studio, RefAlign | video | prompt | subject_image |
| NAME.json | VideoX-Fun | file_path | text | object_file_path: a list |

An image in place of a video is a clip of one frame.
"""

import csv
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from phantom_s2v.data.clips import StoredClip, encoded, store_image, store_video
from phantom_s2v.data.formats.exchange import IMAGE_SUFFIXES
from phantom_s2v.data.formats.intake import MAX_BYTES
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference, check_triplet
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.io import read_text, text_lines
from phantom_s2v.files.untrusted import MAX_TEXT_BYTES, check_regular, parse_json, read_regular
from phantom_s2v.geometry import MAX_IMAGES
from phantom_s2v.media.images import read_image

VIDEOS = ("file_name", "video_path", "image_path", "video", "file_path", "image")
CAPTIONS = ("text", "caption", "prompt")
REFERENCES = re.compile(r"references|object_file_path|subject_image|control_path(_\d+)?")
LISTS = (".jsonl", ".csv", ".json")
MAX_LIST_BYTES = 64 << 20  # of a .json, which is read whole
STILL_FPS = 8.0  # of a clip of one frame, which plays for an eighth of a second
Notify = Callable[[str], None]


def read_listed(file: Path, folder: Path | None, rights: Rights, left_out: Notify, notify: Notify) -> Iterator[Triplet]:
    """Triplets of a list; paths in it are relative to `folder`, or its own folder, and must stay inside.

    What cannot be read is named to `left_out`. Raises DataError where the list itself cannot be read.
    """
    root = (folder or file.parent).resolve()
    for number, row in enumerate(_rows(file), 1):
        try:
            if not isinstance(row, dict):
                raise DataError("it must be an object")
            yield _from_row(row, root, rights, notify)
        except (InputError, DataError, OSError, ValueError) as error:
            left_out(f"row {number} of {file.name}: {error}")


def _rows(file: Path) -> Iterator[Any]:
    try:
        if file.suffix == ".jsonl":
            yield from (parse_json(line) for line in text_lines(file) if line.strip())
        elif file.suffix == ".csv":
            yield from csv.DictReader(text_lines(file))
        else:
            rows = parse_json(read_regular(file, MAX_LIST_BYTES))
            if not isinstance(rows, list):
                raise ValueError("it must be a list")
            yield from rows
    except (ValueError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as a list of videos: {error}") from error


def _from_row(row: dict[str, Any], root: Path, rights: Rights, notify: Notify) -> Triplet:
    video = next((row[key] for key in VIDEOS if row.get(key)), None)
    caption = next((row[key] for key in CAPTIONS if row.get(key)), None)
    if not isinstance(video, str) or not isinstance(caption, str):
        raise DataError(f"it needs a video ({', '.join(VIDEOS)}) and a caption ({', '.join(CAPTIONS)})")
    named = list(_references(row))
    if len(named) > MAX_IMAGES:
        raise DataError(f"it must have at most {MAX_IMAGES} references (got {len(named)})")
    references = tuple(
        TripletReference(store_image(inside(root, path), notify), subject, "cross-pair", rights=rights) for subject, path in named
    )
    return _triplet(inside(root, video), caption.strip(), references, rights, notify)


def _references(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(subject, path) of a row's reference images; without a name each shows a subject of its own."""
    count = 0
    for key in sorted(key for key in row if isinstance(key, str) and REFERENCES.fullmatch(key)):
        value = row[key]
        if isinstance(value, dict):
            for subject, paths in value.items():
                yield from ((subject, str(path)) for path in (paths if isinstance(paths, list) else [paths]))
            continue
        for path in value if isinstance(value, list) else [value]:
            if path:
                count += 1
                yield f"subject {count}", str(path)


def inside(root: Path, name: str) -> Path:
    """A path that a list names, below `root`. Raises DataError for one that leads out of it."""
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise DataError(f"{name} leads out of {root.name}; give the folder that holds the files as --clips")
    check_regular(path, MAX_BYTES)
    return path


def _triplet(path: Path, caption: str, references: tuple[TripletReference, ...], rights: Rights, notify: Notify) -> Triplet:
    clip = still(path) if path.suffix.lower() in IMAGE_SUFFIXES else store_video(path, notify)
    triplet = Triplet(clip.video, caption, references, clip.fps, clip.count, clip.height, clip.width, rights=rights)
    check_triplet(triplet)
    return triplet


def still(path: Path) -> StoredClip:
    """An image as a clip of one frame."""
    return encoded(iter([read_image(path)[0]]), STILL_FPS)


def read_subject(folder: Path, subject: str, rights: Rights, left_out: Notify, notify: Notify) -> Iterator[Triplet]:
    """Triplets of a folder of images of one subject: each image is a clip of one frame whose references are others of them.

    The caption of NAME.png is NAME.txt, or "A photo of SUBJECT.". Raises DataError for fewer than two images.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
    if len(files) < 2:
        raise DataError(f"{folder} must contain at least two images of the subject (got {len(files)})")
    for place, path in enumerate(files):
        try:
            check_regular(path, MAX_BYTES)
            words = path.with_suffix(".txt")
            if words.exists():
                check_regular(words, MAX_TEXT_BYTES)
            caption = read_text(words).strip() if words.exists() else f"A photo of {subject}."
            others = islice((files[(place + step) % len(files)] for step in range(1, len(files))), MAX_IMAGES)
            references = tuple(
                TripletReference(store_image(other, notify), subject, "cross-pair", rights=rights) for other in others
            )
            yield _triplet(path, caption, references, rights, notify)
        except (InputError, DataError, OSError, UnicodeDecodeError) as error:
            left_out(f"{path.name}: {error}")
