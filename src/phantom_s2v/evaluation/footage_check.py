"""Does the evaluation see what it should on videos? Faults planted in a user's own, in which people show their faces.

A clip without a fault must not contain its reference. So a reference is of another take: an image beside the video, or head and
shoulders cut from its first frames and mirrored, since in an unbroken shot much of them stands where it stood.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from phantom_s2v.data.clips import IMAGE_SUFFIXES
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.footage import shrunk
from phantom_s2v.evaluation.instruments import Instruments
from phantom_s2v.evaluation.metrics import looks
from phantom_s2v.evaluation.score import score
from phantom_s2v.evaluation.selfcheck import Checked, Planted
from phantom_s2v.media.images import evenly_spaced, read_image
from phantom_s2v.media.videos import Video

PLANTED = ("other subject", "swapped", "pasted", "flashed", "blurred", "other clothes")
FRAMES, SIDE = 28, 480  # of a video, and pixels of their shorter side
FIRST = 3  # frames from which references are cut; the rest is the video
SHAPES = ((16, 9), (1, 1), (9, 16), (4, 3), (21, 9))
BLUR = 0.006  # of the shorter side
SHIFT = 40  # of 255 in Lab, of clothes
FLASHED = 2  # frames


@dataclass(frozen=True)
class Person:
    """A video's frames, uint8 [F, H, W, 3], and an image of who shows a face there, of another take."""

    name: str
    reference: np.ndarray
    frames: np.ndarray


def people(files: Iterable[Path], tools: Instruments) -> Iterator[Person]:
    """The people of videos, of each at most one."""
    for file in files:
        video = Video(file)
        wanted = set(evenly_spaced(video.facts.count - 1, FRAMES))
        frames = [shrunk(frame, SIDE) for number, (_, frame) in enumerate(video.frames()) if number in wanted]
        reference = _beside(file, tools)
        if reference is None:
            mirrored = (np.ascontiguousarray(frame[:, ::-1]) for frame in frames[:FIRST])
            reference = next((cut for frame in mirrored if (cut := portrait(frame, tools)) is not None), None)
        if reference is not None and len(frames) > FIRST + 2:
            yield Person(file.stem, reference, np.stack(frames[FIRST:]))


def pairs(files: Sequence[Path], tools: Instruments) -> Iterator[tuple[Person, Person]]:
    """Each person of videos and the next one, of the last the first; three are in memory.

    Raises InputError for fewer than two, which cannot be distinguished, or without face networks.
    """
    if not tools.faces:
        raise InputError("a self-check on videos needs phantom-s2v[people] and `phantom models fetch`")
    found = people(files, tools)
    first = next(found, None)
    second = next(found, None)
    if first is None or second is None:
        count = int(first is not None)
        raise InputError(f"a self-check on videos needs two or more that show a face (got {count} of {len(files)})")
    before = first
    for person in chain((second,), found, (first,)):
        yield before, person
        before = person


def _beside(file: Path, tools: Instruments) -> np.ndarray | None:
    """The image of a video's name beside it, if any. Raises InputError for one that shows no face to be compared."""
    path = next((p for suffix in IMAGE_SUFFIXES if (p := file.with_suffix(suffix)).is_file()), None)
    if path is None:
        return None
    image = shrunk(read_image(path)[0], SIDE)
    assert tools.faces
    if tools.faces.known(image) is None:
        raise InputError(f"{path} is the reference of {file.name} and shows no face that can be compared")
    return image


def portrait(frame: np.ndarray, tools: Instruments) -> np.ndarray | None:
    """Head and shoulders of the surest face that can be distinguished from others; None where there is none."""
    assert tools.faces
    for (left, top, right, bottom), _ in tools.faces.find(frame)[:1]:
        across, down = right - left, bottom - top
        cut = frame[max(0, top - down) : bottom + 2 * down, max(0, left - across) : right + across]
        return None if tools.faces.known(cut) is None else cut
    return None


