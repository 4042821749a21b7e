"""Clips in a folder as people keep them: each video or captioned image with files of its name beside it.

| file | is |
|---|---|
| NAME.mp4 or another video, or NAME.png or another image beside a NAME.txt | a clip, of an image one of one frame |
| NAME.txt | its caption |
| NAME.SUBJECT.png | a reference image of that subject, whose name has no dot |
| NAME.ref.png, NAME.ref1.png ... | a reference image, each of a subject of its own |
| NAME/SUBJECT.png, NAME/SUBJECT_2.png, NAME/1.png ... | reference images; without a name each is of a subject of its own |
| NAME.mask.mp4, NAME.mask.png | its mask: what is white counts in the loss, what is black does not, gray is a weight |
"""

import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from phantom_s2v.data.clips import IMAGE_SUFFIXES, VIDEOS
from phantom_s2v.data.formats.intake import MAX_BYTES
from phantom_s2v.data.formats.items import Item, Notify, Reading, made, named
from phantom_s2v.data.triplets import Triplet
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.io import ours
from phantom_s2v.files.untrusted import check_regular
from phantom_s2v.geometry import MAX_IMAGES
from phantom_s2v.media.images import read_image

UNNAMED = re.compile(r"(ref|image|img|reference)?[-_ ]?\d*", re.IGNORECASE)
UNREAD = (
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".psd",
    ".dng",
    ".cr2",
    ".nef",
    ".arw",
    ".svg",
    ".wmv",
    ".flv",
    ".3gp",
    ".m2ts",
    ".mts",
)
VIEW = re.compile(r"[-_ ]?\d+$")  # the number of a view behind a subject's name


def read_captioned(folder: Path, reading: Reading, captions: str = ".txt") -> Iterator[Triplet]:
    """Triplets of a folder of clips with a caption beside each, NAME`captions`.

    What cannot be read, and images that belong to no clip, are named to `reading.left_out`. Raises DataError for a folder without
    clips.
    """
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist")
    names = _names(folder)
    clips = _clips(names, captions)
    if not clips:
        raise DataError(
            f"{folder} contains no videos (supported: {', '.join(VIDEOS)}), and no images with a caption NAME{captions}; "
            "for images of one subject give its name (--subject)"
        )
    beside, masks = _by_clip(clips, names, captions, reading.left_out)

    def items() -> Iterator[Item]:
        for name in clips:
            stem = Path(name).stem
            mask = folder / masks[stem] if stem in masks else None
            yield Item(folder / name, folder / f"{stem}{captions}", _references(folder, stem, beside), mask)

    return made(items(), reading)


def has_clips(folder: Path) -> bool:
    """Whether a folder holds videos or images, and not an export, in which each video has a .json."""
    paths = [Path(name) for name in _names(folder)]
    described = {path.stem for path in paths if path.suffix.lower() == ".json"}
    media = [path for path in paths if path.suffix.lower() in (*VIDEOS, *IMAGE_SUFFIXES)]
    return bool(media) and not any(path.stem in described for path in media) and not any(path.suffix == ".tar" for path in paths)


def _names(folder: Path) -> list[str]:
    """Names of a folder's files, without hidden ones and contact sheets."""
    files = (path for path in folder.iterdir() if (not path.is_dir() or path.is_symlink()) and not _is_sheet(path))
    return sorted(path.name for path in files if not path.name.startswith("."))


def _clips(names: list[str], captions: str) -> list[str]:
    """Names of videos, and of images that have a caption; masks are no clips."""
    paths, there = [Path(name) for name in names], set(names)
    stems = {path.stem for path in paths if path.suffix.lower() in VIDEOS}
    videos = [path.name for path in paths if path.suffix.lower() in VIDEOS and not _is_mask(path, stems)]
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    return videos + [path.name for path in images if f"{path.stem}{captions}" in there and path.stem not in stems]


