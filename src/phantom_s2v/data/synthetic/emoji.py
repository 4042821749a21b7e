"""Microsoft's Fluent Emoji (MIT) as subjects: fetch the packages, name, split, and store small sprites.

A subject is one emoji without skin tone: its 3D still, and its animation where there is one. Toned variants are left
out because the two packages exchange the tones of some of them, and then the still shows another person than the clip.

The store is two files: `sprites.npy`, uint8 [N, 128, 128, 4] premultiplied RGBA, and `subjects.json`.
"""

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from phantom_s2v.errors import DataError
from phantom_s2v.files.hashes import cache_folder, combined_hash, content_hash
from phantom_s2v.files.io import check_folder, read_json, write_json
from phantom_s2v.files.untrusted import without_credentials

PACKAGES = {  # package -> SHA-512 of its archive, base64, as npm's registry has it under dist.integrity
    "@lobehub/fluent-emoji-3d@1.1.0": "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    "@lobehub/fluent-emoji-anim-1@1.0.0": (
        "/4m31vAuZEQ4aUJ5pxcOU5PVkuJya55GRxUZL7+zgLlxZXpzzE8jPqpDyhZICE3n47nS/Y9M5/vLdizi8201QA=="
    ),
    "@lobehub/fluent-emoji-anim-2@1.0.0": (
        "S6yzf0RZXrQbXdxCWuHA9BAoLdBRk2flX+ne4TPGEH/qApwisCAKHoAAGjKSlTY3OVeZ9b7t/NEbmpjawnQYJA=="
    ),
    "@lobehub/fluent-emoji-anim-3@1.0.0": (
        "UzRSUDMjdfdt9vER5bhjHkPqgc3EEgfGtYs6ndvizOTvQOxYQ57ow2RTkWSDZxwW30X4EYBi2eWTS7CXDDoFsg=="
    ),
    "@lobehub/fluent-emoji-anim-4@1.0.0": (
        "IIkl5ztSd1HrzvIDt/uGsFoC1WODXRdYq5uROrnkyqi9DbToEcJ1nlY86PnoUXeFS9nBCnHfiYk3ouSEGThFmA=="
    ),
}
PATIENCE = 1800  # seconds that npm may take for one archive of 150 MB
SPRITE = 128  # pixels a side
CLIP_FRAMES = 36  # every second frame of the usual 72
HELD_OUT = 200
HELD_OUT_ANIMATED = 130  # of those, so that a hundred true clips can be shown

_TONES = range(0x1F3FB, 0x1F400)
_PERSONS = {0x1F468, 0x1F469, 0x1F9D1}
_JOINERS = {0x200D, 0xFE0F, 0x2640, 0x2642}
FETCHED_BYTES = 2 << 30  # of archives, and the store that they become


@dataclass(frozen=True)
class Subject:
    """One emoji. `start` and `frames` index its sprites: the still first, then the animation's frames."""

    key: str  # code points, as in the package: "1f98a"
    name: str  # "fox"
    family: str  # what is split together
    start: int
    frames: int  # 1: a still without animation

    @property
    def animated(self) -> bool:
        """Whether there is an animation beside the still."""
        return self.frames > 1


@dataclass(frozen=True)
class Sprites:
    """Subjects and their images; `pixels` may be a memory map."""

    subjects: tuple[Subject, ...]
    pixels: np.ndarray

    def still(self, subject: Subject) -> np.ndarray:
        """The 3D still, uint8 [128, 128, 4], premultiplied."""
        return self.pixels[subject.start]

    def clip(self, subject: Subject) -> np.ndarray:
        """The animation, uint8 [k, 128, 128, 4]; the still alone where there is none."""
        first, count = self.clip_range(subject)
        return self.pixels[first : first + count]

    def clip_range(self, subject: Subject) -> tuple[int, int]:
        """Index of the first sprite of `clip`, and how many there are."""
        return (subject.start + 1, subject.frames - 1) if subject.animated else (subject.start, 1)


def default_root() -> Path:
    """Folder of the fetched store, under the user's cache."""
    return cache_folder() / "emoji"


