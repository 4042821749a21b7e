"""People by their pose, and objects that are none of them (phantom-s2v[people])."""

from collections.abc import Sequence

import cv2
import numpy as np

from phantom_s2v.data.detectors.objects import detect_objects
from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.geometry import iou
from phantom_s2v.vision import pose

SAME = 0.5  # share from which on an object is a part of a person
LOOKED_AT = 0.6  # score from which on a person is looked at, if `Config.person` is not less
REACH = 0.7  # how far a person's mask goes from the limbs, in widths of the shoulders
LIMBS = ((7, 0), (8, 0), (11, 12), (11, 23), (12, 24), (23, 24), (11, 13), (13, 15), (15, 19), (12, 14), (14, 16), (16, 20),
         (23, 25), (25, 27), (27, 31), (24, 26), (26, 28), (28, 32), (0, 11), (0, 12))  # fmt: skip


def detect_people_too(
    stills: list[np.ndarray], phrases: list[str], around: Sequence[np.ndarray] = (), least: float = LOOKED_AT
) -> list[list[Detection]]:
    """People of a score of at least `least`, each with its mask; then objects that are none of them, and no part of one."""
    found = []
    for still, objects in zip(stills, detect_objects(stills, phrases, around), strict=True):
        persons = _persons(still, least)
        apart = [o for o in objects if all(iou(o.box, p.box) < SAME and _covered(o, p) < SAME for p in persons)]
        found.append([*persons, *apart])
    return found


def _persons(still: np.ndarray, least: float) -> list[Detection]:
    poses = pose.people(still, least, least)
    height, width = still.shape[:2]
    persons = []
    for each, mask in zip(poses, _apart(poses), strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        head, shoulders = each.points[list(pose.HEAD)], each.points[list(pose.SHOULDERS)]
        inside = ((head >= 0) & (head < [width, height])).all(1)
        outside = np.maximum(-shoulders, shoulders - [width, height]) / [width, height]
        persons.append(
            Detection(
                (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
                mask,
                score=min(each.found, each.sure),
                is_person=True,
                unnamed=True,
                head=float(inside.mean()),
                shoulders=float(max(0.0, outside.max())),
            )
        )
    return persons


def _apart(poses: list[pose.Pose]) -> list[np.ndarray]:
    """Masks of people that do not overlap: a pixel belongs to those whose limbs are nearest, within reach of them."""
    away = [_away(each) for each in poses]
    nearest = np.min(away, 0) if away else None
    return [pose.largest(each.mask & (own <= nearest) & (own <= REACH)) for each, own in zip(poses, away, strict=True)]


def _away(person: pose.Pose) -> np.ndarray:
    """Distance of every pixel from a person's limbs, in widths of the shoulders, float32 [H, W]."""
    points, lines = person.points, np.ones(person.mask.shape, np.uint8)
    ends = np.clip(points, -9999, 9999).round().astype(int)
    for a, b in LIMBS:
        cv2.line(lines, ends[a].tolist(), ends[b].tolist(), 0, 2)
    return cv2.distanceTransform(lines, cv2.DIST_L2, 5) / pose.width(points)


def _covered(one: Detection, other: Detection) -> float:
    """Share of one mask inside the other."""
    return float((one.mask & other.mask).sum() / max(1, one.mask.sum()))