def _is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet that a command wrote beside an output."""
    return path.name.endswith(".sheet.png") and ours(path)


def _is_mask(path: Path, stems: set[str]) -> bool:
    stem, _, what = path.stem.rpartition(".")
    return what == "mask" and stem in stems


def _by_clip(
    clips: list[str], names: list[str], captions: str, left_out: Notify
) -> tuple[dict[str, list[tuple[str, str]]], dict[str, Path]]:
    """Stem of a clip -> (subject, image) of those named STEM.SUBJECT.png, and its mask; one named like a clip is neither.

    What belongs to no clip goes to `left_out`: images, captions, and videos and images of kinds that are not read.
    """
    stems = {Path(name).stem for name in clips}
    by_clip: dict[str, list[tuple[str, str]]] = {}
    masks: dict[str, Path] = {}
    for name in names:
        whole = Path(name)
        suffix, (stem, _, what) = whole.suffix.lower(), whole.stem.rpartition(".")
        if name in clips or (suffix not in (*IMAGE_SUFFIXES, *VIDEOS) and _needless(whole, stems, captions, left_out)):
            continue
        if stem in stems and what == "mask":
            masks[stem] = whole
        elif stem in stems and what and suffix in IMAGE_SUFFIXES and whole.stem not in stems:
            by_clip.setdefault(stem, []).append((what, name))
        else:
            left_out(f"{name}: no video for it; references of NAME.mp4 must be NAME.SUBJECT.png, without a dot in SUBJECT")
    return by_clip, masks


def _needless(path: Path, stems: set[str], captions: str, left_out: Notify) -> bool:
    """True, after a word where a file that is no image or video looks as if it were to be trained on."""
    if path.name.endswith(captions) and path.name.removesuffix(captions) not in stems:
        left_out(f"{path.name}: no video or image for this caption")
    elif path.suffix.lower() in UNREAD:
        left_out(f"{path.name}: {path.suffix} is not read; videos are {', '.join(VIDEOS)}, images {', '.join(IMAGE_SUFFIXES)}")
    return True


def _references(folder: Path, stem: str, beside: dict[str, list[tuple[str, str]]]) -> tuple[tuple[str, Path], ...]:
    """References beside a clip, by their whole name, and those in a folder of its name, whose last number is that of a view."""
    subjects = {folder / name: subject for subject, name in beside.get(stem, ())}
    inside = folder / stem
    if inside.is_dir() and not inside.is_symlink():
        found = sorted(path for path in inside.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        subjects |= {path: VIEW.sub("", path.stem) for path in found}
    return named(subjects, lambda path: "" if UNNAMED.fullmatch(subjects[path]) else subjects[path])


def read_subject(folder: Path, subject: str, reading: Reading, moves: int = 0) -> Iterator[Triplet]:
    """Triplets of a folder of images of one subject: each image is a clip of one frame whose references are others of them.

    The caption of NAME.png is NAME.txt, or "A photo of SUBJECT.". `moves` more clips show the subject moving. Images that cannot
    be read are named, and are neither clips nor references. Raises DataError for fewer than two that can.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; --subject needs a folder of images")
    there = [folder / name for name in _names(folder)]
    images = [path for path in there if path.suffix.lower() in IMAGE_SUFFIXES]
    captions = {path.stem for path in images}
    for path in there:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            _needless(path, captions, ".txt", reading.left_out)
    files = [path for path in images if _readable(path, reading.left_out)]
    if len(files) < 2:
        raise DataError(f"{folder} must contain at least two images of the subject (got {len(files)} that can be read)")

    def items() -> Iterator[Item]:
        for place, path in enumerate(files):
            words = path.with_suffix(".txt")
            others = islice((files[(place + step) % len(files)] for step in range(1, len(files))), MAX_IMAGES)
            yield Item(path, words if words.exists() else f"A photo of {subject}.", tuple((subject, other) for other in others))

    if not moves:
        return made(items(), reading)
    from phantom_s2v.data.synthetic.moved import moving  # which loads torch

    return chain(moving(files, subject, moves, reading), made(items(), reading))


def _readable(path: Path, left_out: Notify) -> bool:
    """Whether an image can be read; if not, `left_out` gets the reason."""
    try:
        check_regular(path, MAX_BYTES)
        read_image(path)
    except InputError as error:
        left_out(f"{path.name}: {error}")
        return False
    return True
