"""The score of one video: is every reference there, once and in its place, was it pasted, and is the video itself sound?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np

from phantom_s2v.evaluation import metrics
from phantom_s2v.evaluation.subjects import Embed, Sighting, doubled, likeness_over_time, look, misplaced, places_asked

WORKING_SIDE = 128  # pixels a side of what all but subjects, sharpness and flow are measured on
FAULTS = ("other subject", "missing", "doubled", "swapped", "pasted", "flashed", "frozen", "flicker")


@dataclass(frozen=True)
class Thresholds:
    """Where a fault begins. Frozen on training emoji (dev/LOG.md); another domain needs its own."""

    likeness: float = 0.52  # mean below which a region is another subject
    there: float = 0.45  # likeness from which a subject counts as there, in one frame
    seen: float = 0.4  # least share of frames with a region for a subject that is there
    doubled: float = 0.25  # share of frames
    swapped: float = 0.5  # share of frames
    pasted: float = 0.945
    flashed: float = 0.1
    frozen: float = 0.9
    flicker: float = 0.006


LIMITS = {"phantom-mini": Thresholds(), "efficientnet-lite0": Thresholds(likeness=0.57, there=0.55)}


@dataclass(frozen=True)
class SubjectScore:
    """One reference in a video."""

    name: str
    likeness: float  # mean over the frames looked at, -1..1; nan where it was never seen
    lowest: float
    lowest_frame: int
    whole: float  # the same of whole frames and the whole picture
    whole_lowest: float
    whole_lowest_frame: int
    seen: float  # share of frames that have a region for it
    doubled: float  # share of frames with a second one
    copy_paste: float
    flash: float
    flash_frames: list[int]
    over_time: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class VideoScore:
    """Everything measured of one video."""

    subjects: list[SubjectScore]
    swapped: float  # share of frames in which subjects stand on each other's side
    motion_fb: float
    frozen: float
    flicker: float
    smoothness: float
    sharpness: float
    frames_looked_at: list[int]

    @property
    def likeness(self) -> float:
        """The subject score: the mean over references, nan without any."""
        return float(np.mean([s.likeness for s in self.subjects])) if self.subjects else float("nan")


def score(
    video: np.ndarray,
    references: Sequence[np.ndarray],
    names: Sequence[str],
    prompt: str,
    embed: Embed,
    limits: Thresholds,
) -> VideoScore:
    """Scores of uint8 [F, H, W, 3] against reference pictures, each another subject, with what the prompt calls them.

    `embed` says how alike pictures are, `limits` from when on a subject is there by it; scores of different embedders are not
    comparable.
    """
    seen = look(video, references, embed)
    asked = places_asked(prompt, names)
    small = shrunk(video)
    frames = embed([video[s.frame] for s in seen]) if references else np.zeros((0, 1))
    subjects = [
        _subject(small, picture, name, seen, i, limits.there, frames @ embed([picture])[0])
        for i, (picture, name) in enumerate(zip(references, names, strict=True))
    ]
    return VideoScore(
        subjects=subjects,
        swapped=misplaced(seen, asked, limits.there),
        motion_fb=metrics.motion_fb(video) if len(video) > 1 else float("nan"),
        frozen=metrics.frozen(small),
        flicker=metrics.flicker(small),
        smoothness=metrics.smoothness(small),
        sharpness=metrics.sharpness(video),
        frames_looked_at=[s.frame for s in seen],
    )


def shrunk(video: np.ndarray, side: int = WORKING_SIDE) -> np.ndarray:
    """A video, uint8 [F, H, W, 3], with at most `side` pixels on its shorter side."""
    scale = side / min(video.shape[1:3])
    if scale >= 1:
        return video
    size = (round(video.shape[2] * scale), round(video.shape[1] * scale))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in video])


def _subject(
    video: np.ndarray,
    picture: np.ndarray,
    name: str,
    seen: list[Sighting],
    index: int,
    least: float,
    whole: np.ndarray,
) -> SubjectScore:
    over_time = likeness_over_time(seen, index)
    there = np.array([index in s.given for s in seen])
    values = over_time[there]
    flash, frames = metrics.reference_flash(video, picture)
    worst = int(np.flatnonzero(there)[values.argmin()]) if there.any() else 0
    return SubjectScore(
        name=name,
        likeness=float(values.mean()) if there.any() else float("nan"),
        lowest=float(values.min()) if there.any() else float("nan"),
        lowest_frame=seen[worst].frame,
        whole=float(whole.mean()),
        whole_lowest=float(whole.min()),
        whole_lowest_frame=seen[int(whole.argmin())].frame,
        seen=float(there.mean()),
        doubled=doubled(seen, index, least),
        copy_paste=metrics.copy_paste(video, picture),
        flash=flash,
        flash_frames=frames,
        over_time=[round(float(v), 4) for v in over_time],
    )


def faults(found: VideoScore, limits: Thresholds) -> dict[str, list[str]]:
    """Fault -> which subjects have it (the empty string: the video), in the order of FAULTS. Empty for a sound video.

    A subject is missing where no region is left for it; where there is one that is unlike it, another stands in its place.
    """
    told: dict[str, list[str]] = {}

    def tell(fault: str, who: str, holds: bool) -> None:
        if holds:
            told.setdefault(fault, []).append(who)

    for subject in found.subjects:
        missing = subject.seen < limits.seen
        tell("missing", subject.name, missing)
        tell("other subject", subject.name, not missing and subject.likeness < limits.likeness)
        tell("doubled", subject.name, subject.doubled > limits.doubled)
        tell("pasted", subject.name, subject.copy_paste > limits.pasted and not subject.flash_frames)
        tell("flashed", subject.name, subject.flash > limits.flashed)
    tell("swapped", "", found.swapped > limits.swapped)
    tell("frozen", "", found.frozen > limits.frozen)
    tell("flicker", "", found.flicker > limits.flicker)
    return {fault: told[fault] for fault in FAULTS if fault in told}


def as_json(found: VideoScore, told: dict[str, list[str]], backend: str) -> dict[str, Any]:
    """A score and its faults as JSON, under the name of its backend; what could not be measured is null."""
    values = {"backend": backend, "likeness": found.likeness, **asdict(found), "faults": told}
    return _without_nan(values)


def _without_nan(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value
