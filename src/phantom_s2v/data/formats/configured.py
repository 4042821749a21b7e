"""Triplets out of the TOML files in which musubi-tuner and diffusion-pipe describe a dataset.

musubi-tuner has `[general]` and `[[datasets]]`, diffusion-pipe `[[directory]]`. What concerns clips is done here; what concerns
sizes, batches and caches is a matter of `phantom encode` and of the training, and is named.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from phantom_s2v.data.clips import IMAGE_SUFFIXES, VIDEOS
from phantom_s2v.data.formats.folders import read_captioned
from phantom_s2v.data.formats.items import WAYS, Cut, Item, Reading, made, named
from phantom_s2v.data.formats.listed import list_of, read_listed
from phantom_s2v.data.triplets import Triplet
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.io import read_text
from phantom_s2v.files.untrusted import parse_toml, typed
from phantom_s2v.geometry import MAX_IMAGES

ELSEWHERE = (  # keys of both that are not about which clips there are
    "resolution", "resolutions", "size_buckets", "batch_size", "enable_bucket", "bucket_no_upscale", "enable_ar_bucket",
    "ar_buckets", "min_ar", "max_ar", "num_ar_buckets", "cache_directory", "video_clip_mode", "frame_buckets",
)  # fmt: skip
MODES = {"single_beginning": "head", "single_middle": "middle", "multiple_overlapping": "uniform"}  # of diffusion-pipe


@dataclass(frozen=True)
class Dataset:
    """A dataset of musubi-tuner's TOML. Names of fields and defaults are its own."""

    video_directory: str = ""
    video_jsonl_file: str = ""
    image_directory: str = ""
    image_jsonl_file: str = ""
    control_directory: str = ""
    mask_directory: str = ""
    caption_extension: str = ".txt"
    num_repeats: int = 1
    target_frames: tuple[int, ...] = (1,)
    frame_extraction: str = "head"
    frame_stride: int = 10
    frame_sample: int = 1
    max_frames: int = 129
    source_fps: float | None = None
    is_reg: bool = False  # of sd-scripts: regularization clips


@dataclass(frozen=True)
class Directory:
    """A directory of diffusion-pipe's TOML."""

    path: str
    mask_path: str = ""
    control_path: str = ""
    num_repeats: int = 1
    caption_prefix: str = ""


def read_toml(file: Path, folder: Path | None, reading: Reading) -> Iterator[Triplet]:
    """Triplets of a dataset's TOML; paths in it are relative to `folder`, or its own folder, and must stay inside.

    Raises DataError where it cannot be read as such, or names a folder that is not there.
    """
    root = (folder or file.parent).resolve()
    try:
        tables = parse_toml(read_text(file))
        if "datasets" in tables:
            read = [_musubi({**tables.get("general", {}), **table}, root, reading) for table in tables["datasets"]]
        elif "directory" in tables:
            shared = {key: value for key, value in tables.items() if key != "directory"}
            read = [_pipe({**shared, **table}, root, reading) for table in tables["directory"]]
        else:
            raise ValueError("it must have [[datasets]] (musubi-tuner) or [[directory]] (diffusion-pipe)")
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{file} cannot be read as the description of a dataset: {error}") from error
    return chain.from_iterable(read)


def _known(kind: Any, table: dict[str, Any], reading: Reading) -> Any:
    """A table as a dataclass; keys that are settled elsewhere are named."""
    if passed := sorted(set(table) & set(ELSEWHERE) - {"video_clip_mode", "frame_buckets"}):
        reading.notify(f"{', '.join(passed)}: not read here; see phantom encode --size and batch_size of the training")
    return typed(kind, {key: value for key, value in table.items() if key not in ELSEWHERE}, "a dataset")


