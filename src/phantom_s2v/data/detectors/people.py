"""Persons with a face, and objects that are none of them (phantom-s2v[people])."""

from typing import cast

import numpy as np
from scipy import ndimage

from phantom_s2v.data.detectors.objects import box_of, detect_objects
from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.geometry import iou
from phantom_s2v.vision import faces

SAME = 0.5  # share from which on an object is a part of a person


def detect_people_too(stills: list[np.ndarray], phrases: list[str]) -> list[list[Detection]]:
    """Persons with a face, each the part of the person mask that contains the face; then objects that are none of them."""
    detections = []
    for still, objects in zip(stills, detect_objects(stills, phrases), strict=True):
        persons = _persons(still)
        apart = [o for o in objects if all(iou(o.box, p.box) < SAME and _covered(o, p) < SAME for p in persons)]
        detections.append([*persons, *apart])
    return detections


def _persons(still: np.ndarray) -> list[Detection]:
    """Connected parts of the person mask that hold a face."""
    face_boxes = faces.faces(still)
    if not face_boxes:
        return []
    labels, _ = cast(tuple[np.ndarray, int], ndimage.label(faces.person_mask(still)))
    persons: dict[int, float] = {}
    for (left, top, right, bottom), score in face_boxes:
        part = int(labels[(top + bottom) // 2, (left + right) // 2])
        persons[part] = max(persons.get(part, 0.0), score)
    return [Detection(box_of(labels == p), labels == p, "", score, is_person=True) for p, score in persons.items() if p]


def _covered(one: Detection, other: Detection) -> float:
    """Share of one mask inside the other."""
    return float((one.mask & other.mask).sum() / max(1, one.mask.sum()))
