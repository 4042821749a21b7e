"""Which reference is where: regions of frames, their similarity to the references, and what follows for each subject."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from phantom_s2v.data.detectors.objects import detect_objects, fills, plain_background
from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.data.pipeline.subjects import cutout
from phantom_s2v.evaluation.instruments import Embed, Thresholds
from phantom_s2v.geometry import covered, squares

SMALLEST = 0.012  # share of a frame
APART = 0.3  # share of the smaller of two windows that both may cover
SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Sighting:
    """What one frame shows: boxes of regions (left, top, right, bottom) in shares, cutouts, similarity [regions, references]."""

    frame: int
    boxes: np.ndarray
    cutouts: list[np.ndarray]
    similarity: np.ndarray
    assigned: dict[int, int]  # reference -> the region that is most likely its own

    @property
    def centers(self) -> np.ndarray:
        """Of the regions, (x, y) in shares."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2


@dataclass(frozen=True)
class SubjectRegions:
    """Sightings of references in a video, and what they were held against."""

    sightings: list[Sighting]
    cut: list[np.ndarray | None]  # of every reference; None has no segmentable subject
    similarity: np.ndarray  # over time, [references, frames], nan where not seen
    in_windows: list[bool]  # of every reference: it was looked for in windows of the frames


def find_subjects(
    stills: Mapping[int, np.ndarray], images: Sequence[np.ndarray], embed: Embed, limits: Thresholds
) -> SubjectRegions:
    """Look for references, uint8 [h, w, 3], in frames of a video, number -> uint8 [H, W, 3].

    On a plain background regions are segmented, and references are cut out likewise; a reference in which nothing stands
    out is looked for in whole frames, and always seen. What is not found so, and everything on a background of many colors, is
    looked for in windows, with the references as whole images: photographs often have plain backgrounds from which what
    stands out is a shadow or a part. Windows count where they are as like the reference as `limits` ask for, so that a subject
    that is missing on a plain background stays missing.
    """
    plain = plain_background(list(stills.values()))
    cut = [cut_reference(image) if plain else None for image in images]
    seen = look(stills, cut, embed) if plain else [_nothing(i, len(images)) for i in stills]
    values = _over_time(seen, len(images))
    for i, image in enumerate(images):
        if plain and cut[i] is None:
            values[i] = embed(list(stills.values())) @ embed([image])[0]
    lost = [
        i for i, row in enumerate(values) if not plain or (limits.on_plain < 1 and not _found(row, limits.similarity, limits))
    ]
    if not lost:
        return SubjectRegions(seen, cut, values, [False] * len(images))
    known = embed([images[i] for i in lost])
    windows = [_look_in_windows(still, i, known, embed) for i, still in stills.items()]
    own = _over_time(windows, len(lost))
    taken = [k for k in range(len(lost)) if not plain or _found(own[k], limits.on_plain, limits)]
    for k in taken:
        values[lost[k]], cut[lost[k]] = own[k], images[lost[k]]
    joint = [_joined(one, other, {k: lost[k] for k in taken}) for one, other in zip(seen, windows, strict=True)]
    return SubjectRegions(joint, cut, values, [i in {lost[k] for k in taken} for i in range(len(images))])


def _found(over_time: np.ndarray, bound: float, limits: Thresholds) -> bool:
    """Whether a subject is in enough frames, and like its reference on average."""
    there = ~np.isnan(over_time)
    return bool(there.mean() >= limits.seen and over_time[there].mean() >= bound)


def _nothing(frame: int, references: int) -> Sighting:
    return Sighting(frame, np.zeros((0, 4)), [], np.zeros((0, references)), {})


def _joined(regions: Sighting, windows: Sighting, references: Mapping[int, int]) -> Sighting:
    """Regions of a frame and, for some `references` (column of the windows -> reference), windows instead."""
    if not references:
        return regions
    similarity = np.full((len(windows.cutouts), regions.similarity.shape[1]), -1.0)
    similarity[:, list(references.values())] = windows.similarity[:, list(references)]
    first = len(regions.cutouts)
    assigned = {i: r for i, r in regions.assigned.items() if i not in references.values()}
    assigned |= {references[k]: first + r for k, r in windows.assigned.items() if k in references}
    return Sighting(
        regions.frame,
        np.concatenate([regions.boxes, windows.boxes]),
        [*regions.cutouts, *windows.cutouts],
        np.concatenate([regions.similarity, similarity]),
        assigned,
    )


def look(stills: Mapping[int, np.ndarray], references: Sequence[np.ndarray | None], embed: Embed) -> list[Sighting]:
    """Segmented regions of frames, number -> uint8 [H, W, 3]; `references` are cut out, and None has no region and similarity
    -1.
    """
    images = list(stills.values())
    detections = [_large(each) for each in detect_objects(images, [])]
    cut = [[cutout(still, d) for d in each] for still, each in zip(images, detections, strict=True)]
    wanted = {i: image for i, image in enumerate(references) if image is not None}
    flat = [c for each in cut for c in each]
    similarity = np.full((len(flat), len(references)), -1.0)
    if flat and wanted:
        similarity[:, list(wanted)] = embed(flat) @ embed(list(wanted.values())).T
    sightings, start = [], 0
    for (frame, still), each, cuts in zip(stills.items(), detections, cut, strict=True):
        own = similarity[start : start + len(cuts)]
        start += len(cuts)
        boxes = np.array([d.box for d in each], float).reshape(-1, 4)
        sightings.append(Sighting(frame, _shares(boxes, still.shape), cuts, own, _assigned(own, list(wanted))))
    return sightings


