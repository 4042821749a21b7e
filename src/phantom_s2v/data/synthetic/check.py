"""What the data pipeline finds in source videos whose truth is known (source videos.py), in numbers."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.data.pipeline.frames import WHOLE
from phantom_s2v.data.pipeline.groups import PairGroups
from phantom_s2v.data.pipeline.index import SubjectIndex
from phantom_s2v.data.pipeline.pair import repeats
from phantom_s2v.geometry import iou

BOUNDS = {"embedder": "phantom-mini", "lower": 0.85}  # set on source videos of the training emoji (dev/LOG.md)
IOU = 0.7
CROPPED = "black borders cropped"  # what becomes of a clip with black borders
NEAR = 1  # frames by which a cut may be off


@dataclass
class Counts:
    """Counts over source videos."""

    cuts: list[int] = field(default_factory=lambda: [0, 0, 0])  # right, invented, missed
    seen: int = 0
    shown: int = 0
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind of shot, reason


@dataclass(frozen=True)
class Known:
    """A subject of the index as the truth knows it."""

    source_video: str
    shot: int
    identity: int  # -1: nothing that the truth knows
    decoy_of: int
    original: int  # the shot that a duplicate repeats, else the shot itself


def evaluate_pipeline(
    subject_index: SubjectIndex, source_videos: list[Path], pairs: Iterable[Record], config: Config
) -> dict[str, float]:
    """shot_f1, subject_recall, pair and identity precision and recall, near_duplicates_kept, decoys_kept, and their counts."""
    truths = {str(path): json.loads(path.with_suffix(".truth.json").read_text()) for path in source_videos}
    clips: dict[str, list[Record]] = {path: [] for path in truths}
    names = {row["source_video"]: row["path"] for row in subject_index.source_videos()}
    for row in subject_index.rows("clips", ["facts"]):
        facts = json.loads(row["facts"])
        if names.get(facts["source_video"]) in clips:
            clips[names[facts["source_video"]]].append(_in_frame(facts))
    counts, known, repeated, groups = Counts(), {}, repeats(subject_index, config), PairGroups()
    for path, truth in truths.items():
        count_cuts(clips[path], truth, counts.cuts)
        for clip in clips[path]:
            number = shot_of(clip, truth)
            if number is not None:
                kind = truth["shots"][number]["kind"]
                whole = tuple(clip.get("crop", WHOLE)) == WHOLE
                counts.drops[kind, CROPPED if kind == "borders" and not whole else clip["drop"]] += 1
                who = _identified(clip, truth, number, counts, config)
                if not clip["drop"] and clip["clip"] not in repeated:
                    known |= {subject: Known(path, number, *each) for subject, each in who.items()}
    right, invented, missed = counts.cuts
    return {
        "shot_f1": 2 * right / max(1, 2 * right + invented + missed),
        "subject_recall": counts.seen / max(1, counts.shown),
        **pair_metrics(_kept(pairs, groups), known, truths),
        **identity_metrics(groups, known),
        "shots": sum(len(t["shots"]) for t in truths.values()),
        "subjects": counts.shown,
        "faults_found": faults_found(counts.drops),
        "good_dropped": good_dropped(counts.drops),
    }


def _in_frame(clip: Record) -> Record:
    """A clip whose views' boxes are those in the frame with its black borders."""
    left, top, right, bottom = clip.get("crop", WHOLE)
    across = round(left / (right - left) * clip["width"])
    down = round(top / (bottom - top) * clip["height"])
    moved = [{**v, "box": [a + b for a, b in zip(v["box"], (across, down, across, down), strict=True)]} for v in clip["views"]]
    return {**clip, "views": moved}


def count_cuts(clips: list[Record], truth: Record, cuts: list[int]) -> None:
    """Add one source video's right, invented and missed cuts."""
    mine, theirs = ([c["start"] for c in each if c["start"]] for each in (clips, truth["shots"]))
    hit = sum(any(abs(a - b) <= NEAR for a in mine) for b in theirs)
    cuts[0] += hit
    cuts[1] += sum(all(abs(a - b) > NEAR for b in theirs) for a in mine)
    cuts[2] += len(theirs) - hit


def shot_of(clip: Record, truth: Record) -> int | None:
    """The shot that a clip is."""
    return next((i for i, s in enumerate(truth["shots"]) if abs(s["start"] - clip["start"]) <= NEAR), None)