def planted(fault: str, number: int, person: Person, other: Person, tools: Instruments) -> Planted | None:
    """A person's video, which is the `number`-th, with a fault, "" for none; None where it cannot show that one."""
    video, references, prompt = person.frames, (person.reference,), ""
    if fault == "other subject":
        references = (other.reference,)
    elif fault == "swapped":
        video, references = _side_by_side(other, person), (person.reference, other.reference)
        prompt = "The first subject at the left waits, and the second subject at the right waits."
    elif fault == "pasted":
        video = np.stack([fill(frame, SHAPES[number % len(SHAPES)], True) for frame in other.frames])
        video[len(video) // 2 :] = fill(person.reference, SHAPES[number % len(SHAPES)], bool(number % 2))
    elif fault == "flashed":
        video = video.copy()
        middle = len(video) // 2
        video[middle : middle + FLASHED] = fit(person.reference, video.shape[1:3], bool(number % 2))
    elif fault == "blurred":
        video = np.stack([cv2.GaussianBlur(frame, (0, 0), BLUR * min(frame.shape[:2])) for frame in video])
    elif fault == "other clothes":
        recolored = [_recolored(frame, number, tools) for frame in video]
        shown = [looks.clothes(person.reference, face) is not None for face in _faces(person.reference, tools)]
        if not any(shown) or any(frame is None for frame in recolored):
            return None
        video = np.stack([frame for frame in recolored if frame is not None])
    return Planted(fault, video, references, prompt)


def _faces(image: np.ndarray, tools: Instruments) -> list[looks.Box]:
    assert tools.faces
    return [face.box for face in tools.faces.find(image)[:1]]


def _recolored(frame: np.ndarray, number: int, tools: Instruments) -> np.ndarray | None:
    """What lies below the surest face in other colors; None where that is cut off."""
    boxes = [looks.torso(face, frame.shape) for face in _faces(frame, tools)]
    if not boxes or boxes[0] is None:
        return None
    _, top, _, _ = boxes[0]
    lab = cv2.cvtColor(frame[top:], cv2.COLOR_RGB2LAB).astype(np.int16)
    lab[..., 1] += round(SHIFT * np.cos(number))
    lab[..., 2] += round(SHIFT * np.sin(number))
    return np.concatenate([frame[:top], cv2.cvtColor(np.clip(lab, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)])


def _side_by_side(left: Person, right: Person) -> np.ndarray:
    """Both videos in one, each cropped to a square; of a frame that is higher than wide to its upper part, where heads are."""
    count = min(len(left.frames), len(right.frames))
    tops = [each.frames[:count, : each.frames.shape[2]] for each in (left, right)]
    halves = [np.stack([fill(frame, (1, 1), True) for frame in each]) for each in tops]
    return np.concatenate(halves, 2)


def fill(image: np.ndarray, aspect: tuple[int, int], cropped: bool) -> np.ndarray:
    """An image in a frame of an aspect (width, height), half as high or wide as SIDE."""
    shorter = SIDE // 2
    width, height = (shorter * side // min(aspect) // 2 * 2 for side in aspect)
    return fit(image, (height, width), cropped)


def fit(image: np.ndarray, size: tuple[int, ...], cropped: bool) -> np.ndarray:
    """An image in a frame of (height, width): on black, or cropped."""
    scale = (max if cropped else min)(size[0] / image.shape[0], size[1] / image.shape[1])
    resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    frame = np.zeros((*size, 3), np.uint8)
    top, left = ((a - b) // 2 for a, b in zip(resized.shape[:2], size, strict=True))
    part = resized[max(0, top) : max(0, top) + size[0], max(0, left) : max(0, left) + size[1]]
    frame[max(0, -top) : max(0, -top) + part.shape[0], max(0, -left) : max(0, -left) + part.shape[1]] = part
    return frame


def run(files: Sequence[Path], tools: Instruments, report: Callable[[int, int], None]) -> Checked:
    """Every video with every fault that it can show, and without, checked."""
    checked, kinds = Checked(tools.limits, PLANTED), (*PLANTED, "")
    for number, (person, other) in enumerate(pairs(files, tools)):
        for done, fault in enumerate(kinds, 1 + number * len(kinds)):
            if made := planted(fault, number, person, other, tools):
                names = ("first subject", "second subject")[: len(made.references)]
                checked.add(made, score(made.video, made.references, names, made.prompt, tools))
            report(done, len(files) * len(kinds))
    return checked
