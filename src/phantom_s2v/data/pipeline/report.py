"""The report of a run: one HTML file beside the dataset that opens anywhere."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.data.pipeline.index import SubjectIndex, unpng
from phantom_s2v.media.images import evenly_spaced
from phantom_s2v.media.pages import write_page

SHEET = 24  # pairs on a sheet
TILE = 112  # pixels
BINS = 40
SAMPLE = 100 * SHEET  # pairs that those on a sheet are taken of
EXAMPLES = 4  # frames of dropped clips that are shown for a reason
MIDDLE = 1  # the still that is shown of a dropped clip
LISTED = 1000  # files that are named with a reason or a notice


class _Pairs:
    """What a report says of pairs, taken in one by one: counts, and a bounded number of examples."""

    def __init__(self, config: Config) -> None:
        self.config, self.looked_at, self.kept, self.paired = config, 0, 0, 0
        self.drops: Counter[str] = Counter()
        self.similar, self.same = np.zeros(BINS, int), np.zeros(BINS, int)
        self.near: list[Record] = []  # rejected, closest to the threshold first
        self.sample: list[Record] = []  # of those kept
        self.rng, self.last = np.random.default_rng(0), ""

    def add(self, pair: Record) -> None:
        """Take in a pair; those of one subject follow each other."""
        self.looked_at += 1
        self.similar[_bin(pair["similarity"])] += 1
        if pair["similarity"] >= self.config.lower:
            self.same[_bin(pair["sameness"])] += 1
        if pair["drop"]:
            self.drops[pair["drop"]] += 1
            self.near = sorted([*self.near, pair], key=lambda p: _beyond(p, self.config))[:SHEET]
            return
        self.kept += 1
        self.paired += pair["subject"] != self.last
        self.last = pair["subject"]
        if len(self.sample) < SAMPLE:
            self.sample.append(pair)
        elif (place := int(self.rng.integers(self.kept))) < SAMPLE:  # every pair with the same chance
            self.sample[place] = pair


def write_report(
    path: Path, subject_index: SubjectIndex, pairs: Iterable[Record], triplets: int, seconds: dict[str, float], config: Config
) -> None:
    """Counts by stage, reasons for drops, histograms with their bounds, sheets of pairs, files left behind, seconds by stage."""
    pair_statistics, clips, source_videos = _Pairs(config), Counter[str](), Counter[str]()
    subjects, left, notices = 0, list[tuple[str, str]](), list[tuple[str, str]]()
    for pair in pairs:
        pair_statistics.add(pair)
    dropped: dict[str, list[tuple[list[np.ndarray], str]]] = {}
    for row in subject_index.rows("clips", ["drop", "facts", "still"]):
        clips[row["drop"]] += 1
        facts = json.loads(row["facts"])
        subjects += 0 if row["drop"] else len(facts["subjects"])
        if row["drop"] and row["still"] and len(shown := dropped.setdefault(row["drop"], [])) < EXAMPLES:
            shown.append(_example(row["still"], facts))
    for source_video in subject_index.source_videos():
        source_videos[source_video["drop"]] += 1
        if source_video["drop"] and len(left) < LISTED:
            left.append((source_video["path"], source_video["drop"]))
        if source_video["notices"] and len(notices) < LISTED:
            notices.append((source_video["path"], "; ".join(source_video["notices"])))
    write_page(
        path,
        "triplets.html",
        title=path.stem,
        counts=_counts(source_videos, clips, subjects, pair_statistics, triplets),
        clips_dropped=Counter({k: v for k, v in clips.items() if k}).most_common(),
        dropped=dropped.items(),
        pairs_dropped=pair_statistics.drops.most_common(),
        similarity=_histogram(pair_statistics.similar, config.lower),
        sameness=_histogram(pair_statistics.same, config.upper),
        kept=_sheet(subject_index, _spread(pair_statistics.sample)),
        rejected=_sheet(subject_index, pair_statistics.near),
        listed=LISTED,
        left_behind=left,
        notices=notices,
        seconds=[(name, f"{value:.1f}") for name, value in seconds.items()],
    )


def _example(still: bytes, facts: Record) -> tuple[list[np.ndarray], str]:
    """A frame of a dropped clip with boxes of what was seen in it, and in words: where it is from, and why each is no subject."""
    image = unpng(still).copy()
    seen = facts["passed_over"]
    for each in (one for one in seen if one["instant"] == MIDDLE):
        left, top, right, bottom = (round(v * side) for v, side in zip(each["box"], image.shape[1::-1] * 2, strict=True))
        cv2.rectangle(image, (left, top), (right, bottom), (255, 200, 0), 2)
    reasons = Counter(f"{each['what']}: {each['reason']}" for each in seen)
    return [image], "; ".join([f"{facts['name']}, {facts['begins']:.1f} s", *reasons])


def _beyond(pair: Record, config: Config) -> float:
    """Distance of a pair beyond the threshold that rejected it."""
    return pair["sameness"] - config.upper if pair["drop"] == "near-duplicate" else max(0.0, config.lower - pair["similarity"])


def _counts(
    source_videos: Counter[str], clips: Counter[str], subjects: int, pairs: _Pairs, triplets: int
) -> list[tuple[str, object]]:
    return [
        ("files", source_videos.total()),
        ("files read", source_videos[""]),
        ("clips", clips.total()),
        ("clips kept", clips[""]),
        ("subjects in them", subjects),
        ("pairs looked at", pairs.looked_at),
        ("pairs kept", pairs.kept),
        ("subjects with a cross-pair", pairs.paired),
        ("triplets", triplets),
    ]


def _bin(value: float) -> int:
    """The bar of a value on the histograms' scale from -0.2 to 1."""
    return min(BINS - 1, max(0, int((value + 0.2) / 1.2 * BINS)))


