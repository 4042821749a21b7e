"""Triplets out of files: a clip with its caption, reference images and mask, whole or cut as trainers' settings say.

Every reader of what other trainers have finds items; here they become triplets, one line each: kept, trimmed or skipped, and why.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from pathlib import Path

from phantom_s2v.data.clips import (
    IMAGE_SUFFIXES,
    StoredClip,
    encoded,
    frame_count,
    store_cut,
    store_image,
    store_mask,
    store_video,
)
from phantom_s2v.data.formats.intake import MAX_BYTES
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference, check_triplet
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.io import read_text
from phantom_s2v.files.untrusted import MAX_TEXT_BYTES, check_regular
from phantom_s2v.geometry import MAX_IMAGES
from phantom_s2v.media.images import evenly_spaced, read_image
from phantom_s2v.media.videos import Video

RATE = 16.0  # frames a second in which trainers count the frames of Wan
STILL_FPS = 8.0  # of a clip of one frame, which plays for an eighth of a second
WAYS = ("full", "head", "middle", "chunk", "slide", "uniform")
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Cut:
    """How clips are cut out of a video, in frames of 1 / RATE seconds (musubi-tuner's frame_extraction and its options)."""

    way: str = "full"
    lengths: tuple[int, ...] = ()  # of clips; empty: of the whole
    longest_alone: bool = False  # of the lengths that fit, only the longest (diffusion-pipe)
    stride: int = 10  # of slide
    samples: int = 1  # of uniform
    most: int = 0  # of full; 0: no limit
    source_fps: float | None = None  # what the file should say; None: what it says

    def windows(self, total: int) -> list[tuple[int, int]]:
        """(start, length) of the clips of a video of `total` frames. One that is shorter than all lengths is one clip."""
        if self.way == "full" or not self.lengths:
            return [(0, min(total, self.most or total))]
        fitting = sorted(length for length in self.lengths if length <= total) or [total]
        found = [(s, n) for n in (fitting[-1:] if self.longest_alone else fitting) for s in self._starts(total, n)]
        return list(dict.fromkeys(found))

    def _starts(self, total: int, length: int) -> list[int]:
        room = total - length
        if self.way == "middle":
            return [room // 2]
        if self.way == "chunk":
            return list(range(0, room + 1, length))
        if self.way == "slide":
            return list(range(0, room + 1, self.stride))
        return evenly_spaced(room + 1, self.samples or ceil(total / length)) if self.way == "uniform" else [0]


@dataclass(frozen=True)
class Item:
    """A clip as files: a video or an image, its caption or the file of it, its references by subject, and its mask."""

    clip: Path
    caption: str | Path
    references: tuple[tuple[str, Path], ...] = ()
    mask: Path | None = None


@dataclass(frozen=True)
class Reading:
    """What is said of all items of a list or folder, and to whom."""

    rights: Rights
    left_out: Notify  # what cannot be read
    notify: Notify  # what was converted
    kept: Notify = lambda line: None  # what became of each clip
    cut: Cut = field(default_factory=Cut)
    repeats: int = 1
    regularization: bool = False
    fps: float = 8.0  # of clips that are composed: at another rate than the model's, frames would be left out or repeated
    trigger: str = ""  # words before each caption, by which the subject is called; not before those of regularization clips


def made(items: Iterable[Item], reading: Reading) -> Iterator[Triplet]:
    """Triplets of items. What cannot be read is named, and the others go on."""
    for item in items:
        try:
            yield from _of_item(item, reading)
        except (InputError, DataError, OSError, ValueError) as error:
            reading.left_out(f"{item.clip.name}: {error}")


def _of_item(item: Item, reading: Reading) -> Iterator[Triplet]:
    if len(item.references) > MAX_IMAGES:
        raise DataError(f"it must have at most {MAX_IMAGES} references (got {len(item.references)})")
    check_regular(item.clip, MAX_BYTES)
    caption = _caption(item, reading)
    references = tuple(
        TripletReference(_image(path, reading.notify), subject, "cross-pair", rights=reading.rights)
        for subject, path in item.references
    )
    for clip, mask, what in _clips(item, reading):
        shape = (clip.fps, clip.count, clip.height, clip.width)
        own = {"rights": reading.rights, "repeats": reading.repeats, "regularization": reading.regularization, "mask": mask}
        triplet = Triplet(clip.video, caption, references, *shape, **own)
        check_triplet(triplet)
        seen = ", ".join(part for part, there in (("masked", mask), ("an empty caption", not caption)) if there)
        shown = f"{clip.width}x{clip.height}, {counted(len(references), 'reference')}{f', {seen}' if seen else ''}"
        reading.kept(f"{what} at {clip.fps:g} fps, {shown} ({triplet.id[:8]})")
        yield triplet


def _caption(item: Item, reading: Reading) -> str:
    caption = item.caption
    if isinstance(caption, Path):
        if not caption.exists() and not caption.is_symlink():
            raise DataError(f"it has no caption; describe it in {caption.name}")
        check_regular(caption, MAX_TEXT_BYTES)
        caption = read_text(caption)
    trigger = "" if reading.regularization or caption.startswith(reading.trigger) else reading.trigger
    return f"{trigger} {caption.strip()}".strip()


def _image(path: Path, notify: Notify) -> bytes:
    check_regular(path, MAX_BYTES)
    return store_image(path, notify)


def _clips(item: Item, reading: Reading) -> Iterator[tuple[StoredClip, bytes, str]]:
    """The clips of an item with their masks, and what was made of its frames."""
    path, name, cut = item.clip, item.clip.name, reading.cut
    if item.mask:
        check_regular(item.mask, MAX_BYTES)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        yield still(path), _mask(item.mask, 0, 1, STILL_FPS), f"kept: {name}: an image, 1 frame"
        return
    fps = cut.source_fps or Video(path).facts.fps or RATE
    if cut == Cut():
        clip = store_video(path, reading.notify)
        yield clip, _mask(item.mask, 0, clip.count, clip.fps), f"kept: {name}: {clip.count} frames"
        return
    there = frame_count(path)
    for start, length in cut.windows(max(1, int(there * RATE / fps + 1e-6))):
        first, frames = int(start * fps / RATE + 0.5), min(there, max(1, ceil(length * fps / RATE - 1e-6)))
        clip = store_cut(path, first, frames, fps)
        how = "kept" if clip.count == there else "trimmed"
        yield clip, _mask(item.mask, first, frames, fps), f"{how}: {name}: frames {first} to {first + clip.count - 1} of {there}"


def _mask(path: Path | None, start: int, frames: int, fps: float) -> bytes:
    """A mask as the clip is cut; one image stands for all frames."""
    if path is None:
        return b""
    return store_mask(path) if path.suffix.lower() in IMAGE_SUFFIXES else store_cut(path, start, frames, fps).video


def counted(count: int, what: str, plural: str = "s") -> str:
    """A number of things in words."""
    return f"{count:,} {what}{'' if count == 1 else plural}"


def still(path: Path) -> StoredClip:
    """An image as a clip of one frame."""
    return encoded(iter([read_image(path)[0]]), STILL_FPS)


def named(paths: Iterable[Path], names: Callable[[Path], str]) -> tuple[tuple[str, Path], ...]:
    """(subject, image) of images; each without a name (an empty one, "ref", or a number) shows a subject of its own."""
    numbers = count(1)
    return tuple((names(path) or f"subject {next(numbers)}", path) for path in paths)