def family_of(key: str) -> str:
    """What belongs together in the split: genders, tones and the profession of any person.

    >>> family_of("1f9d1-1f3fd-200d-1f692") == family_of("1f469-200d-1f692")
    True
    """
    points = [int(part, 16) for part in key.split("-")]
    core = [p for p in points if p not in _TONES and p not in _JOINERS]
    rest = [p for p in core if p not in _PERSONS]
    if len(rest) < len(core) and rest:
        return "person-" + "-".join(f"{p:x}" for p in rest)
    return "-".join(f"{p:x}" for p in (core or points))


def name_of(key: str) -> str:
    """Unicode's names of the code points, in lower case: "fox face" is "fox", a joined sequence is "woman and rocket"."""
    points = [int(part, 16) for part in key.split("-")]
    gender = {0x2640: "woman ", 0x2642: "man "}
    prefix = next((gender[p] for p in points[1:] if p in gender), "")
    words = [unicodedata.name(chr(p), "").lower() for p in points if p not in _JOINERS and p not in _TONES]
    words = [w.removesuffix(" face").removesuffix(" symbol").replace("-", " ") for w in words if w] or [
        unicodedata.name(chr(points[0]), "sign").lower()
    ]
    return prefix + " and ".join(dict.fromkeys(words))


def wanted(key: str) -> bool:
    """Whether a file is a subject: no flag, no keycap, no skin tone, no enclosed letter."""
    points = [int(part, 16) for part in key.split("-")]
    flags = any(0x1F1E6 <= p <= 0x1F1FF or 0xE0020 <= p <= 0xE007F for p in points) or points[0] in (0x1F3F3, 0x1F3F4)
    toned = any(p in _TONES for p in points)
    letters = 0x1F170 <= points[0] <= 0x1F265 or points[0] < 0x2000 or 0x20E3 in points
    return not (flags or toned or letters)


def split(subjects: tuple[Subject, ...]) -> set[str]:
    """Families held out: 130 with an animation and 70 others, in the order of their hashes. Stable for ever."""

    def rank(family: str) -> str:
        return hashlib.sha256(f"phantom-s2v held-out {family}".encode()).hexdigest()

    animated = {s.family for s in subjects if s.animated}
    still = {s.family for s in subjects} - animated
    return set(sorted(animated, key=rank)[:HELD_OUT_ANIMATED]) | set(sorted(still, key=rank)[: HELD_OUT - HELD_OUT_ANIMATED])


def subjects_hash(subjects: tuple[Subject, ...]) -> str:
    """SHA-256 of the sorted keys: what a checkpoint records of the subjects that it saw."""
    return hashlib.sha256("\n".join(sorted(s.key for s in subjects)).encode()).hexdigest()


def sprites_hash(sprites: Sprites) -> str:
    """SHA-256 of subjects and of their images: what composed clips follow from, beside a seed."""
    listed = hashlib.sha256(repr(sprites.subjects).encode()).hexdigest()
    if isinstance(sprites.pixels, np.memmap):
        pixels = content_hash(Path(str(sprites.pixels.filename)))
    else:
        pixels = hashlib.sha256(np.ascontiguousarray(sprites.pixels).data).hexdigest()
    return combined_hash([("subjects", listed), ("pixels", pixels)])


def fetch(root: Path, held_out: Set[str], progress: Callable[[str], None]) -> None:
    """Fetch the five packages with `npm pack` and write the store under `root`: training subjects only.

    Training cannot read a held-out subject because the store does not contain one. Raises DataError without npm.
    """
    root.mkdir(parents=True, exist_ok=True)
    check_folder(root, room=FETCHED_BYTES)
    if (root / "subjects.json").exists() or (root / "sprites.npy").exists():
        load_store(root)  # replaces a store, and nothing else
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        archives = [_npm_pack(package, digest, Path(scratch), progress) for package, digest in PACKAGES.items()]
        progress("reading images")
        entries = ((key, still, clip) for key, still, clip in read_packages(archives) if family_of(key) not in held_out)
        write_store(Path(scratch) / "store", entries)
        for file in (Path(scratch) / "store").iterdir():
            os.replace(file, root / file.name)


