"""Recognizing a video of ours in a copy that was encoded, scaled or cropped anew, without credentials or a file's hash.

A look is a frame at 32x32 pixels as the lowest frequencies (discrete cosine transform) of brightness, 8x8 without its mean, and
of both colors, 4x4 each: 96 numbers, weighted by the root of 1 + frequency^2, since the lowest ones hold nearly all energy and
tell least, normed and kept as bytes. Two looks are compared by their cosine. What was measured: docs/studio.md, "Verify".

Of a video two moments a second are kept, each whole and with margins of 4% and 8% cut off, so that a cropped copy meets what is
like it. Candidates are found by bands: 8 groups of 16 signs of fixed projections (random hyperplanes: Charikar, STOC 2002), by
whose index a copy's looks are sought; only the videos that share most bands are compared, look by look in their order in time.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import cv2
import numpy as np
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from phantom_s2v.studio.schema import Fingerprint, FingerprintBand

MARGINS = (0.0, 0.04, 0.08)  # of each side, cut off
MOMENT = 0.5  # seconds between two moments that are kept
ASKED = 0.06  # seconds between two looks at a copy: every frame up to 16 a second
NEAR = 0.1  # seconds by which a look of a copy may lie beside a moment
SIDE, LUMA, CHROMA = 32, 8, 4
LENGTH = LUMA**2 + 2 * CHROMA**2
BAR = 24  # difference of brightness up to which an edge is one color
FLAT = 24.0  # length of a look, before it is normed, below which a frame shows nothing, such as black
BANDS, BITS = 8, 16
VERSION = 3_000_000  # positions of one version of a video, a multiple of the margins
SAME = 0.93  # mean cosine from which on a video counts as a copy
CANDIDATES, FEWEST = 24, 3  # videos that are compared; moments that have to agree
WINDOW, MAX_WINDOWS = 120, 50  # looks at a copy that are sought at once; windows of a long file
Look = np.ndarray  # float32 [LENGTH], normed


@dataclass(frozen=True)
class Match:
    """A video that a file is a copy of: how alike they are (cosine), and where in the file it begins, seconds."""

    video_id: str
    similarity: float
    begins: float
    mirrored: bool = False


def look(image: np.ndarray) -> Look | None:
    """The look of a frame, uint8 [H, W, 3]; None for a flat one."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    planes = cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    parts = [cv2.dct(planes[..., 0])[:LUMA, :LUMA], *(cv2.dct(planes[..., i] - 128)[:CHROMA, :CHROMA] for i in (1, 2))]
    parts[0][0, 0] = 0.0
    found = np.concatenate([(part * _weights(len(part))).ravel() for part in parts])
    energy = (
        float(np.linalg.norm(parts[0]))
        + float(np.linalg.norm(parts[1].ravel()[1:]))
        + float(np.linalg.norm(parts[2].ravel()[1:]))
    )
    return None if energy < FLAT else found / np.linalg.norm(found)


@cache
def _weights(side: int) -> np.ndarray:
    squares = np.arange(side) ** 2
    return np.sqrt(1.0 + squares[:, None] + squares[None, :]).astype(np.float32)


def measure(frames: Iterable[tuple[float, np.ndarray]]) -> list[tuple[int, bytes]]:
    """What is kept of a video: position (moment x margins + margin) and look. Frames are (seconds, uint8 [H, W, 3])."""
    kept, wanted = [], 0
    for seconds, image in frames:
        if seconds < wanted * MOMENT - 1e-3:
            continue
        moment = round(seconds / MOMENT)
        wanted = moment + 1
        for number, margin in enumerate(MARGINS):
            found = look(_without_margin(image, margin))
            if found is not None:
                kept.append((moment * len(MARGINS) + number, _packed(found)))
    return kept