def _histogram(counts: np.ndarray, bound: float) -> dict[str, Any]:
    """Places of bars over -0.2 to 1 and of the bound; the bars' heights go with the square root of their counts."""
    width, height = 800, 160
    tallest = float(np.sqrt(max(1, counts.max())))
    bars = [
        (f"{i * width / BINS:.1f}", f"{height * (1 - c**0.5 / tallest):.1f}", f"{width / BINS - 1:.1f}",
         f"{height * c**0.5 / tallest:.1f}", f"{-0.2 + i * 1.2 / BINS:.2f}: {c}")
        for i, c in enumerate(counts.tolist())
    ]  # fmt: skip
    labels = [(f"{(v + 0.2) / 1.2 * width - 8:.0f}", f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)]
    x = (bound + 0.2) / 1.2 * width
    return {"width": width, "height": height, "bars": bars, "x": x, "bound": f"{bound:g}", "labels": labels}


def _spread(pairs: list[Record]) -> list[Record]:
    """As many pairs as a sheet holds, by increasing similarity."""
    ordered = sorted(pairs, key=lambda p: p["similarity"])
    return [ordered[i] for i in evenly_spaced(len(ordered), SHEET)]


def _sheet(subject_index: SubjectIndex, pairs: list[Record]) -> list[tuple[list[np.ndarray], str]]:
    """Pairs, side by side, with their numbers."""
    if not pairs:
        return []
    views = {
        i: row["views"] for i, row in subject_index.subjects({p[side] for p in pairs for side in ("subject", "partner")}).items()
    }
    return [
        (
            [_small(views[p[side]][len(views[p[side]]) // 2]["image"]) for side in ("subject", "partner")],
            f"{p['similarity']:.2f}, {p['sameness']:.2f} {p['drop']}",
        )
        for p in pairs
    ]


def _small(content: bytes) -> np.ndarray:
    image = unpng(content)
    return cv2.resize(image, (max(1, round(image.shape[1] * TILE / image.shape[0])), TILE), interpolation=cv2.INTER_AREA)
