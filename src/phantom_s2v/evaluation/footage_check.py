"""Does the evaluation see what it should on videos? Faults planted in a user's own, in which people show their faces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.footage import shrunk
from phantom_s2v.evaluation.instruments import Instruments
from phantom_s2v.evaluation.metrics import looks
from phantom_s2v.evaluation.score import score
from phantom_s2v.evaluation.selfcheck import Checked, Planted
from phantom_s2v.media.images import evenly_spaced
from phantom_s2v.media.videos import Video

PLANTED = ("other subject", "swapped", "pasted", "flashed", "blurred", "other clothes")
FRAMES, SIDE = 12, 480  # of a video, and pixels of their shorter side
FIRST = 3  # frames from which references are cut; the rest is the video
SHAPES = ((16, 9), (1, 1), (9, 16), (4, 3), (21, 9))
BLUR = 0.006  # of the shorter side
SHIFT = 40  # of 255 in Lab, of clothes
FLASHED = slice(4, 6)


@dataclass(frozen=True)
class Person:
    """A video's frames, uint8 [F, H, W, 3], and head and shoulders of who shows a face in its first frames."""

    name: str
    reference: np.ndarray
    frames: np.ndarray


def people(files: Sequence[Path], tools: Instruments) -> list[Person]:
    """The people of videos. Raises InputError for fewer than two, which cannot be distinguished, or without face networks."""
    if not tools.faces:
        raise InputError("a self-check on videos needs phantom-s2v[people] and `phantom models fetch`")
    found = []
    for file in files:
        video = Video(file)
        wanted = set(evenly_spaced(video.facts.count - 1, FRAMES))
        frames = [shrunk(frame, SIDE) for number, (_, frame) in enumerate(video.frames()) if number in wanted]
        cut = next((p for frame in frames[:FIRST] if (p := portrait(frame, tools)) is not None), None)
        if cut is not None and len(frames) > FIRST + 2:
            found.append(Person(file.stem, cut, np.stack(frames[FIRST:])))
    if len(found) < 2:
        raise InputError(f"a self-check on videos needs two or more that show a face (got {len(found)} of {len(files)})")
    return found


def portrait(frame: np.ndarray, tools: Instruments) -> np.ndarray | None:
    """Head and shoulders of the surest face that can be distinguished from others; None where there is none."""
    assert tools.faces
    for left, top, right, bottom in tools.faces.boxes(frame)[:1]:
        across, down = right - left, bottom - top
        cut = frame[max(0, top - down) : bottom + 2 * down, max(0, left - across) : right + across]
        return cut if tools.faces.find(cut) else None
    return None


def planted(fault: str, number: int, some: Sequence[Person], tools: Instruments) -> Planted | None:
    """Video `number` with a fault, "" for none; None where it cannot show that one."""
    person, other = some[number], some[(number + 1) % len(some)]
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
        video[FLASHED] = fit(person.reference, video.shape[1:3], False)
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
    return tools.faces.boxes(image)[:1]


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
    """Both videos in one, each cropped to a square."""
    count = min(len(left.frames), len(right.frames))
    halves = [np.stack([fill(frame, (1, 1), True) for frame in each.frames[:count]]) for each in (left, right)]
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
    some = people(files, tools)
    checked = Checked(tools.limits, PLANTED)
    todo = [(fault, n) for fault in (*PLANTED, "") for n in range(len(some))]
    for done, (fault, n) in enumerate(todo, 1):
        if made := planted(fault, n, some, tools):
            names = ("first subject", "second subject")[: len(made.references)]
            checked.add(made, score(made.video, made.references, names, made.prompt, tools))
        report(done, len(todo))
    return checked