def keep(session: Session, video_id: str, measured: Sequence[tuple[int, bytes]], version: int = 0) -> None:
    """Make a video findable, in place of what was kept of this version of it before: 0 as it was made, 1 with its label."""
    first = version * VERSION
    mine = Fingerprint.position.between(first, first + VERSION - 1)
    session.execute(delete(Fingerprint).where(Fingerprint.video_id == video_id, mine))
    session.add_all(Fingerprint(video_id=video_id, position=first + position, look=packed) for position, packed in measured)
    session.flush()
    _, looks = _kept(session, video_id)
    session.execute(delete(FingerprintBand).where(FingerprintBand.video_id == video_id))
    values = {value for each in looks for value in _bands(each)}
    session.add_all(FingerprintBand(value=value, video_id=video_id) for value in values)
    session.flush()


def forget(session: Session, video_id: str) -> None:
    """Remove what was kept of a video."""
    for table in (Fingerprint, FingerprintBand):
        session.execute(delete(table).where(table.video_id == video_id))


@dataclass(frozen=True)
class Asked:
    """Some looks at a file, at their times, seconds."""

    times: np.ndarray  # float [N]
    looks: np.ndarray  # float32 [N, LENGTH]


def looks_at(frames: Iterable[tuple[float, np.ndarray]]) -> Iterator[tuple[Asked, Asked]]:
    """Window after window of a file, as it is and without uniform bars at its edges; memory does not grow with the file."""
    chosen = _every(frames, ASKED)
    for _ in range(MAX_WINDOWS):
        window = [
            (seconds, cv2.resize(image, _fitted(image), interpolation=cv2.INTER_AREA))
            for seconds, image in islice(chosen, WINDOW)
        ]
        if not window:
            return
        inside = _without_bars(window)
        yield _asked(window), _asked(inside) if inside is not window else _asked([])


def find(session: Session, asked: Asked) -> list[Match]:
    """Videos that a window of a file is a copy of, the most alike first."""
    if not len(asked.times):
        return []
    found = []
    for looks, mirrored in ((asked.looks, False), (asked.looks * _mirror(), True)):
        values = sorted({value for each in looks for value in _bands(each)})
        for video_id in _candidates(session, values):
            similarity, begins = _compare(asked.times, looks, *_kept(session, video_id))
            if similarity >= SAME:
                found.append(Match(video_id, similarity, begins, mirrored))
    return sorted(found, key=lambda match: -match.similarity)


def _candidates(session: Session, values: list[int]) -> Sequence[str]:
    """Videos that share the most bands, by the index over their values."""
    votes: dict[str, int] = {}
    for start in range(0, len(values), 500):
        some = values[start : start + 500]
        query = select(FingerprintBand.video_id, func.count()).where(FingerprintBand.value.in_(some))
        for video_id, count in session.execute(query.group_by(FingerprintBand.video_id)):
            votes[video_id] = votes.get(video_id, 0) + count
    return sorted(votes, key=lambda video_id: (-votes[video_id], video_id))[:CANDIDATES]