def _musubi(table: dict[str, Any], root: Path, reading: Reading) -> Iterator[Triplet]:
    d = _known(Dataset, table, reading)
    if d.frame_extraction not in WAYS:
        raise ValueError(f"frame_extraction must be {', '.join(WAYS[:-1])} or {WAYS[-1]} (got {d.frame_extraction!r})")
    if min(d.frame_stride, d.frame_sample, d.max_frames, *d.target_frames) < 1:
        raise ValueError("target_frames, frame_stride, frame_sample and max_frames must be at least 1")
    if d.source_fps is not None and not d.source_fps > 0:
        raise ValueError(f"source_fps must be above 0 (got {d.source_fps})")
    lengths = () if d.frame_extraction == "full" else d.target_frames
    cut = Cut(d.frame_extraction, lengths, False, d.frame_stride, d.frame_sample, d.max_frames, d.source_fps)
    reading = replace(reading, cut=cut, repeats=d.num_repeats, regularization=d.is_reg or reading.regularization)
    lists = [name for name in (d.video_jsonl_file, d.image_jsonl_file) if name]
    folders = [name for name in (d.video_directory, d.image_directory) if name]
    if len(lists) + len(folders) != 1:
        raise ValueError("a dataset needs one of video_directory, video_jsonl_file, image_directory and image_jsonl_file")
    if lists:
        return read_listed(_inside(root, lists[0]), root, reading)
    beside = [_folder(root, name) for name in (d.control_directory, d.mask_directory) if name]
    references, masks = (beside[0] if d.control_directory else None), (beside[-1] if d.mask_directory else None)
    return _folder_items(_folder(root, folders[0]), references, masks, d.caption_extension, reading)


def _pipe(table: dict[str, Any], root: Path, reading: Reading) -> Iterator[Triplet]:
    d = _known(Directory, table, reading)
    mode, buckets = table.get("video_clip_mode", "single_beginning"), table.get("frame_buckets", [])
    if mode not in MODES:
        raise ValueError(f"video_clip_mode must be {', '.join(MODES)} (got {mode!r})")
    if not isinstance(buckets, list) or any(type(each) is not int or each < 1 for each in buckets):
        raise ValueError("frame_buckets must be a list of whole numbers of at least 1")
    cut = Cut(MODES[mode], tuple(each for each in buckets if each > 1), longest_alone=True, samples=0)  # 1 is for images
    reading = replace(reading, cut=cut, repeats=d.num_repeats, trigger=d.caption_prefix.strip() or reading.trigger)
    references = _folder(root, d.control_path) if d.control_path else None
    masks = _folder(root, d.mask_path) if d.mask_path else None
    return _folder_items(_folder(root, d.path), references, masks, ".txt", reading)


def _folder_items(
    folder: Path, references: Path | None, masks: Path | None, captions: str, reading: Reading
) -> Iterator[Triplet]:
    """Clips of a folder; with folders for references or masks, files there whose names begin with that of the clip."""
    if references is None and masks is None:
        found = list_of(folder)
        return read_listed(found, folder, reading) if found else read_captioned(folder, reading, captions)
    clips = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*VIDEOS, *IMAGE_SUFFIXES))
    views, gray = _numbered(references, IMAGE_SUFFIXES, reading), _numbered(masks, (*IMAGE_SUFFIXES, *VIDEOS), reading)

    def items() -> Iterator[Item]:
        for path in clips:
            mine = [views[path.stem, number] for number in range(-1, MAX_IMAGES) if (path.stem, number) in views]
            mask = gray.get((path.stem, -1))
            yield Item(path, folder / f"{path.stem}{captions}", named(mine, lambda _: ""), mask)

    return made(items(), reading)


def _numbered(folder: Path | None, suffixes: tuple[str, ...], reading: Reading) -> dict[tuple[str, int], Path]:
    """Files of a folder by name and number: -1 of NAME.EXT, 0 of NAME_0.EXT ...; a name may end in a number of its own."""
    found: dict[tuple[str, int], Path] = {}
    for path in sorted(folder.iterdir()) if folder else []:
        if path.suffix.lower() not in suffixes:
            reading.notify(f"{path.name}: not used; it must be {', '.join(suffixes)}")
            continue
        found[path.stem, -1] = path
        if match := re.fullmatch(r"(.+)_(\d{1,4})", path.stem):
            found[match[1], int(match[2])] = path
    return found


def _inside(root: Path, name: str) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"{name} leads out of {root.name}; give the folder that holds the files as --clips")
    return path


def _folder(root: Path, name: str) -> Path:
    path = _inside(root, name)
    if not path.is_dir():
        raise DataError(f"folder {path} does not exist")
    return path
