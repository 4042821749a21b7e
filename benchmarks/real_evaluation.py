"""Figures of the evaluation on real films and photographs: pasted references, identity of things and of people, demonstrations.

`benchmarks/real.py SAMPLES --only pasted,flashes,photographs,people,planted,demonstrations` prints them. SAMPLES holds
real/photos (NAME-NN.jpg), real/clips and clips.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np

from phantom_s2v.evaluation import footage_check
from phantom_s2v.evaluation import score as judge
from phantom_s2v.evaluation.footage import shrunk, watch
from phantom_s2v.evaluation.instruments import Instruments
from phantom_s2v.evaluation.metrics.measures import over_time, reference_flash
from phantom_s2v.evaluation.metrics.pasting import copy_paste
from phantom_s2v.evaluation.networks import Wanted, instruments
from phantom_s2v.evaluation.score import faults, score, stranger_similarity
from phantom_s2v.evaluation.selfcheck import table
from phantom_s2v.media.images import evenly_spaced, read_image
from phantom_s2v.media.videos import Video

SHAPES = {"16:9": (240, 426), "1:1": (240, 240), "9:16": (426, 240), "4:3": (240, 320), "21:9": (240, 560)}
FRAMES = 12  # of a film
SIDE = 480  # pixels of the shorter side of a film
FLASH_FRAMES, FLASH = 25, slice(12, 14)  # of a video in which a reference flashes up
IDENTITY = {"other subject", "missing", "drifting"}
MOMENTS = 24  # frames of a film of people
WHOLE = slice(0, MOMENTS)
PEOPLE = {  # films in which a face is evident: frames that count, and those from which references are cut
    **dict.fromkeys(
        ("intel-bird", "intel-book", "lp-d0", "lp-d3", "lp-s13", "lp-s18", "os2v", "rr-", "tf-woman"), (WHOLE, WHOLE)
    ),
    "psd-goldeneye": (slice(14, MOMENTS), slice(21, MOMENTS)),  # a face that is drawn on a screen, then a woman and a man
}
REFERENCES = 4  # of a film, at most
DEMONSTRATIONS = {  # file -> the reference's inset (left, top, right, bottom) and where the video begins, in shares
    "samoyed": ((0.049, 0.054, 0.170, 0.342), 0.18),
    "cartoon-cat": ((0.058, 0.052, 0.161, 0.338), 0.18),
    "rabbit": ((0.024, 0.036, 0.222, 0.322), 0.23),
}


def photographs(samples: Path) -> dict[str, list[np.ndarray]]:
    """The photographs of every subject."""
    found: dict[str, list[np.ndarray]] = {}
    for file in sorted((samples / "real" / "photos").glob("*.jpg")):
        found.setdefault(file.stem.rsplit("-", 1)[0], []).append(read_image(file)[0])
    return found


def frames_of(file: Path, count: int = FRAMES) -> np.ndarray:
    """Evenly spaced frames, at most SIDE pixels high or wide."""
    video = Video(file)
    wanted = set(evenly_spaced(video.facts.count - 1, count))
    return np.stack([shrunk(frame, SIDE) for number, (_, frame) in enumerate(video.frames()) if number in wanted])


def zoomed(image: np.ndarray, count: int = FRAMES, by: float = 0.2) -> np.ndarray:
    """A slow zoom into an image."""
    height, width = image.shape[:2]
    scales = 1 - by * np.linspace(0, 1, count)
    warps = [np.array([[s, 0, width * (1 - s) / 2], [0, s, height * (1 - s) / 2]], np.float32) for s in scales]
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.stack([cv2.warpAffine(image, warp, (width, height), flags=how) for warp in warps])


def shaped(image: np.ndarray, size: tuple[int, int], cropped: bool) -> np.ndarray:
    """An image in a frame of another shape: on black, or cropped."""
    scale = (max if cropped else min)(size[0] / image.shape[0], size[1] / image.shape[1])
    resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    frame = np.zeros((*size, 3), np.uint8)
    top, left = ((a - b) // 2 for a, b in zip(resized.shape[:2], size, strict=True))
    part = resized[max(0, top) : max(0, top) + size[0], max(0, left) : max(0, left) + size[1]]
    frame[max(0, -top) : max(0, -top) + part.shape[0], max(0, -left) : max(0, -left) + part.shape[1]] = part
    return frame


def pasted(samples: Path, tools: Instruments) -> dict[str, object]:
    """Pasted references found at each shape, and those found in slow zooms of other photographs of the subject and in films."""
    hits: dict[str, list[bool]] = {name: [] for name in SHAPES}
    alarms = []
    subjects = photographs(samples)
    for name, size in SHAPES.items():
        for own, other, *_ in subjects.values():
            for cropped in (False, True):
                frames = [shrunk(frame) for frame in zoomed(shaped(own, size, cropped))[[3, 7]]]
                hits[name].append(copy_paste(frames, own) > tools.limits.pasted)
                alarms.append(copy_paste(frames, other) > tools.limits.pasted)
    references = [views[0] for views in subjects.values()]
    for number, file in enumerate(sorted((samples / "real" / "clips").iterdir())):
        frames = [shrunk(frame) for frame in frames_of(file, 3)]
        alarms += [copy_paste(frames, references[(number + k) % len(references)]) > tools.limits.pasted for k in (0, 7)]
    found = {name: f"{sum(each)}/{len(each)}" for name, each in hits.items()}
    return {"pasted_found": found, "pasted_false_alarms": f"{sum(alarms)}/{len(alarms)}"}


def flash_of(video: np.ndarray, image: np.ndarray, tools: Instruments) -> bool:
    """Whether an image is found to flash up in a video."""
    small = over_time(((i, shrunk(frame)) for i, frame in enumerate(video)), [image])
    return reference_flash(small.similarity[0], tools.limits.flashed)[0] > tools.limits.flashed


def flashes(samples: Path, tools: Instruments) -> dict[str, object]:
    """References that flash up for two frames, at each shape, in slow zooms of another photograph and of their own; and in none.

    They fit into the frame, cover it, or take three quarters of its shorter side at its corner.
    """
    hits: dict[str, list[bool]] = {name: [] for name in SHAPES}
    alarms, own_view = [], []
    for name, size in SHAPES.items():
        for number, (own, other, *_) in enumerate(photographs(samples).values()):
            video = zoomed(shaped(other, size, bool(number % 2)), FLASH_FRAMES)
            alarms.append(flash_of(video, own, tools))
            side = min(size) * 3 // 4
            inset = shaped(own, (side, side), False)
            for shown in (shaped(own, size, False), shaped(own, size, True), inset):
                flashing = video.copy()
                flashing[FLASH, : shown.shape[0], : shown.shape[1]] = shown
                hits[name].append(flash_of(flashing, own, tools))
            video = zoomed(shaped(own, size, True), FLASH_FRAMES)
            video[FLASH] = shaped(own, size, False)
            own_view.append(flash_of(video, own, tools))
    return {
        "flashes_found": {name: f"{sum(each)}/{len(each)}" for name, each in hits.items()},
        "flashes_false_alarms": f"{sum(alarms)}/{len(alarms)}",
        "flashes_found_in_own_view": f"{sum(own_view)}/{len(own_view)}",
    }


def remembering(embed: Callable[[list[np.ndarray]], np.ndarray]) -> Callable[[list[np.ndarray]], np.ndarray]:
    """The same network, which sees no image twice."""
    known: dict[bytes, np.ndarray] = {}

    def remembered(images: list[np.ndarray]) -> np.ndarray:
        keys = [str(image.shape).encode() + image.tobytes() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in known}
        if new:
            known.update(zip(new, embed(list(new.values())), strict=True))
        return np.stack([known[key] for key in keys])

    return remembered


def auc(own: Iterable[float], others: Iterable[float]) -> float:
    """Chance that an own value is above another's."""
    rest = np.array(list(others))
    return round(float(np.mean([np.mean(value > rest) + 0.5 * np.mean(value == rest) for value in own])), 4)