def _kept(session: Session, video_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions and looks of a video."""
    rows = session.execute(
        select(Fingerprint.position, Fingerprint.look).where(Fingerprint.video_id == video_id).order_by(Fingerprint.position)
    ).all()
    looks = [_unpacked(row[1]) for row in rows]
    return np.array([row[0] for row in rows], int), np.stack(looks) if looks else np.zeros((0, LENGTH), np.float32)


def _compare(times: np.ndarray, looks: np.ndarray, positions: np.ndarray, kept: np.ndarray) -> tuple[float, float]:
    """Highest mean cosine over moments in their order, for any version, margin and beginning; and that beginning, seconds."""
    best = (0.0, 0.0)
    kinds = positions // VERSION * len(MARGINS) + positions % len(MARGINS)
    for kind in np.unique(kinds):
        chosen = kinds == kind
        moments, theirs = positions[chosen] % VERSION // len(MARGINS) * MOMENT, kept[chosen]
        cosines = looks @ theirs.T  # [N, moments]
        pairs = np.argsort(cosines, axis=None)[::-1][:8]
        begins = {round(float(times[i] - moments[j]), 2) for i, j in zip(*np.unravel_index(pairs, cosines.shape), strict=True)}
        for begin in begins:
            best = max(best, (_aligned(times, cosines, moments + begin), begin))
    return best


def _aligned(times: np.ndarray, cosines: np.ndarray, moments: np.ndarray) -> float:
    """Mean cosine of the moments that lie within the looks, each with the best one near it; 0 where too few do."""
    distance = np.abs(times[:, None] - moments[None, :])
    inside = distance.min(axis=0) <= NEAR
    if inside.sum() < min(FEWEST, len(moments)):
        return 0.0
    near = np.where(distance <= NEAR, cosines, -1.0)
    return float(near.max(axis=0)[inside].mean())


def _bands(found: Look) -> list[int]:
    """The bands of a look: number of the band, then its bits."""
    signs = (_projections() @ found > 0).reshape(BANDS, BITS)
    return [(band << BITS) | int(np.dot(bits, 1 << np.arange(BITS))) for band, bits in enumerate(signs)]


@cache
def _projections() -> np.ndarray:
    """+1 and -1 of SHA-256, [BANDS x BITS, LENGTH]: the same on every machine and with every version of NumPy."""
    rows = BANDS * BITS * LENGTH // 256
    content = b"".join(hashlib.sha256(f"phantom-s2v fingerprint {number}".encode()).digest() for number in range(rows))
    return (2.0 * np.unpackbits(np.frombuffer(content, np.uint8)) - 1.0).reshape(BANDS * BITS, LENGTH).astype(np.float32)


@cache
def _mirror() -> np.ndarray:
    """Mirrored left to right every second horizontal frequency changes its sign."""
    signs = [np.tile((-1.0) ** np.arange(side), side) for side in (LUMA, CHROMA, CHROMA)]
    return np.concatenate(signs).astype(np.float32)


def _packed(found: Look) -> bytes:
    return np.clip(np.rint(127 * found), -127, 127).astype(np.int8).tobytes()


def _unpacked(packed: bytes) -> Look:
    values = np.frombuffer(packed, np.int8).astype(np.float32)
    return values / np.linalg.norm(values)


def _every(frames: Iterable[tuple[float, np.ndarray]], step: float) -> Iterator[tuple[float, np.ndarray]]:
    wanted = 0.0
    for seconds, image in frames:
        if seconds >= wanted - 1e-3:
            wanted = seconds + step
            yield seconds, image


def _asked(window: Sequence[tuple[float, np.ndarray]]) -> Asked:
    found: list[tuple[float, Any]] = [(seconds, look(image)) for seconds, image in window]
    seen = [(seconds, each) for seconds, each in found if each is not None]
    looks = np.stack([each for _, each in seen]) if seen else np.zeros((0, LENGTH), np.float32)
    return Asked(np.array([seconds for seconds, _ in seen]), looks)


def _fitted(image: np.ndarray) -> tuple[int, int]:
    """Width and height of an image at most 160 pixels long: enough to see bars, little to hold."""
    scale = min(1.0, 160 / max(image.shape[:2]))
    return max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))


def _without_margin(image: np.ndarray, margin: float) -> np.ndarray:
    across, down = round(image.shape[1] * margin), round(image.shape[0] * margin)
    return image[down : image.shape[0] - down, across : image.shape[1] - across]


def _without_bars(window: Sequence[tuple[float, np.ndarray]]) -> Sequence[tuple[float, np.ndarray]]:
    """The frames without bars, which have one color at the edges in all of them; the window itself where there are none."""
    some = np.stack([image for _, image in window[:: max(1, len(window) // 8)]]).astype(np.int16)
    differs = np.abs(some - some[:, :1, :1]).max(axis=(0, 3)) > BAR
    (top, bottom), (left, right) = (_inside(differs.any(axis=axis)) for axis in (1, 0))
    if (bottom - top, right - left) == differs.shape or min(bottom - top, right - left) < 8:
        return window
    return [(seconds, image[top:bottom, left:right]) for seconds, image in window]


def _inside(differs: np.ndarray) -> tuple[int, int]:
    """First and last + 1 of what lies between bars, without the blurred line at their ends."""
    found = np.flatnonzero(differs)
    if not len(found):
        return 0, 0
    return int(found[0]) + bool(found[0]), int(found[-1]) + 1 - bool(found[-1] < len(differs) - 1)
