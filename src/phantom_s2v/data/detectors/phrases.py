"""Subjects for the noun phrases of a caption, by an open-vocabulary detector, and by SAM2, which follows them, where it is given.

Phrases that mean one subject ("gray wolf", "wolf") are one: their masks are the same wherever both are seen.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from phantom_s2v.data.detectors.objects import box_of
from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.geometry import iou
from phantom_s2v.vision.detect import Found
from phantom_s2v.vision.segment import ClipSegmenter
from phantom_s2v.vision.vlm import VisionLanguageModel

AGREE = 0.5  # IoU from which on the detector's box is where SAM2 followed the subject to
SAME = 0.8  # IoU of masks from which on two phrases mean one subject; a coat and who wears it have less
APART = 0.3  # IoU below which they mean two
# Why what was found is no subject.
DISAGREE, SEVERAL = "detector and segmenter disagree", "its phrase matches several places"
Seen = dict[str, tuple[np.ndarray, float]]  # phrase -> mask bool [H, W], score of the detector, 0 where SAM2 alone sees it
Steps = Iterable[tuple[int | None, np.ndarray]]  # number of the still or, between stills, None; frame uint8 [H, W, 3]


def detect_phrases(
    detector: Callable[[list[np.ndarray], list[str]], list[list[Found]]],
    segmenter: ClipSegmenter | None,
    vlm: VisionLanguageModel | None,
    stills: list[np.ndarray],
    phrases: list[str],
    steps: Steps = (),
) -> list[list[Detection]]:
    """Subjects in each still, with SAM2's masks, or whole boxes without SAM2.

    `steps` are the stills with frames between them, in which SAM2 follows the subjects. A `vlm` says which things carry their
    logo whole: those are paired with other source videos as well. What is found and is no subject comes last, with the reason.
    """
    everything = detector(stills, phrases)
    often = [{name for name, count in Counter(name for _, name, _ in each).items() if count > 1} for each in everything]
    found = [[row for row in each if row[1] not in names] for each, names in zip(everything, often, strict=True)]
    if not any(found):
        seen, apart = [Seen() for _ in stills], [list[Found]() for _ in stills]
    elif segmenter:
        seen, apart = followed(segmenter, found, steps or enumerate(stills))
    else:
        seen, apart = [_boxes(*each) for each in zip(stills, found, strict=True)], [list[Found]() for _ in stills]
    names = one_name(seen)
    detections = [_detections(each, names) for each in seen]
    detections = _with_logos(vlm, stills, detections) if vlm else detections
    for number, each in enumerate(detections):
        nameless = often[number] | (seen[number].keys() - names)
        each += [_unsure(stills[number], row, DISAGREE) for row in apart[number]]
        each += [_unsure(stills[number], row, SEVERAL) for row in everything[number] if row[1] in nameless]
    return detections


def _unsure(still: np.ndarray, row: Found, reason: str) -> Detection:
    """What a detector found, as no subject."""
    (mask, score), name = _boxes(still, [row])[row[1]], row[1]
    return Detection(row[0], mask, name, score, unsure=reason)


def followed(segmenter: ClipSegmenter, found: list[list[Found]], steps: Steps) -> tuple[list[Seen], list[list[Found]]]:
    """What is seen in each still: subjects that were found in it or before. Apart, where detector and SAM2 disagree."""
    apart = [list[Found]() for _ in found]
    session, names, seen = None, list[str](), list[Seen]()
    for number, frame in steps:
        session = session or segmenter.session(*frame.shape[:2])
        masks = session.see(frame)
        if number is None:
            continue
        here: Seen = {name: (mask, 0.0) for name, mask in zip(names, masks, strict=True) if mask.any()}
        for box, name, score in found[number]:
            if name in here and iou(box_of(here[name][0]), box) >= AGREE:
                here[name] = (here[name][0], score)
            elif name in names:
                here.pop(name, None)
                apart[number].append((box, name, score))
        if fresh := [row for row in found[number] if row[1] not in names]:
            masks = session.add([box for box, _, _ in fresh])[-len(fresh) :]
            here |= {name: (mask, score) for (_, name, score), mask in zip(fresh, masks, strict=True) if mask.any()}
            names += [name for _, name, _ in fresh]
        seen.append(here)
    return seen, apart


def _boxes(still: np.ndarray, found: list[Found]) -> Seen:
    """Whole boxes as masks."""
    seen: Seen = {}
    for (left, top, right, bottom), name, score in found:
        mask = np.zeros(still.shape[:2], bool)
        mask[top:bottom, left:right] = True
        seen[name] = (mask, score)
    return seen


def one_name(seen: list[Seen]) -> dict[str, str]:
    """Phrase -> the name of its subject: its surest phrase. A phrase that means two subjects has none and is left out."""
    total: dict[str, float] = {}
    for each in seen:
        for name, (_, score) in each.items():
            total[name] = total.get(name, 0.0) + score
    names: dict[str, str] = {}
    for name in sorted(total, key=lambda name: (-total[name], -len(name), name)):
        overlap = {other: _overlaps(seen, name, other) for other in names}
        same = {names[other] for other, each in overlap.items() if each and max(each) >= SAME}
        apart = {names[other] for other, each in overlap.items() if each and min(each) < APART}
        if not same:
            names[name] = name
        elif len(same) == 1 and not same & apart:
            names[name] = same.pop()
    return names


def _overlaps(seen: list[Seen], one: str, other: str) -> list[float]:
    """IoU of the masks of two phrases in the stills that show both."""
    pairs = [(each[one][0], each[other][0]) for each in seen if one in each and other in each]
    return [float((a & b).sum() / max(1, (a | b).sum())) for a, b in pairs]


def _detections(seen: Seen, names: dict[str, str]) -> list[Detection]:
    """One detection for each subject of a still, by its surest phrase."""
    best: dict[str, tuple[np.ndarray, float]] = {}
    for phrase, (mask, score) in seen.items():
        name = names.get(phrase)
        if name and (name not in best or score > best[name][1]):
            best[name] = (mask, score)
    return [Detection(box_of(mask), mask, name, score) for name, (mask, score) in best.items()]


def _with_logos(vlm: VisionLanguageModel, stills: list[np.ndarray], detections: list[list[Detection]]) -> list[list[Detection]]:
    """The same detections, with the model's word on each crop, asked together."""
    crops = [
        still[d.box[1] : d.box[3], d.box[0] : d.box[2]] for still, each in zip(stills, detections, strict=True) for d in each
    ]
    said = iter(vlm.have_logos(crops))
    return [[replace(d, has_logo=next(said)) for d in each] for each in detections]