def identified(samples: Path, tools: Instruments) -> dict[str, object]:
    """Slow zooms of photographs against another photograph of each subject."""
    subjects = photographs(samples)
    references = {name: views[1] for name, views in subjects.items()}
    own, others, first, flagged = [], [], 0, []
    for name, views in subjects.items():
        known = replace(tools, embed=remembering(tools.embed))
        video = zoomed(views[0])
        footage = watch(video, [], known)
        values = {n: stranger_similarity(footage, image, known) or -1.0 for n, image in references.items()}
        told = faults(score(video, [references[name]], [name], "", known), known.limits)
        first += max(values, key=values.__getitem__) == name
        own.append(values.pop(name))
        others += values.values()
        flagged += [f"{name}: {', '.join(told)}"] if told else []
    figures = {"top1": f"{first}/{len(own)}", "auc": auc(own, others), "own_flagged": f"{len(flagged)}/{len(own)}"}
    passed = sum(value >= tools.limits.in_windows for value in others)
    return {f"photographs_{k}": v for k, v in {**figures, "flagged": flagged, "others_passed": f"{passed}/{len(others)}"}.items()}


def seen_once(find: Callable[[np.ndarray], list[Any]]) -> Callable[[np.ndarray], list[Any]]:
    """The same faces, which are looked for in no image twice."""
    known: dict[bytes, list[Any]] = {}

    def found(image: np.ndarray) -> list[Any]:
        key = image.tobytes()
        if key not in known:
            known[key] = find(image)
        return known[key]

    return found