def _identified(clip: Record, truth: Record, number: int, counts: Counts, config: Config) -> dict[str, tuple[int, int, int]]:
    """(identity, whose decoy, original shot) of each subject found in a clip; counts what plain shots that stayed had to show."""
    shot = truth["shots"][number]
    count = shot["stop"] - shot["start"]
    frames = [round(instant * (count - 1)) for instant in config.instants]
    views = clip.get("views", [])
    if shot["kind"] == "plain" and (clip["drop"] in ("", "ambiguous subject names") or clip["drop"].startswith("no subject")):
        for subject in shot["subjects"]:
            for instant, frame in enumerate(frames):
                box = subject["boxes"][frame]
                if box:
                    counts.shown += 1
                    counts.seen += any(v["instant"] == instant and iou(tuple(v["box"]), tuple(box)) >= IOU for v in views)
    original = shot["of"] if shot["kind"] == "duplicate" else number
    who: dict[str, tuple[int, int, int]] = {}
    for name in clip["subjects"]:
        own = [v for v in views if v["subject"] == name]
        best = max(shot["subjects"], key=lambda s: _overlap(own, s["boxes"], frames))
        identity = best["identity"] if _overlap(own, best["boxes"], frames) > 0.5 else -1
        who[name] = (identity, truth["identities"][identity]["decoy_of"] if identity >= 0 else -1, original)
    return who


def _overlap(views: list[Record], boxes: list[list[int] | None], frames: list[int]) -> float:
    """Mean IoU of a subject's views with an identity's boxes, over the moments that have both."""
    values = [iou(tuple(v["box"]), tuple(box)) for v in views if (box := boxes[frames[v["instant"]]])]
    return float(np.mean(values)) if values else 0.0


def _kept(pairs: Iterable[Record], groups: PairGroups) -> Iterator[Record]:
    """The pairs that were kept; all of them are added to `groups`."""
    for pair in pairs:
        groups.add(pair)
        if not pair["drop"]:
            yield pair


def identity_metrics(groups: PairGroups, known: dict[str, Known]) -> dict[str, float]:
    """Of two subjects that are one identity: are they (precision); of two that are, are they found to be so (recall)."""
    groups.gather()
    found = groups.identities(known)
    true = {subject: (k.source_video, k.identity) for subject, k in known.items() if k.identity >= 0}
    twos = [sum(math.comb(n, 2) for n in Counter(names).values()) for names in (
        [(found[each], true[each]) for each in true], [found[each] for each in true], list(true.values())
    )]  # fmt: skip
    return {"identity_precision": twos[0] / max(1, twos[1]), "identity_recall": twos[0] / max(1, twos[2])}


def pair_metrics(pairs: Iterable[Record], known: dict[str, Known], truths: dict[str, Record]) -> dict[str, float]:
    """Precision and recall of cross-pairs, and what was planted and kept."""
    right: set[str] = set()
    count = correct = duplicates = decoys = 0
    for count, each in enumerate(pairs, 1):  # noqa: B007 - how many there were
        a, b = known.get(each["subject"]), known.get(each["partner"])
        same = a and b and a.source_video == b.source_video and a.identity == b.identity >= 0
        copy = bool(a and b and a.source_video == b.source_video and a.original == b.original)
        decoy = a and b and a.source_video == b.source_video and (a.decoy_of == b.identity >= 0 or b.decoy_of == a.identity >= 0)
        duplicates += copy
        decoys += bool(decoy)
        if same and not copy:
            correct += 1
            right.add(each["subject"])
    shots: dict[tuple[str, int], set[int]] = {}
    for k in known.values():
        shots.setdefault((k.source_video, k.identity), set()).add(k.original)
    able = [s for s, k in known.items() if k.identity >= 0 and len(shots[k.source_video, k.identity]) > 1]
    planted = sum(i["decoy_of"] >= 0 for t in truths.values() for i in t["identities"])
    copies = sum(s["kind"] == "duplicate" for t in truths.values() for s in t["shots"])
    return {
        "pair_precision": correct / max(1, count),
        "pair_recall": len(right & set(able)) / max(1, len(able)),
        "near_duplicates_kept": duplicates,
        "decoys_kept": decoys,
        "pairs": count,
        "decoys_planted": planted,
        "near_duplicates_planted": copies,
    }


REASONS = {"borders": CROPPED, "static": "static", "text": "burnt-in text"}


def faults_found(drops: Counter[tuple[str, str]]) -> float:
    """Share of the planted faults that were dropped, and for the right reason."""
    every = sum(count for (kind, _), count in drops.items() if kind in REASONS)
    return sum(count for (kind, reason), count in drops.items() if REASONS.get(kind) == reason) / max(1, every)


def good_dropped(drops: Counter[tuple[str, str]]) -> float:
    """Share of the shots without a fault that were dropped."""
    plain = {reason: count for (kind, reason), count in drops.items() if kind == "plain"}
    return sum(count for reason, count in plain.items() if reason) / max(1, sum(plain.values()))