def _npm_pack(package: str, digest: str, folder: Path, progress: Callable[[str], None]) -> Path:
    """A package's archive, which has to be the one that is pinned.

    npm runs in an empty folder of its own, so that it reads the user's settings and not those of the current folder.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed; `phantom data emoji` downloads the emoji packages with it")
    progress(f"fetching {package}")
    own = folder / f"{len(list(folder.iterdir()))}"
    own.mkdir()
    asked = [npm, "pack", "--silent", "--ignore-scripts", "--prefix", str(own), "--pack-destination", str(own), package]
    try:
        done = subprocess.run(asked, cwd=own, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"npm pack {package} timed out after {PATIENCE} s; try again") from error
    archives = list(own.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"npm pack {package} failed: {without_credentials(reason)}")
    with archives[0].open("rb") as file:
        if base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode() != digest:
            raise DataError(f"checksum mismatch: the archive of {package} is not the pinned one and was discarded")
    return archives[0]


def read_packages(archives: list[Path], side: int = SPRITE) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """(key, still, clip or None) of every wanted file, in the order of keys; premultiplied RGBA, `side` pixels."""
    stills: dict[str, bytes] = {}
    clips: dict[str, bytes] = {}
    for archive in archives:
        target = stills if "-3d-" in archive.name else clips
        with tarfile.open(archive) as tar:
            for member in tar:
                path = Path(member.name)
                if path.suffix == ".webp" and wanted(path.stem) and (handle := tar.extractfile(member)):
                    target[path.stem] = handle.read()
    for key in sorted(stills):
        still = decode_sprites(stills[key], 1, side)
        clip = decode_sprites(clips[key], CLIP_FRAMES, side) if key in clips else None
        yield key, still[0], clip if clip is not None and len(clip) > 1 and _same_subject(still[0], clip) else None


def decode_sprites(data: bytes, limit: int, side: int = SPRITE) -> np.ndarray:
    """Up to `limit` frames of a WebP, evenly spaced, as premultiplied RGBA uint8 [k, side, side, 4]."""
    from phantom_s2v.media.images import open_image  # loads PyAV, which a machine that only trains has not

    image = open_image(io.BytesIO(data), ("WEBP",))
    count = getattr(image, "n_frames", 1)
    frames = []
    for index in np.linspace(0, count, min(limit, count), endpoint=False).astype(int):
        image.seek(int(index))
        frame = image.convert("RGBA").convert("RGBa").resize((side, side), Image.Resampling.BOX, reducing_gap=None)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def _same_subject(still: np.ndarray, clip: np.ndarray) -> bool:
    """Whether an animation shows its still: some frame must come near to it (a few packages exchange persons)."""
    small = clip[:, ::4, ::4].astype(np.float32)
    difference = np.abs(small - still[::4, ::4].astype(np.float32)).mean((1, 2, 3))
    return bool(difference.min() < 20)


def write_store(root: Path, entries: Iterable[tuple[str, np.ndarray, np.ndarray | None]]) -> None:
    """Write `sprites.npy` and `subjects.json` of (key, still, clip or None)."""
    root.mkdir(parents=True, exist_ok=True)
    subjects, arrays, start = [], [], 0
    for key, still, clip in entries:
        frames = still[None] if clip is None else np.concatenate([still[None], clip])
        subjects.append(Subject(key, name_of(key), family_of(key), start, len(frames)))
        arrays.append(frames)
        start += len(frames)
    np.save(root / "sprites.npy", np.concatenate(arrays))
    write_json(root / "subjects.json", [asdict(s) for s in subjects], indent=0)


def load_store(root: Path) -> Sprites:
    """Open a store; the pixels stay on disk. Raises DataError where it is missing."""
    if not (root / "subjects.json").is_file():
        raise DataError(f"no emoji dataset at {root}; run `phantom data emoji` first (a 750 MB download with npm)")
    try:
        subjects = tuple(Subject(**row) for row in read_json(root / "subjects.json"))
        return Sprites(subjects, np.load(root / "sprites.npy", mmap_mode="r"))
    except (TypeError, ValueError, OSError) as error:
        raise DataError(f"{root} is not an emoji dataset, or it is damaged ({error}); choose another folder") from error