def _look_in_windows(image: np.ndarray, frame: int, known: np.ndarray | None, embed: Embed) -> Sighting:
    """The whole frame and squares of it, as high as it is and half; of those that overlap, the one most like a reference.

    Neighboring squares share a third: with a half, similarity rises by 0.02 and the time by a quarter (dev/LOG.md).
    """
    height, width = image.shape[:2]
    sides = [max(2, min(height, width) // part) for part in (1, 2)]
    boxes = [(0, 0, width, height), *(box for side in sides for box in squares(width, height, side, 2 * side // 3))]
    parts = [image[top:bottom, left:right] for left, top, right, bottom in boxes]
    similarity = np.zeros((len(boxes), 0)) if known is None else embed(parts) @ known.T
    kept: list[int] = []
    for i in np.argsort(-similarity.max(1, initial=-1), kind="stable").tolist():
        if all(covered(boxes[i], boxes[k]) < APART for k in kept):
            kept.append(i)
    own = similarity[kept]
    places = _shares(np.array([boxes[k] for k in kept], float), image.shape)
    return Sighting(frame, places, [parts[k] for k in kept], own, _assigned(own, list(range(own.shape[1]))))


def _assigned(similarity: np.ndarray, wanted: list[int]) -> dict[int, int]:
    """Reference -> region, so that the sum of similarity [regions, references] is the largest; `wanted` alone can be found."""
    rows, columns = linear_sum_assignment(-similarity[:, wanted])
    return {wanted[c]: int(r) for r, c in zip(rows, columns, strict=True)}


def _over_time(sightings: list[Sighting], references: int) -> np.ndarray:
    values = [[s.similarity[s.assigned[i], i] if i in s.assigned else np.nan for s in sightings] for i in range(references)]
    return np.array(values, float).reshape(references, len(sightings))


def cut_reference(image: np.ndarray) -> np.ndarray | None:
    """A reference as regions of frames are: its largest object on white, or the whole image where a subject fills it.

    None if it has no segmentable subject.
    """
    detections = _large(detect_objects([image], [])[0])
    if detections:
        return cutout(image, max(detections, key=lambda d: d.score))
    return image if fills(image) else None


def _large(detections: list[Detection]) -> list[Detection]:
    return [d for d in detections if d.mask.mean() >= SMALLEST]


def _shares(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return boxes / [shape[1], shape[0], shape[1], shape[0]]


def doubled(sightings: list[Sighting], reference: int, min_similarity: float) -> float:
    """Share of frames in which a second region is as like a reference as `min_similarity`, and liker than to any other."""
    hits = []
    for s in sightings:
        own = s.assigned.get(reference)
        others = [i for i in range(len(s.similarity)) if i != own and i not in s.assigned.values()]
        hits.append(any(s.similarity[i, reference] >= min_similarity and s.similarity[i].argmax() == reference for i in others))
    return float(np.mean(hits)) if hits else 0.0


def places_asked(prompt: str, names: Sequence[str]) -> list[str]:
    """Side that a prompt gives each subject, "" where none: from the clause that names it, or calls it first, second and so on.

    >>> places_asked("The red fox at the left runs, the second subject at the right sits.", ["red fox", "owl"])
    ['left', 'right']
    """
    clauses = re.split(r"[,;.]|\band\b", prompt.lower())
    detections = []
    for name, ordinal in zip(names, ("first", "second", "third", "fourth"), strict=False):
        own = next((c for c in clauses if name.lower() in c), "") or next((c for c in clauses if f"{ordinal} " in c), "")
        detections.append(next((side for side in SIDES if re.search(rf"\b(?:at|on|in) the {side}\b", own)), ""))
    return detections


def misplaced(
    sightings: list[Sighting],
    places: Sequence[str],
    min_similarity: Sequence[float],
    faces: Sequence[Mapping[int, np.ndarray]] = (),
) -> float:
    """Share of frames in which two subjects that are there, as like their references as `min_similarity` of each, stand on each
    other's side: mixed up. `faces` are the centers (x, y) of known faces in each frame, by reference: of two people they decide,
    since similarity tells people apart worse than things.
    """
    axis = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}
    asked = [(i, axis[place]) for i, place in enumerate(places) if place]
    wrong = []
    for s, known in zip(sightings, faces or [{}] * len(sightings), strict=True):
        there = {i: s.centers[r] for i, r in s.assigned.items() if s.similarity[r, i] >= min_similarity[i]}
        for (i, (a, sign)), (j, (b, other)) in combinations(asked, 2):
            centers = known if i in known and j in known else there
            if a == b and sign != other and i in centers and j in centers:
                wrong.append((centers[i][a] - centers[j][a]) * sign < 0)
    return float(np.mean(wrong)) if wrong else 0.0