def portrait(frame: np.ndarray) -> np.ndarray | None:
    """Head and shoulders of the surest face."""
    from phantom_s2v.vision.faces import faces

    if not (found := faces(frame)):
        return None
    (left, top, right, bottom), _ = found[0]
    across, down = right - left, bottom - top
    rows = slice(max(0, top - down), bottom + 2 * down)
    return frame[rows, max(0, left - across) : right + across]


def shown_people(samples: Path) -> dict[str, tuple[np.ndarray, dict[int, np.ndarray]]]:
    """Of each film of people its frames, and head and shoulders of who shows in some of them, by their number."""
    shown = {}
    for file in sorted((samples / "real" / "clips").iterdir()):
        for count, cut in (each for prefix, each in PEOPLE.items() if file.name.startswith(prefix)):
            frames = frames_of(file, MOMENTS)
            numbers = range(*cut.indices(len(frames)))
            chosen = [numbers[i] for i in evenly_spaced(len(numbers), REFERENCES)]
            parts = {number - count.start: portrait(frames[number]) for number in chosen}
            shown[file.stem] = frames[count], {number: part for number, part in parts.items() if part is not None}
    return shown


def people(samples: Path, tools: Instruments) -> dict[str, object]:
    """People cut from films against the other frames of their own and against every other film."""
    shown = shown_people(samples)
    assert tools.faces
    once = replace(tools.faces, find=seen_once(tools.faces.find))
    known = replace(tools, embed=remembering(tools.embed), faces=once)
    right, wrong = [], []
    seen = {name: watch(video, [], known) for name, (video, _) in shown.items()}
    for name, (video, references) in shown.items():
        for number, reference in references.items():
            for other, whole in seen.items():
                own = name == other
                footage = watch(np.delete(video, number, 0), [], known) if own else whole
                footage = replace(footage, small=replace(footage.small, similarity=np.zeros((1, footage.count, 1))))
                # neither tells who it is, and both take most of the time
                with patch.object(judge, "copy_paste", lambda *_: -1.0), patch.object(judge.looks, "blur", lambda _: 0.0):
                    scored = judge.score_footage(footage, [reference], ["person"], "", known)
                told = IDENTITY & set(faults(scored, known.limits))
                values = f"face {scored.subjects[0].face:.3f}, similarity {scored.similarity:.3f}"
                (right if own else wrong).append((f"{name} {number} in {other}: {values}", bool(told)))
    return {
        "people": len(shown),
        "right_person_flagged": f"{sum(told for _, told in right)}/{len(right)}",
        "wrong_person_passed": f"{sum(not told for _, told in wrong)}/{len(wrong)}",
        "people_mistaken": [pair for pair, told in right if told] + [pair for pair, told in wrong if not told],
    }


def demonstrations(samples: Path, tools: Instruments) -> dict[str, object]:
    """Faults of Phantom's demonstrations, whose reference is an inset."""
    told = {}
    for name, ((left, top, right, bottom), start) in DEMONSTRATIONS.items():
        frames = frames_of(samples / "clips" / f"{name}.mov")
        height, width = frames.shape[1:3]
        reference = frames[0][round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
        scored = score(np.ascontiguousarray(frames[:, :, round(start * width) :]), [reference], [name], "", tools)
        told[name] = {"similarity": round(scored.similarity, 3), "faults": list(faults(scored, tools.limits))}
    return {"demonstrations": told}


@cache
def _tools() -> Instruments:
    return instruments(Wanted())


def planted(samples: Path, tools: Instruments) -> dict[str, object]:
    """Faults planted in the given source videos of people, as `phantom evaluate self-check` does: found, and false alarms."""
    files = [file for file in sorted((samples / "real" / "clips").iterdir()) if file.name.startswith(tuple(PEOPLE))]
    assert tools.faces
    once = replace(tools.faces, find=seen_once(tools.faces.find))
    known = replace(tools, embed=remembering(tools.embed), faces=once)
    checked = footage_check.run(files, known, lambda *_: None)
    return {"planted": table(checked)}


FIGURES: dict[str, Callable[[Path], dict[str, object]]] = {
    "pasted": lambda samples: pasted(samples, _tools()),
    "flashes": lambda samples: flashes(samples, _tools()),
    "photographs": lambda samples: identified(samples, _tools()),
    "people": lambda samples: people(samples, _tools()),
    "planted": lambda samples: planted(samples, _tools()),
    "demonstrations": lambda samples: demonstrations(samples, _tools()),
}
