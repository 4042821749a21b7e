"""What an import accepts: triplets that others wrote, as files of a folder or members of tars, read within bounds and decoded.

A bad item is one sentence, and the others go on. Tars are read here and not by webdataset, which reads members of any size and
of compressed tars whole, and takes one that was cut between two members for complete (docs/architecture.md).
"""

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from phantom_s2v.data.clips import IMAGE_FORMATS, image_suffix
from phantom_s2v.data.triplets import Triplet, check_triplet
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.untrusted import read_regular
from phantom_s2v.media.images import open_image
from phantom_s2v.media.videos import Video

MAX_BYTES = 1 << 30  # of all files of a triplet
MAX_FRAMES = 100_000  # of a clip
MAX_HEADER_BYTES = 1 << 20  # bytes that are read of a tar at once
MASK_STRETCH = 0.05  # by which the aspect of a clip's mask may differ
BLOCK = 512  # bytes of a tar's headers
OWN = re.compile(r"json|mp4|mask\.(mp4|png)|(reference|mask)-\d{1,3}\.[a-z]{1,5}")  # what a name has after the id and its dot
Files = dict[str, bytes]  # name after the id and its dot -> content
LeftOut = Callable[[str], None]


def groups_of_folder(folder: Path) -> Iterator[tuple[str, Files | str]]:
    """(id, files, or why they cannot be read) of every triplet of a folder. Links and pipes are not read."""
    matches = (re.fullmatch(rf"(.+?)\.({OWN.pattern})", path.name) for path in folder.iterdir())
    named = sorted((match[1], match[2]) for match in matches if match)
    for key, group in groupby(named, key=lambda pair: pair[0]):
        files: Files = {}
        try:
            for _, rest in group:
                files[rest] = read_regular(folder / f"{key}.{rest}", MAX_BYTES - sum(map(len, files.values())))
        except InputError as error:
            yield key, str(error)
            continue
        if "json" in files:
            yield key, files


class _Bounded:
    """A tar's file that gives no more at once than headers and parts of members need: sizes in it are claims."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.tell, self.seek = file, file.tell, file.seek

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"it requests {size} bytes at once")
        return self.file.read(size)


def groups_of_tars(folder: Path, left_out: LeftOut) -> Iterator[tuple[str, Files | str]]:
    """(id, files, or why they cannot be read) of every triplet of a folder's tars, which are not compressed.

    A tar that is damaged is named to `left_out`, and triplets before the damage are returned.
    """
    for path in sorted(folder.glob("*.tar")):
        if path.is_symlink() or not path.is_file():
            left_out(f"{path.name} is a link or not a regular file")
            continue
        with path.open("rb") as file:
            try:
                yield from _members(file)
            except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError, OverflowError) as error:
                left_out(f"{path.name} is truncated, damaged or compressed ({error}); the rest of it is skipped")


def _members(file: BinaryIO) -> Iterator[tuple[str, Files | str]]:
    """The triplets of one tar; the last one is given where the tar ends as it should."""
    name, files = "", Files()
    with tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:  # type: ignore[call-overload]
        reason = ""
        for entry in tar:
            if entry.size < 0:
                raise tarfile.ReadError("a member has a size below 0")
            tar.members = []  # which tarfile would keep
            key, _, rest = Path(entry.name).name.partition(".")
            if key != name:
                if files or reason:
                    yield name, reason or files
                name, files, reason = key, Files(), ""
            if not reason and OWN.fullmatch(rest):
                room = MAX_BYTES - sum(map(len, files.values()))
                reason = _unfit(entry, room)
                if not reason:
                    files[rest] = _content(tar, entry)
        end = tar.offset
    if files or reason:
        yield name, reason or files
    file.seek(end)
    if file.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError(f"it has no end mark at byte {end}")


def _unfit(entry: tarfile.TarInfo, room: int) -> str:
    """Why a member is not read; empty where it is."""
    if not entry.isreg() or entry.issparse():
        return f"{Path(entry.name).name} is a link, a device or sparse, and no regular file"
    return f"{Path(entry.name).name} has {entry.size:,} bytes; at most {room:,} are read" if entry.size > room else ""


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    content, handle = bytearray(), tar.extractfile(entry)
    assert handle is not None
    while part := handle.read(MAX_HEADER_BYTES):
        content += part
    if len(content) != entry.size:
        raise tarfile.ReadError(f"it ends within {entry.name!r}")
    return bytes(content)


def accepted(triplets: Iterable[Triplet], require_license: bool, left_out: LeftOut) -> Iterator[Triplet]:
    """Those that a training can use: checked, decoded, and licensed where that is required; the others go to `left_out`."""
    for triplet in triplets:
        try:
            check_triplet(triplet, require_license)
            check_contents(triplet)
            yield triplet
        except DataError as error:
            left_out(str(error))


def check_contents(triplet: Triplet) -> None:
    """Decode a triplet's video, images and masks. Raises DataError where one cannot be, or is not what its facts say."""
    faults = []
    try:
        _check_video(triplet)
        _check_mask(triplet)
        for number, reference in enumerate(triplet.references, 1):
            size, _ = _decoded(reference.image, IMAGE_FORMATS, f"reference {number}")
            if reference.mask and _decoded(reference.mask, ("PNG",), f"mask {number}") != (size, True):
                faults.append(f"mask {number} must have one channel and the size of its image")
    except (DataError, InputError) as error:
        faults.append(str(error))
    if faults:
        raise DataError(f"triplet {triplet.id}: {'; '.join(faults)}")


def _check_video(triplet: Triplet) -> None:
    video = Video(io.BytesIO(triplet.video), "its video")
    facts = video.facts
    count = 0
    for count, _ in enumerate(video.frames(size=(16, 16)), 1):
        if count > min(triplet.frames, MAX_FRAMES):
            break
    decoded_shape, declared = (count, facts.height, facts.width), (triplet.frames, triplet.height, triplet.width)
    if decoded_shape != declared:
        raise DataError(
            f"its video has {'more frames' if count > declared[0] else f'{count} frames'} of {facts.width}x{facts.height}, but "
            f"its metadata says {declared[0]} of {declared[2]}x{declared[1]}"
        )


def _check_mask(triplet: Triplet) -> None:
    """Raise DataError for a mask of the clip that is not of its shape: one image, or as many frames as the clip has."""
    if not triplet.mask:
        return
    if image_suffix(triplet.mask):
        (width, height), gray = _decoded(triplet.mask, ("PNG",), "its mask")
        count = 1 if gray else 0
    else:
        video = Video(io.BytesIO(triplet.mask), "its mask")
        height, width = video.facts.height, video.facts.width
        count = sum(1 for _ in islice(video.frames(size=(16, 16)), MAX_FRAMES + 1))
    if abs(width * triplet.height / (height * triplet.width) - 1) > MASK_STRETCH or count not in (1, triplet.frames):
        raise DataError(
            f"its mask must have the shape of the clip, {triplet.width}x{triplet.height}, and one frame or {triplet.frames} "
            f"(got {width}x{height}, {count})"
        )


def _decoded(content: bytes, formats: tuple[str, ...], what: str) -> tuple[tuple[int, int], bool]:
    """(width, height) of an image, and whether it has one channel. Raises DataError where it cannot be decoded whole."""
    try:
        with open_image(io.BytesIO(content), formats) as image:
            image.load()
            return image.size, image.mode in ("1", "L")
    except UnidentifiedImageError as error:
        raise DataError(f"{what} must be {' or '.join(formats)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{what} has too many pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{what} is damaged or truncated ({error})") from error
