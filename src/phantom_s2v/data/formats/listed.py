"""Triplets out of lists of videos with captions, as other trainers read them.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phantom_s2v.data.formats.intake import MAX_BYTES
from phantom_s2v.data.formats.items import Item, Reading, made
from phantom_s2v.data.triplets import Triplet
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.io import text_lines
from phantom_s2v.files.untrusted import check_regular, parse_json, read_regular

VIDEOS = ("file_name", "video_path", "image_path", "video", "file_path", "image")
CAPTIONS = ("text", "caption", "prompt")
REFERENCES = re.compile(r"references|object_file_path|subject_image|control_path(_\d+)?")
MASKS = ("mask", "mask_path")
LISTS = (".jsonl", ".csv", ".json")
MAX_LIST_BYTES = 64 << 20  # of a .json, which is read whole


def read_listed(file: Path, folder: Path | None, reading: Reading) -> Iterator[Triplet]:
    """Triplets of a list; paths in it are relative to `folder`, or its own folder, and must stay inside.

    What cannot be read is named to `reading.left_out`. Raises DataError where the list itself cannot be read.
    """
    return made(_items(file, (folder or file.parent).resolve(), reading), reading)


def list_of(folder: Path) -> Path | None:
    """The list of a folder in the layout of Hugging Face or DiffSynth-Studio: metadata.jsonl or metadata.csv."""
    return next((folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()), None)


def _items(file: Path, root: Path, reading: Reading) -> Iterator[Item]:
    for number, row in enumerate(_rows(file), 1):
        try:
            if not isinstance(row, dict):
                raise DataError("it must be an object")
            yield _from_row(row, root)
        except (InputError, DataError, OSError, ValueError) as error:
            reading.left_out(f"row {number} of {file.name}: {error}")


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


def _from_row(row: dict[str, Any], root: Path) -> Item:
    video = next((row[key] for key in VIDEOS if row.get(key)), None)
    caption = next((row[key] for key in CAPTIONS if row.get(key)), None)
    if not isinstance(video, str) or not isinstance(caption, str):
        given = ", ".join(str(key)[:40] for key, value in row.items() if value) or "nothing"
        raise DataError(f"it needs a video ({', '.join(VIDEOS)}) and a caption ({', '.join(CAPTIONS)}), and has {given}")
    references = tuple((subject, inside(root, path)) for subject, path in _references(row))
    mask = next((inside(root, str(row[key])) for key in MASKS if row.get(key)), None)
    return Item(inside(root, video), caption, references, mask)


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
